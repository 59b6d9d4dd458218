"""Verdicts: each kind of rule seen to pass, to fail, to be undecided and to be an error, and the whole contract."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.evaluation.outcomes import OutcomeRow, Outcomes, Series
from posttrain.promotion.gate import Report, apply_rule, gate, remake
from posttrain.promotion.grammar import parse_contract, parse_rule
from posttrain.promotion.metrics import METRICS, Metric, Proportion, find_metric, metrics
from posttrain.promotion.records import Check, Decision
from tests.promotion.worlds import (
    DEV_RULES,
    OTHER_SUITE,
    RULES,
    check,
    decide,
    example,
    flags,
    plain,
    report,
    rows,
    shifted,
    traffic,
)

GOLDEN = Path(__file__).parent / "golden"


# -- the specification's example ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports() -> tuple[Outcomes, Outcomes]:
    return example("candidate"), example("baseline")


def test_the_example_table_has_its_figures_and_ticks(reports):
    candidate, baseline = reports
    decision = decide(DEV_RULES, candidate, baseline)
    table = {row.slice: row for row in decision.table}
    figures = {
        name: (round(row.baseline, 3), round(row.candidate, 3))
        for name, row in table.items()
        if name != "everything_else"
    }
    assert figures == {
        "headache_redflags": (0.31, 0.84),
        "math_basic": (0.97, 0.993),
        "division_hard": (0.41, 0.52),
        "debug_search_api": (0.71, 0.88),
        "Aggregate": (0.76, 0.83),
    }
    cells = [cell for row in decision.table for cell in row.metrics]
    for expected in (
        "format_pass_rate(tag='<answer>') 0.985 → 0.997 ✓",
        "success@1 Δ = +0.11 ✓",
        "success@1 p=0.0099 ✓",
        "tool_call_correctness.schema 0.99 → 0.999 ✓",
        "api_version_match_rate('3.2.1') 0.9 → 0.99 ✓",
        "latency_p95_ms 910 → 880 ✓",
        "cost_per_1k_tokens_usd 0.02 → 0.019 ✓",
    ):
        assert expected in cells
    # The text ticks 0.06 against its own cap of 0.05. The rule wins: everything else passes, and the model stays.
    assert "rule_violation_rate 0.62 → 0.06 ✗" in cells
    assert [result.text for result in decision.rules if result.verdict != "PASS"] == [
        "rule_violation_rate(headache_redflags).point <= 0.05"
    ]
    assert decision.outcome == "NO-GO" and decision.exit_code == 1


def test_the_example_goes_on_where_its_violations_keep_the_cap(reports):
    decision = decide(DEV_RULES, example("candidate", violations=20), reports[1])
    assert decision.outcome == "GO" and decision.exit_code == 0
    assert all(result.verdict == "PASS" for result in decision.rules)


def test_the_whole_contract_wants_traffic(reports):
    candidate, baseline = example("candidate", violations=20), reports[1]
    assert decide(RULES, candidate, baseline).outcome == "ERROR"
    assert "no data" in decide(RULES, candidate, baseline).rules[-1].checks[0].decision
    assert decide(RULES, candidate, baseline, traffic()).outcome == "GO"


def test_flipped_cases_are_named_both_ways(reports):
    flips = decide(DEV_RULES, *reports).flips["division_hard"]
    assert len(flips.gained) == 52 and len(flips.lost) == 30
    assert flips.lost[0] == "division_hard/0000" and flips.gained[0] == "division_hard/0030"


# -- rates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "successes", "total", "verdict"),
    [
        ("success@1(tools).point >= 0.82", 82, 100, "PASS"),
        ("success@1(tools).point > 0.82", 82, 100, "FAIL"),
        ("success@1(tools).point <= 0.82", 82, 100, "PASS"),
        ("success@1(tools).point < 0.82", 82, 100, "FAIL"),
        ("success@1(tools).point == 0.82", 82, 100, "PASS"),
        ("success@1(tools).count >= 82", 82, 100, "PASS"),
        ("success@1(tools).count == 81", 82, 100, "FAIL"),
        ("success@1(tools).lower_ci >= 0.98", 183, 183, "PASS"),
        ("success@1(tools).lower_ci >= 0.98", 182, 182, "INCONCLUSIVE"),
        ("success@1(tools).lower_ci >= 0.98", 900, 1000, "FAIL"),
        ("success@1(tools).lower_ci >= 0.82", 19, 19, "PASS"),
        ("success@1(tools).lower_ci >= 0.82", 18, 18, "INCONCLUSIVE"),
        ("success@1(tools).lower_ci > 0", 1, 5, "PASS"),
        ("success@1(tools).lower_ci >= 0.9", 0, 5, "FAIL"),
        ("every_success@1.point >= 0.82", 82, 100, "PASS"),
    ],
)
def test_verdicts_of_a_rate(rule, successes, total, verdict):
    assert check(rule, plain(flags(successes, total))).verdict == verdict


def test_lower_is_better_has_its_bound_above():
    candidate = report(rows("tools", [True] * 400, rule_violation=flags(8, 400)))
    rule = "rule_violation_rate(tools).upper_ci <= {}"
    assert check(rule.format("0.05"), candidate).verdict == "PASS"
    assert check(rule.format("0.03"), candidate).verdict == "INCONCLUSIVE"
    assert check(rule.format("0.005"), candidate).verdict == "FAIL"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (
            "rule_violation_rate(tools).lower_ci >= 0.01",
            "of rule_violation_rate lower is better: write upper_ci <=",
        ),
        ("rule_violation_rate(tools).lower_ci <= 0.05", "points the wrong way"),
        ("success@1(tools).upper_ci >= 0.5", "points the wrong way"),
        ("success@1(tools).upper_ci <= 0.5", "of success higher is better"),
        ("latency_p95_ms.lower_ci >= 3", "lower is better"),
    ],
)
def test_a_bound_that_points_the_wrong_way_is_an_error(rule, why):
    candidate = report(rows("tools", [True] * 300, rule_violation=False, latency_ms=3.0))
    found = check(rule, candidate)
    assert found.verdict == "ERROR" and why in found.decision


def test_an_undecided_rule_says_how_many_cases_it_needs():
    found = check("success@1(tools).lower_ci >= 0.98", plain(flags(198, 200)))
    assert found.verdict == "INCONCLUSIVE" and found.needed == 1295  # 80 % power at a true rate of 0.99
    assert "P(X >= 198 | n=200, p=0.98) = 0.235" in found.decision
    never = check("success@1(tools).lower_ci >= 0.98", plain(flags(195, 200)))
    assert never.verdict == "INCONCLUSIVE" and never.needed is None


def test_a_point_within_noise_of_its_threshold_is_called_a_coin_toss():
    assert check("success@1.point >= 0.8", plain(flags(81, 100))).coin_toss
    assert not check("success@1.point >= 0.8", plain(flags(99, 100))).coin_toss


def test_min_n_holds_back_every_rule_of_a_small_slice():
    text = "min_n: 200\n{}"
    candidate, baseline = plain([True] * 150), plain([False] * 150)
    for rule in (
        "success@1(tools).point >= 0.5",
        "delta.success@1(tools).point > 0",
        "no_regressions_on: [tools]",
    ):
        found = decide(text.format(rule), candidate, baseline).rules[0]
        assert found.verdict == "INCONCLUSIVE" and "150 cases < min_n 200" in found.checks[0].decision


# -- missing data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "success", "verdict", "word"),
    [
        ("success@1.point >= 0.8", [True] * 85 + [False] * 10 + [None] * 5, "PASS", "counted against"),
        ("success@1.point >= 0.9", [True] * 86 + [False] * 8 + [None] * 6, "ERROR", "6 missing would decide"),
        ("success@1.point >= 0.95", [True] * 86 + [False] * 8 + [None] * 6, "FAIL", "would not change it"),
        ("success@1.lower_ci >= 0.8", [True] * 95 + [None] * 5, "PASS", "counted against"),
        ("success@1.lower_ci >= 0.95", [True] * 98 + [None] * 2, "ERROR", "would decide"),
        ("success@1.lower_ci >= 0.99", [True] * 98 + [None] * 2, "INCONCLUSIVE", "would not change it"),
        ("success@1.count == 3", [True] * 3 + [None], "ERROR", "1 of 4 rows have no success"),
    ],
)
def test_missing_data_never_passes_and_is_no_failure(rule, success, verdict, word):
    found = check(rule, plain(success))
    assert (found.verdict, word in found.decision) == (verdict, True), found.decision
    assert found.missing == success.count(None) or found.verdict == "ERROR"


def test_a_slice_without_any_value_is_no_data():
    assert "there is no data" in check("success@1(tools).point >= 0", plain([None] * 5)).decision
    assert check("rule_violation_rate(tools).point <= 1", plain([True] * 5)).verdict == "ERROR"


def test_missing_pairs_count_against_the_candidate():
    before = plain([True] * 100 + [None] * 2)
    same = plain([True] * 100 + [False] * 2)
    assert check("delta.success@1.point >= 0", same, before).verdict == "ERROR"
    assert check("delta.success@1.point >= -0.05", same, before).verdict == "PASS"
    assert check("no_regressions_on: [tools] margin=0.2", same, before).verdict == "PASS"


# -- pairs -----------------------------------------------------------------------------------------------


def pair(gained: int, lost: int, total: int) -> tuple[Outcomes, Outcomes]:
    """Candidate and baseline."""
    before, after = shifted(gained, lost, (total - gained - lost) // 2, total)
    return plain(after), plain(before)


@pytest.mark.parametrize(
    ("rule", "gained", "lost", "total", "verdict"),
    [
        ("delta.success@1(tools).point >= 0.07", 10, 3, 100, "PASS"),  # 0.07 exactly
        ("delta.success@1(tools).point > 0.07", 10, 3, 100, "FAIL"),
        ("delta.success@1(tools).p_value < 0.05", 12, 3, 100, "PASS"),
        ("delta.success@1(tools).p_value < 0.05", 6, 4, 100, "INCONCLUSIVE"),
        ("delta.success@1(tools).p_value < 0.05", 3, 25, 100, "FAIL"),
        ("delta.success@1(tools).p_value < 0.03125", 5, 0, 100, "INCONCLUSIVE"),  # p = 1/32 is not below
        ("delta.success@1(tools).p_value <= 0.03125", 5, 0, 100, "PASS"),
        ("delta.success@1(tools).p_value > 0.05", 5, 0, 100, "ERROR"),
        ("delta.success@1(tools).lower_ci >= 0", 30, 3, 200, "PASS"),
        ("delta.success@1(tools).lower_ci >= 0.07", 20, 3, 200, "INCONCLUSIVE"),
        ("delta.success@1(tools).lower_ci >= 0.07", 3, 30, 200, "FAIL"),
        ("no_regressions_on: [tools]", 50, 50, 2000, "PASS"),
        ("no_regressions_on: [tools]", 5, 5, 200, "INCONCLUSIVE"),
        ("no_regressions_on: [tools]", 20, 120, 1000, "FAIL"),
        ("no_regressions_on: [tools] margin=0.05", 10, 10, 500, "PASS"),
    ],
)
def test_verdicts_of_pairs(rule, gained, lost, total, verdict):
    found = check(rule, *pair(gained, lost, total))
    assert found.verdict == verdict, found.decision
    if verdict != "ERROR":
        assert (found.gained, found.lost) == (gained, lost)


def test_an_equal_model_needs_many_cases_to_be_shown_so():
    """2.4: 10 % discordance and a margin of 0.02 need 1,546 at a one-sided 5 %."""
    found = check("confidence: 0.90\nno_regressions_on: [tools]", *pair(10, 10, 200))
    assert found.verdict == "INCONCLUSIVE" and found.needed == 1546


def test_margins_come_from_the_rule_then_the_slice_then_the_contract():
    head = "margin: 0.04\nmargin.tools: 0.03\n"
    both = pair(5, 5, 200)
    assert check(head + "no_regressions_on: [tools] margin=0.05", *both).margin == "0.05"
    assert check(head + "no_regressions_on: [tools]", *both).margin == "0.03"
    assert check("margin: 0.04\nno_regressions_on: [tools]", *both).margin == "0.04"
    assert check("no_regressions_on: [tools]", *both).margin == "0.02"


def test_a_hard_case_may_not_flip_whatever_the_margin():
    candidate, baseline = pair(60, 2, 400)
    rule = "no_regressions_on: [tools] hard=['{}']"
    assert decide(rule.format("tools/0000"), candidate, baseline).outcome == "NO-GO"
    assert "tools/0000" in check(rule.format("tools/0000"), candidate, baseline).decision
    assert decide(rule.format("tools/0399"), candidate, baseline).outcome == "GO"
    unknown = decide(rule.format("tools/9999"), candidate, baseline)
    assert unknown.outcome == "ERROR" and "no hard case 'tools/9999'" in unknown.rules[0].checks[-1].decision
    unscored = plain([None if i == 3 else True for i in range(400)])
    assert decide(rule.format("tools/0003"), unscored, baseline).outcome == "ERROR"


def test_the_direction_of_a_p_value_is_that_of_its_delta_rule():
    better = pair(12, 3, 100)
    two_sided = check("alternative: two-sided\ndelta.success@1(tools).p_value < 0.05", *better)
    one_sided = check("delta.success@1(tools).p_value < 0.05", *better)
    assert two_sided.p_value == pytest.approx(2 * one_sided.p_value)
    down = "delta.success@1(tools).point <= 0\ndelta.success@1(tools).p_value < 0.05"
    assert check(down, *better).estimator == "mcnemar exact, less"
    violations = [report(rows("tools", [True] * 50, rule_violation=flags(k, 50))) for k in (2, 20)]
    assert check("delta.rule_violation_rate(tools).p_value < 0.05", *violations).verdict == "PASS"


@pytest.mark.parametrize(
    ("baseline", "why"),
    [
        (None, "no baseline"),
        (plain([True] * 50, suite=OTHER_SUITE), "another suite"),
        (plain([True] * 49), "do not pair: 1 are on one side only, 'tools/0049' in the candidate"),
        (plain([True] * 51), "'tools/0050' in the baseline"),
    ],
)
def test_what_does_not_pair_is_an_error(baseline, why):
    for rule in ("delta.success@1.point >= 0", "no_regressions_on: [tools]"):
        decision = decide(rule, plain([True] * 50), baseline)
        assert decision.outcome == "ERROR" and decision.exit_code == 2
        assert why in decision.rules[0].checks[0].decision
        assert decision.flips == {}


def test_a_baseline_of_another_suite_is_named_even_where_no_rule_needs_it():
    decision = decide("success@1.point >= 0", plain([True]), plain([True], suite=OTHER_SUITE))
    assert decision.outcome == "GO" and "baseline refused" in decision.notes[0]
    assert decision.table[0].baseline is None


def test_cases_that_moved_between_slices_do_not_pair():
    moved = report([row._replace(slice="other") for row in rows("tools", [True] * 5)])
    assert "other slices" in check("delta.success@1.point >= 0", plain([True] * 5), moved).decision


# -- latency, steps, cost ----------------------------------------------------------------------------------


def timed(values: list[float | None], **changes: Any) -> Outcomes:
    return report(rows("tools", [True] * len(values), latency_ms=values), **changes)


def test_percentiles_are_observed_values_and_their_bounds_ranks():
    values: list[float | None] = [float(v) for v in range(1, 101)]
    assert check("latency_p95_ms.point <= 95", timed(values)).verdict == "PASS"
    assert check("latency_p95_ms.point < 95", timed(values)).verdict == "FAIL"
    assert check("latency_p95_ms.upper_ci <= 100", timed(values)).verdict == "PASS"
    assert check("latency_p95_ms.upper_ci <= 96", timed(values)).verdict == "INCONCLUSIVE"
    assert check("latency_p95_ms.upper_ci <= 50", timed(values)).verdict == "FAIL"
    few = check("latency_p95_ms.upper_ci <= 900", timed([5.0] * 71))
    assert few.verdict == "INCONCLUSIVE" and few.needed == 72 and few.high is None
    assert check("latency_p95_ms.upper_ci <= 900", timed([5.0] * 72)).verdict == "PASS"
    assert check("latency_p50_ms.point <= 50", timed(values)).value == 50


def test_an_unsolved_case_takes_endless_steps():
    def steps(values: list[int | None]) -> Check:
        return check("steps_to_solve_median.point <= 5", report(rows("t", [True] * 5, steps_to_solve=values)))

    assert steps([1, 2, 5, None, None]).verdict == "PASS"
    undecided = steps([1, 2, None, None, None])
    assert undecided.verdict == "ERROR" and undecided.value is None
    assert steps([9, 9, 9, None, None]).verdict == "FAIL"


def test_a_cost_is_exact_at_its_limit():
    def cost(usd: float | None, limit: str) -> Check:
        made = report(rows("t", [True] * 70, cost_usd=[usd] * 69 + [0.02], tokens=1000))
        return check(f"cost_per_1k_tokens_usd.point <= {limit}", made)

    assert cost(0.02, "0.020").verdict == "PASS" and not cost(0.02, "0.020").notes
    assert cost(0.02, "0.0199").verdict == "FAIL"
    assert cost(None, "1").verdict == "ERROR" and "may be any cost" in cost(None, "1").decision


@pytest.mark.parametrize("rule", ["latency_p95_ms.point <= 900", "cost_per_1k_tokens_usd.point <= 1"])
def test_latency_and_cost_come_from_lanes_that_are_live(rule):
    values = {"latency_ms": 5.0, "cost_usd": 0.1, "tokens": 1000}
    replayed = report(rows("t", [True] * 100, **values), lane="replay")
    found = check(rule, replayed)
    assert found.verdict == "ERROR" and "the recording's" in found.decision
    assert check(rule, report(rows("t", [True] * 100, **values))).verdict == "PASS"


# -- aggregates, samples, pass@k ---------------------------------------------------------------------------


def test_aggregates_are_over_cases_unless_weighted():
    made = report(rows("big", flags(900, 900)), rows("small", flags(0, 100)))
    rule = "aggregate.success@1.point >= 0.9"
    assert check(rule, made).exact == "900/1000" and check(rule, made).verdict == "PASS"
    macro = check(f"aggregate_weights: macro\n{rule}", made)
    assert macro.value == 0.5 and macro.verdict == "FAIL" and "stratified" in macro.estimator
    weighted = check(f"aggregate_weights: big=3, small=1\n{rule}", made)
    assert weighted.value == 0.75 and weighted.low < 0.75 < weighted.high
    wrong = check(f"aggregate_weights: bigg=3\n{rule}", made)
    assert wrong.verdict == "ERROR" and "did you mean 'big'" in wrong.decision
    assert "leave the slice out" in check("aggregate.success@1(big).point >= 0", made).decision


def sampled(counts: list[int], k: int) -> Outcomes:
    """``counts`` of ``k`` samples right, a case each."""
    return report(
        [
            OutcomeRow(f"c{index:03d}", "tools", sample, sample < right)
            for index, right in enumerate(counts)
            for sample in range(k)
        ]
    )


def test_samples_of_a_case_never_count_as_cases():
    made = sampled([4] * 60 + [0] * 60, 4)
    first = check("success@1(tools).lower_ci >= 0.4", made)
    assert (first.cases, first.exact) == (120, "60/120")
    every = check("estimator: korn-graubard\nsuccess@1(tools).lower_ci >= 0.4", made)
    assert every.cases == 120 and every.samples == 480
    assert every.low == pytest.approx(first.low, abs=0.01), "alike samples add nothing"
    few = check("estimator: korn-graubard\nsuccess@1(tools).lower_ci >= 0.4", sampled([4] * 50, 4))
    assert few.verdict == "ERROR" and "needs 100 cases" in few.decision


def test_pairs_of_several_samples_are_tested_by_sign_flips():
    before, after = sampled([1] * 60 + [3] * 60, 4), sampled([2] * 60 + [3] * 60, 4)
    head = "estimator: korn-graubard\n"
    found = check(head + "delta.success@1.p_value < 0.001", after, before)
    assert found.verdict == "PASS" and found.estimator == "sign flips, greater"
    point = check(head + "delta.success@1.point >= 0.125", after, before)
    assert point.exact == "1/8" and point.verdict == "PASS" and "mover" in point.estimator
    assert check(head + "no_regressions_on: [tools]", after, before).verdict == "PASS"


def test_pass_at_k_is_unbiased_and_needs_k_samples():
    made = sampled([2] * 100, 5)
    assert check("success@2.point >= 0.7", made).verdict == "PASS"  # 7/10, Chen et al. 2021
    assert check("success@2.point > 0.7", made).verdict == "FAIL"
    assert check("every_success@2.point == 0.1", made).verdict == "PASS"
    exactly = check("success@5.lower_ci >= 0.95", made)
    assert exactly.verdict == "PASS" and "clopper-pearson" in exactly.estimator
    assert "needs 6 samples" in check("success@6.point > 0", made).decision


# -- metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("sucess@1(tools).point >= 0.5", "no metric 'sucess'; did you mean 'success'?"),
        ("success@1(tool).point >= 0.5", "no case of a slice 'tool'; did you mean 'tools'?"),
        ("no_regressions_on: [tool]", "no case of a slice 'tool'; did you mean 'tools'?"),
        ("maths_correct_rate(tools).point >= 0", "no column 'maths_correct'; did you mean 'math_correct'?"),
        ("latency_ms_rate.point >= 0", "holds numbers"),
        ("success@1(tools).p_value < 0.05", "write delta."),
        ("latency_p95_ms.count == 0", "has no count"),
        ("delta.latency_p95_ms.point <= 0", "a difference is of rates"),
        ("delta.success@1.count >= 1", "no count"),
        ("safety_incidents.lower_ci >= 0", "lower is better"),
    ],
)
def test_what_the_report_does_not_know_is_an_error_and_never_a_pass(rule, why):
    candidate = report(rows("tools", [True] * 100, math_correct=True, latency_ms=5.0, safety_incidents=0))
    decision = decide(rule, candidate, candidate)
    assert decision.outcome == "ERROR" and why in decision.rules[0].checks[0].decision


def test_every_shipped_metric_is_found_by_its_name_and_special_ones_before_families():
    assert find_metric(parse_rule("cost_per_1k_tokens_usd.point < 1").metric).name == "cost_per_1k_tokens_usd"
    assert find_metric(parse_rule("rule_violation_rate.point < 1").metric).better == "lower"
    assert find_metric(parse_rule("my_own_rate.point < 1").metric).name == "*_rate"
    assert find_metric(parse_rule("latency_p99_ms.point < 1").metric).live
    assert find_metric(parse_rule("queue_p50_ms.point < 1").metric).name == "*_p<NN>_ms"


def test_a_rule_can_be_python():
    """A metric of one's own: cases that passed within a second."""

    def quick(outcomes: Outcomes, call: Any) -> Series:
        latency = outcomes.metrics["latency_ms"]
        return Series(outcomes.success.values & (latency.values < 1000), latency.present)

    metric = Metric(
        "quick_success", lambda call: Proportion("quick"), "higher", "Passed in time.", derive=quick
    )
    candidate = report(rows("tools", flags(80, 100), latency_ms=[float(20 * i) for i in range(100)]))
    contract = parse_contract("quick_success(tools).point >= 0.5")
    assert gate(contract, Report(candidate)).outcome == "ERROR"
    decision = gate(contract, Report(candidate), metrics=(metric, *METRICS))
    assert decision.outcome == "GO" and decision.rules[0].checks[0].exact == "50/100"


