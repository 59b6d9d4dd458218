"""The outcomes of one evaluation of a suite: a row for each case and sample, in columns, and a header.

Here: the record, making it from rows, writing it to a folder or an artifact, reading it back checked. Not here: running
a suite (``runner``), what the columns say about a model (``promotion``). A folder holds ``outcomes.parquet`` and,
written last, ``report.json``: the header as canonical JSON. The header's ``content`` is a digest of the values, not of
the Parquet bytes, so two runs with the same outcomes have the same header whatever wrote them.

Columns: ``case_id``, ``slice``, ``sample``, ``success`` (null where the sample could not be scored), ``error`` (why it
could not), and the metrics that the header declares. A metric's column has the metric's plain name, ``latency_ms``; a
part is written with a dot, ``tool_call_correctness.schema``; where a metric takes arguments the column has the
canonical form, ``api_version_match('3.2.1')``, ``format_pass(tag='<answer>')`` (:func:`column_name`).

How to add a field: to the header with a default, and a golden folder beside the old ones in
``tests/evaluation/golden``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from posttrain.core.atomic import write_atomic
from posttrain.core.canonical import digest_bytes
from posttrain.core.documents import Digest, Document, Record
from posttrain.core.errors import DataError
from posttrain.core.suggest import did_you_mean
from posttrain.evaluation.heldout.records import Scalar

if TYPE_CHECKING:
    import pyarrow as pa

OUTCOMES_FILE = "outcomes.parquet"
HEADER_FILE = "report.json"

Lane: TypeAlias = Literal["replay", "live-frozen", "canary"]
"""``replay``: recorded answers; ``live-frozen``: the model runs, all else is frozen; ``canary``: production traffic."""
ColumnType: TypeAlias = Literal["bool", "int64", "float64"]
Value: TypeAlias = bool | int | float | None

_FIXED = ("case_id", "slice", "sample", "success", "error")
_DTYPES: Mapping[str, Any] = {"bool": np.bool_, "int64": np.int64, "float64": np.float64}
_HINT = "make the report again: `posttrain evaluate`"


class Column(Record):
    """One metric column."""

    name: str = Field(min_length=1)
    """The metric's name, arguments included (:func:`column_name`)."""
    type: ColumnType
    meaning: str
    """One sentence: what is true, counted or measured, and its unit."""

    @model_validator(mode="after")
    def _not_fixed(self) -> Column:
        if self.name in _FIXED:
            raise ValueError(f"{self.name!r} is a column that every report has; name the metric otherwise")
        return self


class Arm(Record):
    """One arm of an experiment and how many units came to it, for the check that the split was kept."""

    name: str
    weight: int = Field(gt=0)
    """Intended share, relative to the other arms: 50 and 50, or 1 and 99."""
    units: int = Field(ge=0)
    """Units (users, sessions, requests) that the arm got."""


class Evaluated(Record):
    """What was evaluated, and how: everything about a report that its rows do not say."""

    suite: Digest
    """Identity of the frozen suite; two reports may be compared only where it is equal."""
    model: str = Field(min_length=1)
    """Digest of the model artifact, or the name of an endpoint's model."""
    lane: Lane
    columns: tuple[Column, ...] = ()
    """The metric columns."""
    sampling: Mapping[str, Scalar] = Field(default_factory=dict)
    """Decoding settings and seeds: ``temperature``, ``samples_per_case``, ``seed``…"""
    facts: Mapping[str, Scalar] = Field(default_factory=dict)
    """Anything else that decides the result, for the reader: grader versions, machine, window."""
    arms: tuple[Arm, ...] = ()
    """Of a canary: how traffic was split."""

    @model_validator(mode="after")
    def _names_once(self) -> Evaluated:
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is declared twice")
        return self


class OutcomesHeader(Document):
    """``report.json``: what was evaluated, how much of it, and the digest of every value."""

    record_kind: ClassVar[str] = "outcomes"

    evaluated: Evaluated
    rows: int = Field(ge=1)
    cases: int = Field(ge=1)
    unscored: int = Field(ge=0)
    """Rows without a success."""
    slices: Mapping[str, int]
    """Slice to its number of cases."""
    content: Digest
    """Digest of the rows' values in order of case and sample (:meth:`Outcomes.content`)."""


