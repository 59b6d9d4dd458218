"""The report artifact of a suite: exact round trips, one clear message for anything that is not one, speed."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.core.errors import DataError
from posttrain.evaluation.outcomes import (
    HEADER_FILE,
    OUTCOMES_FILE,
    Arm,
    Column,
    Evaluated,
    OutcomeRow,
    column_name,
    make_outcomes,
    read_header,
    read_outcomes,
    write_outcomes,
)

GOLDEN = Path(__file__).parent / "golden"
EVALUATED = Evaluated(
    suite="sha256:" + "5" * 64,
    model="tiny",
    lane="live-frozen",
    columns=(
        Column(name="format_pass(tag='<answer>')", type="bool", meaning="Whether the tag is there once."),
        Column(name="steps", type="int64", meaning="Rounds of tool calls."),
        Column(name="latency_ms", type="float64", meaning="Wall clock of the answer, milliseconds."),
    ),
    sampling={"temperature": 0, "samples_per_case": 2, "seed": 7},
)
ROWS = [
    OutcomeRow("b", "math_basic", 1, False, None, {"steps": 2, "latency_ms": 12.5}),
    OutcomeRow("b", "math_basic", 0, True, None, {"steps": 1, "format_pass(tag='<answer>')": True}),
    OutcomeRow("ä", "tools", 0, None, "engine timed out after 30 s"),
    OutcomeRow("a", "tools", 0, True, None, {"latency_ms": 7, "format_pass(tag='<answer>')": False}),
]


def damage(folder: Path, change) -> None:
    """Write the table again after ``change``, with the header as it was."""
    pq.write_table(change(pq.read_table(folder / OUTCOMES_FILE)), folder / OUTCOMES_FILE)


@pytest.fixture
def folder(tmp_path):
    write_outcomes(tmp_path, make_outcomes(EVALUATED, ROWS))
    return tmp_path


def test_rows_come_back_sorted_with_their_nulls(folder):
    found = read_outcomes(folder)
    assert found.case_ids == ("a", "b", "ä") and found.slices == ("math_basic", "tools")
    assert found.case.tolist() == [0, 1, 1, 2] and found.sample.tolist() == [0, 0, 1, 0]
    assert found.slice_of_case.tolist() == [1, 0, 1]
    assert found.success.values.tolist() == [True, True, False, False]
    assert found.success.present.tolist() == [True, True, True, False]
    assert found.errors == {3: "engine timed out after 30 s"}
    assert found.metrics["latency_ms"].values.tolist() == [7.0, 0.0, 12.5, 0.0]
    assert found.metrics["latency_ms"].present.tolist() == [True, False, True, False]
    assert found.metrics["steps"].values.dtype == np.int64
    assert found.header == read_header(folder)
    assert (found.header.rows, found.header.cases, found.header.unscored) == (4, 3, 1)
    assert found.header.slices == {"math_basic": 1, "tools": 2}


def test_the_same_rows_give_the_same_bytes_in_any_order(folder, tmp_path):
    other = tmp_path / "other"
    write_outcomes(other, make_outcomes(EVALUATED, reversed(ROWS)))
    for name in (OUTCOMES_FILE, HEADER_FILE):
        assert (other / name).read_bytes() == (folder / name).read_bytes()


def test_every_version_ever_written_is_read_and_its_header_written_back_to_the_byte():
    found = read_outcomes(GOLDEN / "outcomes_v1")
    assert found.header.to_bytes() + b"\n" == (GOLDEN / "outcomes_v1" / HEADER_FILE).read_bytes()
    assert found.header == make_outcomes(EVALUATED, ROWS).header
    assert found.content == "sha256:76f6ba3fd46dc198ee7396e552f1739ac262ab4e534ee5390a59631590e7e536"


_ROW = st.builds(
    OutcomeRow,
    case_id=st.text("abcé🍎'\n", min_size=1, max_size=3),
    slice=st.just("only"),
    sample=st.integers(0, 3),
    success=st.booleans(),
    error=st.none(),
    metrics=st.fixed_dictionaries(
        {}, optional={"steps": st.integers(-(2**63), 2**63 - 1), "latency_ms": st.floats(0, 1e300)}
    ),
)


@settings(deadline=None)
@given(st.lists(_ROW, min_size=1, max_size=12, unique_by=lambda row: (row.case_id, row.sample)))
def test_any_rows_survive_the_round_trip(tmp_path_factory, rows):
    made = make_outcomes(EVALUATED, rows)
    folder = tmp_path_factory.mktemp("outcomes")
    write_outcomes(folder, made)
    found = read_outcomes(folder)
    assert found.header == made.header
    assert found.case_ids == made.case_ids
    for name, series in made.metrics.items():
        assert np.array_equal(series.values, found.metrics[name].values)
        assert np.array_equal(series.present, found.metrics[name].present)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (OutcomeRow("b", "math_basic", 0, False), "case 'b', sample 0 is there twice"),
        (OutcomeRow("b", "tools", 2, False), "case 'b' is in two slices, 'math_basic' and 'tools'"),
        (OutcomeRow("c", "tools", -1, False), "negative sample"),
        (OutcomeRow("", "tools", 0, False), "empty case_id"),
        (OutcomeRow("c", "tools", 0, None), "case 'c' has no success and no error"),
        (OutcomeRow("c", "tools", 0, False, "timeout"), "both a success and an error"),
        (OutcomeRow("c", "tools", 0, True, None, {"latency_ms": float("nan")}), "'latency_ms' holds NaN"),
        (OutcomeRow("c", "tools", 0, True, None, {"latency_ms": float("inf")}), "'latency_ms' holds NaN"),
        (OutcomeRow("c", "tools", 0, True, None, {"latency": 3.0}), "'latency', which the header does not"),
        (OutcomeRow("c", "tools", 0, True, None, {"steps": 1.5}), "steps is 1.5, and its column holds int64"),
        (OutcomeRow("c", "tools", 0, True, None, {"steps": True}), "steps is True"),
        (OutcomeRow("c", "tools", 0, True, None, {"steps": 2**70}), "does not fit"),
        (OutcomeRow("c\ud800", "tools", 0, True), "not Unicode"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        make_outcomes(EVALUATED, [*ROWS, row])


def test_no_rows_are_no_report():
    with pytest.raises(DataError, match="no rows"):
        make_outcomes(EVALUATED, [])


def test_traffic_is_not_graded():
    canary = EVALUATED.model_copy(
        update={"lane": "canary", "arms": (Arm(name="candidate", weight=1, units=1),)}
    )
    assert make_outcomes(canary, [OutcomeRow("r1", "traffic", 0, None)]).header.unscored == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(0, 0), "no rows"),
        (lambda t: t.slice(0, 3), "not those that report.json describes"),
        (lambda t: t.drop_columns(["steps"]), "disagree about the column 'steps'"),
        (lambda t: t.append_column("more", t["steps"]), "disagree about the column 'more'"),
        (lambda t: pa.concat_tables([t, t]), "not in order|twice"),
        (lambda t: pa.concat_tables([t.slice(0, 1), t]), "case 'a', sample 0 is there twice"),
        (lambda t: t.take([1, 0, 2, 3]), "not in order"),
        (lambda t: t.set_column(3, "success", pa.array([1, 1, 0, None])), "'success' holds int64"),
        (lambda t: t.set_column(7, "latency_ms", pa.array([float("nan")] * 4)), "holds NaN"),
        (lambda t: t.set_column(6, "steps", pa.array([1, 1, 2, None])), "not those"),
        (lambda t: t.set_column(0, "case_id", pa.array(["a", "b", "b", None])), "no case_id"),
        (lambda t: t.set_column(2, "sample", pa.array([0, 0, 1, None], pa.int64())), "no sample number"),
    ],
)
def test_a_changed_table_is_refused(folder, change, message):
    damage(folder, change)
    with pytest.raises(DataError, match=message):
        read_outcomes(folder)


def test_what_is_no_report_is_refused(folder, tmp_path):
    header = json.loads((folder / HEADER_FILE).read_bytes())
    (folder / HEADER_FILE).write_text(json.dumps({**header, "schema": 9}))
    with pytest.raises(DataError, match="schema 9, newer"):
        read_outcomes(folder)
    (folder / HEADER_FILE).write_text(json.dumps({**header, "kind": "comparison"}))
    with pytest.raises(DataError, match="expected a outcomes"):
        read_outcomes(folder)
    shutil.copy(folder / HEADER_FILE, folder / OUTCOMES_FILE)
    (folder / HEADER_FILE).write_text(json.dumps(header))
    with pytest.raises(DataError, match="no Parquet"):
        read_outcomes(folder)
    (folder / OUTCOMES_FILE).unlink()
    with pytest.raises(DataError, match=r"outcomes\.parquet cannot be read"):
        read_outcomes(folder)
    with pytest.raises(DataError, match="no report of a suite"):
        read_outcomes(tmp_path / "nowhere")


def test_columns_have_one_name_each():
    with pytest.raises(ValidationError, match="declared twice"):
        Evaluated(
            suite=EVALUATED.suite,
            model="m",
            lane="replay",
            columns=(*EVALUATED.columns, EVALUATED.columns[0]),
        )
    with pytest.raises(ValidationError, match="every report has"):
        Column(name="success", type="bool", meaning="")
    assert column_name("latency_ms") == "latency_ms"
    assert column_name("api_version_match", ["3.2.1"]) == "api_version_match('3.2.1')"
    assert column_name("format_pass", options={"tag": "<answer>"}) == "format_pass(tag='<answer>')"
    assert column_name("m", ["it's \\"], {"b": "2", "a": "1"}) == r"m('it\'s \\', a='1', b='2')"


def test_a_hundred_thousand_rows_are_read_within_a_second(tmp_path):
    generator = random.Random(3)
    rows = [
        OutcomeRow(
            f"slice-{i % 20}/case-{i // 4:06d}",
            f"s{i // 4 % 20}",
            i % 4,
            generator.random() < 0.8,
            None,
            {"steps": i % 7, "latency_ms": generator.expovariate(0.002)},
        )
        for i in range(100_000)
    ]
    write_outcomes(tmp_path, make_outcomes(EVALUATED, rows))
    seconds = []
    for _ in range(3):
        started = time.process_time()
        read_outcomes(tmp_path)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 1