def test_other_packages_register_metrics(tmp_path, monkeypatch):
    """A real distribution on the path, found by its entry point."""
    (tmp_path / "ours.py").write_text(
        "from posttrain.promotion.metrics import Metric, Proportion\n"
        "polite = Metric('politeness', lambda call: Proportion('math_correct'), 'higher', 'Polite.')\n"
    )
    info = tmp_path / "ours-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[posttrain.metrics]\npoliteness = ours:polite\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    metrics.cache_clear()
    try:
        candidate = report(rows("tools", [True] * 50, math_correct=flags(40, 50)))
        assert check("politeness(tools).point >= 0.8", candidate).verdict == "PASS"
    finally:
        metrics.cache_clear()


def test_one_rule_by_itself():
    found = apply_rule(parse_rule("success@1(tools).point >= 0.8"), plain(flags(8, 10)))
    assert found.verdict == "PASS" and found.checks[0].exact == "8/10"


# -- records -----------------------------------------------------------------------------------------------


def test_a_decision_is_made_again_to_the_byte(reports):
    candidate, baseline = reports
    decision = decide(RULES, candidate, baseline, traffic())
    again = Decision.from_json(decision.to_bytes())
    assert again == decision
    made = remake(again, Report(candidate), baseline=Report(baseline), canary=Report(traffic()))
    assert made.to_bytes() == decision.to_bytes()
    other = remake(again, Report(example("candidate", violations=23)), baseline=Report(baseline))
    assert other.to_bytes() != decision.to_bytes()


