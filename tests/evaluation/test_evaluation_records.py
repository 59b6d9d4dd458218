"""The JSON forms: exact round trips, every version ever written, one clear message for anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.core.errors import DataError, UnknownReferenceError
from posttrain.evaluation.heldout.measures import compare, measure_rows
from posttrain.evaluation.heldout.records import (
    CaseRow,
    Comparison,
    EvaluationReport,
    dump_case_rows,
    load_case_rows,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def report(rows, digests):
    return measure_rows(
        rows(60), model=digests[0], suite=digests[2], sampling={"temperature": 1.0, "seed": 0}
    )


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("case_row_v1", CaseRow),
        ("evaluation_report_v1", EvaluationReport),
        ("comparison_v1", Comparison),
    ],
)
def test_every_version_ever_written_is_read_and_written_back_to_the_byte(name, record):
    stored = (GOLDEN / f"{name}.json").read_bytes()
    assert record.from_json(stored).to_bytes() == stored.rstrip(b"\n")


def test_the_golden_report_says_what_it_said_when_it_was_written():
    report = EvaluationReport.from_json((GOLDEN / "evaluation_report_v1.json").read_bytes())
    measure = report.measure("sampled.success@1")
    assert (measure.count, measure.n, measure.cases) == (13, 24, 6)
    assert measure.value == pytest.approx(13 / 24)
    assert report.sampling == {"temperature": 1, "samples_per_case": 4, "seed": 0}
    assert report.error_counts["sampled"] == {"correct": 13, "wrong_number": 6, "no_answer_tag": 5}


def test_a_report_survives_the_round_trip_and_its_digest_is_its_content(report, rows, digests):
    again = EvaluationReport.from_json(json.loads(report.to_bytes()))
    assert again == report
    assert again.digest == report.digest
    other = measure_rows(rows(75), model=digests[0], suite=digests[2], sampling=report.sampling)
    assert other.digest != report.digest


def test_a_comparison_survives_the_round_trip(rows):
    comparison = compare(rows(20), rows(80), before_label="base", after_label="R1-Zero")
    assert Comparison.from_json(comparison.to_bytes()) == comparison


_TEXT = st.text("ab<>&\"'\\\n\t\x00\x1b\u2028\u202e\ufffd个é🍎", max_size=20)


@given(
    completion=_TEXT,
    correct=st.none() | st.booleans(),
    facts=st.tuples(
        st.dictionaries(st.sampled_from(["accuracy", "format"]), st.none() | st.floats(-2, 2)),
        st.dictionaries(_TEXT, st.none() | st.booleans() | st.integers(-9, 9) | _TEXT, max_size=3),
    ),
)
def test_any_row_survives_the_round_trip(row, completion, correct, facts):
    written = row(completion=completion, correct=correct, reward_parts=facts[0], tags=facts[1])
    assert load_case_rows(dump_case_rows([written])) == [written]


def test_rows_are_written_in_one_order(rows):
    written = dump_case_rows(rows(50))
    assert dump_case_rows(reversed(rows(50))) == written
    assert {r.model_dump_json() for r in load_case_rows(written)} == {r.model_dump_json() for r in rows(50)}


def test_a_record_of_a_later_version_says_so(report):
    with pytest.raises(DataError, match="schema 2, newer than 1") as caught:
        EvaluationReport.from_json({**report.to_json(), "schema": 2})
    assert "newer posttrain" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not a"),
        (b"[]", "not a"),
        (b"{}", "not a"),
        (b'{"schema":1,"kind":"comparison"}', "expected a"),
        (b'{"schema":1,"kind":"evaluation_report","model":"x"}', "sha256"),
    ],
)
def test_what_is_not_a_report_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        EvaluationReport.from_json(data)


def test_unknown_keys_and_numbers_that_are_none_are_refused(report, row):
    with pytest.raises(DataError, match="surprise"):
        EvaluationReport.from_json({**report.to_json(), "surprise": 1})
    with pytest.raises(ValidationError):
        row(reward_parts={"accuracy": float("nan")})


def test_a_bad_line_is_named(rows):
    lines = dump_case_rows(rows(50)).splitlines()
    lines[3] = lines[3].replace(b'"mode":"greedy"', b'"mode":"eager"')
    with pytest.raises(DataError, match="line 4"):
        load_case_rows(b"\n".join(lines))


def test_greedy_decoding_has_one_sample(row):
    with pytest.raises(ValidationError, match="sample_index"):
        row(mode="greedy", sample_index=1)


def test_records_cannot_be_changed(report, row):
    with pytest.raises(ValidationError):
        report.cases = 3
    with pytest.raises(ValidationError):
        row().correct = False


def test_an_unknown_measure_names_the_nearest_one(report):
    with pytest.raises(UnknownReferenceError) as caught:
        report.measure("sampled.sucess@1")
    assert "sampled.success@1" in (caught.value.hint or "")
    assert report.has("greedy.success@1") and not report.has("greedy.pass@2")
