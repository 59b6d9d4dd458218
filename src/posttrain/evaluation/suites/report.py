"""From the rows of a suite evaluation to its report artifact, and back.

Here: the columns that every suite report has, the header, the files. Not here: playing (``suite_runner``), what the
report says (``suite_summary``), the format of the columns (``outcomes``).

    outcomes.parquet, report.json   the columns: what a gate reads
    answers.jsonl                   a line a row: answer, tool calls, what each grader found; the frozen half
    report.txt                      the summary as a person reads it

``answers.jsonl`` holds nothing that a clock measured: two evaluations of the same deterministic model on the same suite
have the same bytes there, and its digest is what ``--prove`` compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import DataError
from posttrain.environments.suites.suite import Suite
from posttrain.evaluation.heldout.records import Scalar
from posttrain.evaluation.outcomes import (
    Column,
    Evaluated,
    Lane,
    Outcomes,
    make_outcomes,
    read_outcomes,
)
from posttrain.evaluation.suites.rows import LINES_FILE, SuiteRow, dump_lines, load_lines

REPORT_TEXT = "report.txt"

COMMON_COLUMNS = (
    Column(name="tokens", type="int64", meaning="Tokens of prompts and replies over all turns."),
    Column(name="turns", type="int64", meaning="Times the model was asked: 1 plus the rounds of tool calls."),
    Column(name="tool_misses", type="int64", meaning="Tool calls that the frozen world had no reply to."),
)
"""Columns of every suite report, whatever the graders."""
LATENCY = "latency_ms"
LIVE_COLUMNS = (
    Column(name=LATENCY, type="float64", meaning="Time that the model took for all its turns, milliseconds."),
    Column(name="cost_usd", type="float64", meaning="Price of the tokens, US dollars."),
)
"""Columns that only a live lane has: no latency and no cost ever comes out of a recording."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who was evaluated, and how."""

    model: str
    """Digest of an artifact or a folder, or the name of an endpoint's model or a policy."""
    lane: Lane
    samples: int
    facts: Mapping[str, Scalar]
    """For the reader: device, batch size, how the network was closed."""


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """A report, read."""

    outcomes: Outcomes
    rows: Sequence[SuiteRow]
    """By slice, case and sample."""

    @property
    def frozen_digest(self) -> str:
        """``sha256:`` of every row's frozen half."""
        return digest_bytes(dump_lines(self.rows))


def with_common_metrics(row: SuiteRow) -> SuiteRow:
    """The row with the values of ``COMMON_COLUMNS``."""
    answer = row.played.answer
    if answer is None:
        return row
    found: dict[str, int] = {"turns": answer.turns, "tool_misses": len(row.played.misses)}
    if answer.prompt_tokens is not None and answer.completion_tokens is not None:
        found["tokens"] = answer.prompt_tokens + answer.completion_tokens
    return replace(row, graded=replace(row.graded, metrics={**row.graded.metrics, **found}))


def without_latency(row: SuiteRow) -> SuiteRow:
    """The row without what a clock measured."""
    return replace(row, live={name: value for name, value in row.live.items() if name != LATENCY})


def make_report(
    suite: Suite, subject: Subject, rows: Iterable[SuiteRow], grader_columns: Iterable[Column]
) -> SuiteReport:
    """The report of ``rows``. Columns that no row has a value for are left out."""
    complete = sorted(map(with_common_metrics, rows), key=lambda row: row.place)
    if subject.lane == "replay":
        complete = [replace(row, live={}) for row in complete]
    used = {name for row in complete for name in (*row.graded.metrics, *row.live)}
    columns = [c for c in (*COMMON_COLUMNS, *unite_columns(grader_columns), *LIVE_COLUMNS) if c.name in used]
    decoding = suite.settings.decoding
    evaluated = Evaluated(
        suite=suite.identity.root,
        model=subject.model,
        lane=subject.lane,
        columns=tuple(columns),
        sampling={
            **decoding.model_dump(mode="json"),
            "samples_per_case": subject.samples,
            "seed": suite.settings.seed,
            "max_turns": suite.settings.max_turns,
        },
        facts={"suite": suite.settings.name, "suite_scheme": suite.identity.scheme, **subject.facts},
    )
    return SuiteReport(make_outcomes(evaluated, [row.outcome for row in complete]), complete)


def unite_columns(columns: Iterable[Column]) -> list[Column]:
    """Each column once, by name. Raises DataError where two graders mean different things by one name."""
    found: dict[str, Column] = {}
    for column in columns:
        if found.setdefault(column.name, column).type != column.type:
            raise DataError(f"two graders give the column {column.name!r} different types")
    return [found[name] for name in sorted(found)]


def read_report(folder: Path) -> SuiteReport:
    """The report in ``folder``, checked. Raises DataError."""
    outcomes = read_outcomes(folder)
    try:
        rows = load_lines((folder / LINES_FILE).read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{folder} is the report of no suite: {LINES_FILE} is missing",
            hint="make one with `posttrain evaluate`",
        ) from None
    return SuiteReport(outcomes, rows)


def check_suite(suite: str, baseline: Outcomes) -> None:
    """Raise DataError unless ``baseline`` was measured on the suite of identity ``suite``.

    That is every byte of it, and the code that graded.
    """
    other = baseline.evaluated.suite
    if suite != other:
        raise DataError(
            f"the baseline was measured on another suite ({other}, not {suite})",
            hint="evaluate the baseline's model on this suite; `posttrain suite diff` says in what two differ",
        )