class OutcomeRow(NamedTuple):
    """One sample of one case, as a runner hands it over."""

    case_id: str
    slice: str
    sample: int
    """0-based number within the case."""
    success: bool | None
    """Whether the slice's rule passed; None where it could not be told."""
    error: str | None = None
    """Why it could not: given exactly where ``success`` is None (in the canary lane it may be left out)."""
    metrics: Mapping[str, Value] = {}
    """Column to value; a column that is left out is null."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One nullable column."""

    values: NDArray[Any]
    """bool, int64 or float64; zero where absent."""
    present: NDArray[np.bool_]
    """Where there is a value."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Every outcome of one evaluation, in columns, sorted by case and sample. Made by :func:`make_outcomes` or read."""

    evaluated: Evaluated
    case_ids: tuple[str, ...]
    """Distinct cases, sorted."""
    slices: tuple[str, ...]
    """Distinct slices, sorted."""
    slice_of_case: NDArray[np.int64]
    """Index into ``slices`` for each of ``case_ids``."""
    case: NDArray[np.int64]
    """Index into ``case_ids`` for each row."""
    sample: NDArray[np.int64]
    success: Series
    errors: Mapping[int, str] = field(default_factory=dict)
    """Row to reason, for rows that have one."""
    metrics: Mapping[str, Series] = field(default_factory=dict)
    """Column to values, in the order in which the header declares them."""

    def __len__(self) -> int:
        return len(self.case)

    @cached_property
    def header(self) -> OutcomesHeader:
        """The header of these rows."""
        counts = np.bincount(self.slice_of_case, minlength=len(self.slices))
        return OutcomesHeader(
            evaluated=self.evaluated,
            rows=len(self),
            cases=len(self.case_ids),
            unscored=int(len(self) - np.count_nonzero(self.success.present)),
            slices=dict(zip(self.slices, counts.tolist(), strict=True)),
            content=self.content,
        )

    @cached_property
    def cases_digest(self) -> str:
        """``sha256:`` of the case ids with their slices: what two reports must share to be compared case by case."""
        texts = json.dumps([self.case_ids, self.slices], ensure_ascii=False, separators=(",", ":")).encode()
        return digest_bytes(texts + self.slice_of_case.astype("<i8").tobytes())

    @cached_property
    def content(self) -> str:
        """``sha256:`` of every value: names as JSON, numbers little-endian, absent values as zero beside a mask."""
        hasher = hashlib.sha256()
        texts = [list(self.case_ids), list(self.slices), sorted(self.errors.items()), list(self.metrics)]
        hasher.update(json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode())
        for indices in (self.slice_of_case, self.case, self.sample):
            hasher.update(indices.astype("<i8").tobytes())
        for series in (self.success, *self.metrics.values()):
            little = series.values.astype(series.values.dtype.newbyteorder("<"), copy=False)
            hasher.update(little.dtype.str.encode() + little.tobytes() + series.present.tobytes())
        return "sha256:" + hasher.hexdigest()


def column_name(metric: str, arguments: Sequence[str] = (), options: Mapping[str, str] | None = None) -> str:
    """The canonical column of a metric with arguments: ``api_version_match('3.2.1')``.

    Texts are quoted with ``'``; a quote or a backslash in one gets a backslash before it.
    """

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    inside = [quoted(text) for text in arguments]
    inside += [f"{name}={quoted(text)}" for name, text in sorted((options or {}).items())]
    return f"{metric}({', '.join(inside)})" if inside else metric


def make_outcomes(evaluated: Evaluated, rows: Iterable[OutcomeRow]) -> Outcomes:
    """Outcomes of ``rows``, given in any order. Raises DataError that names the case of the first bad row."""
    ordered = sorted(rows, key=lambda row: (row.case_id, row.sample))
    types = {column.name: column.type for column in evaluated.columns}
    unknown = next(((row, name) for row in ordered for name in row.metrics if name not in types), None)
    if unknown is not None:
        raise DataError(
            f"case {unknown[0].case_id!r} has a value for {unknown[1]!r}, which the header does not declare",
            hint=did_you_mean(unknown[1], types),
        )
    ids = [row.case_id for row in ordered]
    return _assemble(
        evaluated,
        ids=ids,
        slices=[row.slice for row in ordered],
        samples=np.array([row.sample for row in ordered], dtype=np.int64),
        success=_series("success", "bool", [row.success for row in ordered], ids),
        errors={index: row.error for index, row in enumerate(ordered) if row.error is not None},
        metrics={
            name: _series(name, kind, [row.metrics.get(name) for row in ordered], ids)
            for name, kind in types.items()
        },
    )


