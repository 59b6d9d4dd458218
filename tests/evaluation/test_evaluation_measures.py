"""Rows to measures: what is counted, over what, and how two models are paired."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.evaluation.heldout.measures import (
    MAX_SLICES_PER_TAG,
    MEASURES,
    compare,
    measure_info,
    measure_rows,
)
from posttrain.statistics import intervals as statistics


def measured(rows, **changes):
    return measure_rows(rows, **{"model": "sha256:" + "a" * 64, "suite": "sha256:" + "c" * 64, **changes})


def test_greedy_success_is_a_count_with_its_exact_interval(row):
    report = measured([row(case, correct=case < 7) for case in range(20)])
    measure = report.measure("greedy.success@1")
    assert (measure.count, measure.n, measure.cases, measure.value) == (7, 20, 20, 0.35)
    assert (measure.low, measure.high) == pytest.approx(statistics.clopper_pearson(7, 20))
    assert measure.method == "clopper-pearson"
    assert report.samples == {"greedy": 20}
    assert not report.has("sampled.success@1")


def test_samples_of_one_case_are_one_cluster(row):
    rows = [
        row(case, mode="sampled", sample_index=index, correct=case < 5)
        for case in range(10)
        for index in range(100)
    ]
    measure = measured(rows).measure("sampled.success@1")
    assert (measure.count, measure.n, measure.cases) == (500, 1000, 10)
    assert measure.method == "korn-graubard"
    assert measure.high - measure.low > 0.5


def test_success_is_the_mean_of_the_case_means(row):
    rows = [row(0, mode="sampled", sample_index=index) for index in range(9)]
    rows += [row(1, mode="sampled", correct=False)]
    measure = measured(rows).measure("sampled.success@1")
    assert measure.value == 0.5 and (measure.count, measure.n) == (9, 10)


def test_what_could_not_be_scored_is_not_a_zero(row):
    rows = [row(0), row(1), row(2, correct=None, correct_anywhere=None), row(3, correct=False)]
    report = measured(rows)
    assert report.measure("greedy.success@1").value == pytest.approx(2 / 3, rel=1e-11)
    assert report.measure("greedy.success@1").n == 3
    assert report.measure("greedy.none_rate").count == 1
    assert report.measure("greedy.format_rate").n == 4
    assert report.error_counts["greedy"] == {"correct": 2, "other": 1, "unscored": 1}


def test_a_pure_gain_of_format_is_seen_as_one(rows):
    comparison = compare(rows(60, fmt=20), rows(60, fmt=100))
    assert comparison.difference("sampled.success@1").low > 0.2
    assert comparison.difference("sampled.accuracy_any_format").difference == 0
    assert comparison.difference("sampled.format_rate").low > 0.5


def test_pass_at_k_counts_up_to_the_samples_that_every_case_has(row):
    rows = [row(c, mode="sampled", sample_index=i, correct=i == 0) for c in range(30) for i in range(8)]
    report = measured(rows)
    assert [m.name for m in report.measures if "pass@" in m.name] == [f"sampled.pass@{k}" for k in (2, 4, 8)]
    assert report.measure("sampled.pass@2").value == pytest.approx(0.25)
    assert report.measure("sampled.pass@8").value == 1.0
    assert report.measure("sampled.pass@8").low == pytest.approx(statistics.clopper_pearson(30, 30).low)
    fewer = [r for r in rows if not (r.case_id == "case-000" and r.sample_index > 4)]
    assert measured(fewer).has("sampled.pass@4") and not measured(fewer).has("sampled.pass@8")


def test_tokens_have_the_mean_over_cases(row):
    report = measured([row(0, think_tokens=10), row(1, think_tokens=20), row(2, think_tokens=30)])
    measure = report.measure("greedy.reasoning_tokens")
    assert measure.value == 20 and measure.low < 20 < measure.high
    alone = measured([row(0, think_tokens=10)]).measure("greedy.reasoning_tokens")
    assert (alone.value, alone.low, alone.high) == (10, None, None)


def test_nothing_scorable_is_no_value_rather_than_zero(row):
    report = measured([row(c, correct=None, correct_anywhere=None) for c in range(3)])
    measure = report.measure("greedy.success@1")
    assert (measure.value, measure.low, measure.n) == (None, None, 0)
    assert report.measure("greedy.none_rate").value == 1.0
    comparison = compare([row(0, correct=None)], [row(0)])
    assert comparison.difference("greedy.success@1") is None


def test_error_kinds_are_counted_by_mode(rows):
    report = measured(rows(50, fmt=60))
    for mode in ("greedy", "sampled"):
        counts = report.error_counts[mode]
        assert sum(counts.values()) == report.samples[mode]
        assert counts["correct"] == report.measure(f"{mode}.success@1").count
        assert set(counts) == {"correct", "wrong_number", "no_answer_tag"}


def test_slices_are_made_of_language_and_tags(rows):
    report = measured(rows(50))
    assert [(s.tag, s.value) for s in report.slices] == [
        ("language", "en"),
        ("language", "zh"),
        ("steps", "2"),
        ("steps", "3"),
        ("steps", "4"),
    ]
    for tag in ("language", "steps"):
        pieces = [s for s in report.slices if s.tag == tag]
        assert sum(s.cases for s in pieces) == report.cases
        total = sum(m.count for s in pieces for m in s.measures if m.name == "sampled.success@1")
        assert total == report.measure("sampled.success@1").count


def test_a_tag_that_tells_cases_apart_makes_no_slices(row):
    report = measured([row(case, tags={"seed": case}) for case in range(MAX_SLICES_PER_TAG + 1)])
    assert {piece.tag for piece in report.slices} == {"language"}


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(rows, generator: random.Random):
    ordered = rows(55, fmt=80)
    shuffled = ordered[:]
    generator.shuffle(shuffled)
    assert measured(shuffled).to_bytes() == measured(ordered).to_bytes()
    assert compare(shuffled, ordered).to_bytes() == compare(ordered, ordered).to_bytes()


def test_every_measure_is_described_and_taken_in_that_order(rows):
    report = measured(rows(50))
    names = [m.name.removeprefix("sampled.") for m in report.measures if m.name.startswith("sampled.")]
    families = ["pass@k" if name.startswith("pass@") else name for name in names]
    assert list(dict.fromkeys(families)) == list(MEASURES)
    assert measure_info("sampled.pass@4").title == "Pass@4"
    with pytest.raises(KeyError):
        measure_info("sampled.charm")


def test_greedy_pairs_are_mcnemar_and_tango(row):
    before = [row(c, correct=c < 10) for c in range(40)]
    after = [row(c, correct=5 <= c < 30) for c in range(40)]
    found = compare(before, after).difference("greedy.success@1")
    assert (found.gained, found.lost, found.cases, found.dropped) == (20, 5, 40, 0)
    assert found.method == "tango"
    assert (found.difference, found.low, found.high) == pytest.approx(statistics.tango_interval(20, 5, 40))
    assert found.p_value == pytest.approx(statistics.mcnemar_exact(20, 5))
    assert (found.before, found.after) == (0.25, 0.625)


def test_sampled_pairs_are_paired_by_case(rows):
    found = compare(rows(30), rows(80)).difference("sampled.success@1")
    assert found.method == "mover-korn-graubard"
    assert found.difference == pytest.approx(found.after - found.before)
    assert 0.3 < found.low < found.difference < found.high < 0.7
    assert found.p_value is None
    mirror = compare(rows(80), rows(30)).difference("sampled.success@1")
    assert (mirror.low, mirror.high) == pytest.approx((-found.high, -found.low))


def test_a_case_that_one_side_could_not_score_is_dropped_and_counted(row):
    before = [row(c, correct=None if c == 0 else c < 5) for c in range(10)]
    found = compare(before, [row(c) for c in range(10)]).difference("greedy.success@1")
    assert (found.cases, found.dropped, found.gained) == (9, 1, 5)


def test_the_same_model_twice_shows_no_difference(rows):
    for difference in compare(rows(50), rows(50)).differences:
        assert difference.difference == 0
        assert difference.low <= 0 <= difference.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "only one of the two"),
        (lambda rows: [r.model_copy(update={"reference": "0"}) for r in rows], "not the same problem"),
        (lambda rows: [r.model_copy(update={"mode": "sampled"}) for r in rows], "no mode in common"),
        (lambda rows: [], "no completions"),
        (lambda rows: rows + rows[:1], "twice"),
    ],
)
def test_evaluations_that_do_not_pair_are_refused(row, change, message):
    before = [row(c) for c in range(5)]
    with pytest.raises(DataError, match=message):
        compare(before, change(before))


def test_two_problems_under_one_id_are_refused(row):
    rows = [row(0, mode="sampled"), row(0, mode="sampled", sample_index=1, question="another?")]
    with pytest.raises(DataError, match="two problems"):
        measured(rows)