def test_every_version_ever_written_is_read_and_written_back_to_the_byte():
    stored = (GOLDEN / "decision_v1.json").read_bytes()
    decision = Decision.from_json(stored)
    assert decision.to_bytes() == stored.rstrip(b"\n")
    assert decision.outcome == "NO-GO"


def test_the_golden_decision_is_what_these_records_still_give():
    """Figures and verdicts of this example have not moved since they were first written."""
    before, after = shifted(9, 2, 80, 100)
    decision = decide(
        "margin: 0.05\nsuccess@1(tools).lower_ci >= 0.9\ndelta.success@1(tools).p_value < 0.05\n"
        "no_regressions_on: [tools]\nlatency_p95_ms.point <= 40\n",
        report(rows("tools", after, latency_ms=[float(i % 50) for i in range(100)])),
        report(rows("tools", before), model="baseline"),
    )
    assert decision.to_bytes() == (GOLDEN / "decision_v1.json").read_bytes().rstrip(b"\n")


def test_the_order_of_rows_does_not_matter():
    made = rows("tools", flags(90, 100), latency_ms=[float(i) for i in range(100)])
    text = "success@1(tools).lower_ci >= 0.8\nlatency_p95_ms.upper_ci <= 200\n"
    expected = decide(text, report(made)).to_bytes()
    for seed in range(3):
        assert decide(text, report(random.Random(seed).sample(made, len(made)))).to_bytes() == expected


def test_nothing_is_judged_by_a_figure_that_is_not_a_number():
    with pytest.raises(ValueError, match="finite"):
        Check(verdict="PASS", decision="", value=float("nan"))
    assert np.isfinite(Check(verdict="PASS", decision="", value=1 / 3).value)