def write_outcomes(directory: Path, outcomes: Outcomes) -> OutcomesHeader:
    """Write the two files into ``directory`` (an artifact writer's, or any folder), the header last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = range(len(outcomes))
    columns: dict[str, Any] = {
        "case_id": pa.array(outcomes.case_ids, pa.string()).take(pa.array(outcomes.case)),
        "slice": pa.array(outcomes.slices, pa.string()).take(pa.array(outcomes.slice_of_case[outcomes.case])),
        "sample": pa.array(outcomes.sample),
        "success": _arrow(outcomes.success),
        "error": pa.array([outcomes.errors.get(row) for row in rows], pa.string()),
    }
    columns |= {name: _arrow(series) for name, series in outcomes.metrics.items()}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", store_schema=False)
    write_atomic(directory / OUTCOMES_FILE, sink.getvalue().to_pybytes())
    write_atomic(directory / HEADER_FILE, outcomes.header.to_bytes() + b"\n")
    return outcomes.header


def read_outcomes(directory: Path) -> Outcomes:
    """Read and check what :func:`write_outcomes` wrote.

    Raises DataError for anything else: a missing file, an unknown schema, a column that is missing, undeclared or of
    another type, no rows, a (case, sample) twice, NaN or an infinity, and values that do not match the header.
    """
    header = read_header(directory)
    table = _read_table(directory / OUTCOMES_FILE)
    evaluated = header.evaluated
    types = {"sample": "int64", "success": "bool"} | {c.name: c.type for c in evaluated.columns}
    expected = [*_FIXED, *(column.name for column in evaluated.columns)]
    if sorted(table.column_names) != sorted(expected):
        wrong = sorted(set(table.column_names) ^ set(expected)) or ["?"]
        raise DataError(
            f"{OUTCOMES_FILE} and {HEADER_FILE} disagree about the column {wrong[0]!r}", hint=_HINT
        )
    for name in ("case_id", "slice"):
        if table.column(name).null_count:
            raise DataError(f"a row of {OUTCOMES_FILE} has no {name}", hint=_HINT)
    series = {name: _from_arrow(table.column(name), name, kind) for name, kind in types.items()}
    if not series["sample"].present.all():
        raise DataError(f"a row of {OUTCOMES_FILE} has no sample number", hint=_HINT)
    errors = table.column("error").to_pylist()
    outcomes = _assemble(
        evaluated,
        ids=table.column("case_id").to_pylist(),
        slices=table.column("slice").to_pylist(),
        samples=series["sample"].values,
        success=series["success"],
        errors={row: text for row, text in enumerate(errors) if text is not None},
        metrics={column.name: series[column.name] for column in evaluated.columns},
    )
    if outcomes.header != header:
        raise DataError(
            f"the rows of {directory / OUTCOMES_FILE} are not those that {HEADER_FILE} describes",
            hint=f"one of the two was changed or replaced; {_HINT}",
        )
    return outcomes


def read_header(directory: Path) -> OutcomesHeader:
    """The header alone. Raises DataError."""
    try:
        return OutcomesHeader.from_json((directory / HEADER_FILE).read_bytes())
    except OSError as error:
        raise DataError(
            f"{directory} is no report of a suite: {HEADER_FILE}: {error.strerror}", hint=_HINT
        ) from error


def _assemble(
    evaluated: Evaluated,
    *,
    ids: Sequence[str],
    slices: Sequence[str],
    samples: NDArray[np.int64],
    success: Series,
    errors: Mapping[int, str],
    metrics: Mapping[str, Series],
) -> Outcomes:
    """Outcomes of columns that are in order already; every rule of the record is checked here."""
    if not ids:
        raise DataError("the report has no rows: there is nothing to measure", hint=_HINT)
    _check_texts(ids, slices, errors)
    fresh = np.fromiter((a != b for a, b in zip(ids[1:], ids, strict=False)), np.bool_, len(ids) - 1)
    case = np.concatenate([np.zeros(1, np.int64), np.cumsum(fresh, dtype=np.int64)])
    starts = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(fresh) + 1])
    _check_order(ids, samples, fresh)
    case_ids = tuple(ids[start] for start in starts)
    known = tuple(sorted(set(slices)))
    position = {name: index for index, name in enumerate(known)}
    slice_of_row = np.fromiter((position[name] for name in slices), np.int64, len(slices))
    slice_of_case = slice_of_row[starts]
    strayed = np.flatnonzero(slice_of_row != slice_of_case[case])
    if len(strayed):
        row = int(strayed[0])
        other = known[int(slice_of_case[case[row]])]
        raise DataError(f"case {ids[row]!r} is in two slices, {other!r} and {slices[row]!r}")
    _check_success(evaluated, ids, success, errors)
    return Outcomes(evaluated, case_ids, known, slice_of_case, case, samples, success, errors, metrics)


def _check_texts(ids: Sequence[str], slices: Sequence[str], errors: Mapping[int, str]) -> None:
    if not all(ids) or not all(slices):
        raise DataError("a row has an empty case_id or slice")
    try:
        "".join((*ids, *set(slices), *errors.values())).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"a case_id, slice or error is not Unicode text: {error.reason}") from error


def _check_order(ids: Sequence[str], samples: NDArray[np.int64], fresh: NDArray[np.bool_]) -> None:
    if samples.min() < 0:
        raise DataError(f"case {ids[int(samples.argmin())]!r} has a negative sample number")
    steps = np.diff(samples)
    twice = np.flatnonzero(~fresh & (steps == 0))
    if len(twice):
        row = int(twice[0])
        raise DataError(f"case {ids[row]!r}, sample {samples[row]} is there twice")
    if np.any(~fresh & (steps < 0)) or any(a > b for a, b in itertools.pairwise(ids)):
        raise DataError(f"the rows of {OUTCOMES_FILE} are not in order of case and sample", hint=_HINT)


def _check_success(
    evaluated: Evaluated, ids: Sequence[str], success: Series, errors: Mapping[int, str]
) -> None:
    scored = next((row for row in errors if success.present[row]), None)
    if scored is not None:
        raise DataError(
            f"case {ids[scored]!r} has both a success and an error ({errors[scored]!r})",
            hint="a sample that could not be scored is neither a success nor a failure: leave success null",
        )
    if evaluated.lane == "canary":  # traffic is not graded: a null there needs no reason
        return
    silent = next((int(row) for row in np.flatnonzero(~success.present) if row not in errors), None)
    if silent is not None:
        raise DataError(f"case {ids[silent]!r} has no success and no error that says why")


def _series(name: str, kind: str, values: Sequence[Value], ids: Sequence[str]) -> Series:
    present = np.fromiter((value is not None for value in values), np.bool_, len(values))
    allowed = {"bool": bool, "int64": int, "float64": int | float}[kind]
    for row, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, allowed) or (kind != "bool" and isinstance(value, bool)):
            raise DataError(f"case {ids[row]!r}: {name} is {value!r}, and its column holds {kind}")
    try:
        filled = np.array([0 if value is None else value for value in values], dtype=_DTYPES[kind])
    except OverflowError as error:
        raise DataError(f"column {name!r} holds a number that does not fit into {kind}") from error
    return _finite(name, Series(filled, present))


def _from_arrow(column: pa.ChunkedArray, name: str, kind: str) -> Series:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64()}[kind]
    if column.type != wanted:
        raise DataError(f"column {name!r} holds {column.type}, and its header says {kind}", hint=_HINT)
    present = pc.is_valid(column).to_numpy(zero_copy_only=False)
    filled = pc.fill_null(column, pa.scalar(0, wanted) if kind != "bool" else False)
    return _finite(name, Series(filled.to_numpy(zero_copy_only=False).astype(_DTYPES[kind]), present))


def _finite(name: str, series: Series) -> Series:
    if series.values.dtype.kind == "f" and not np.isfinite(series.values).all():
        raise DataError(
            f"column {name!r} holds NaN or an infinity",
            hint="a value that could not be measured is null; leave it out",
        )
    return series


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", hint=_HINT) from error
    except pa.ArrowException as error:
        raise DataError(f"{path} is no Parquet file: {error}", hint=_HINT) from error


def _arrow(series: Series) -> pa.Array:
    import pyarrow as pa

    return pa.array(series.values, mask=~series.present)
