"""One answer to one case of a suite: what was played, what graders said, and its line in journal and report.

Here: the records and their JSON lines. Not here: columns for statistics (``outcomes``), playing (``conversation``),
grading (``graders``). A line holds what is frozen: the same model on the same suite gives the same bytes. What only a
live lane can measure (``LIVE_METRICS``) stands in the outcomes' columns and never in a line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.core.errors import DataError
from posttrain.engines.conversation import Played
from posttrain.environments.records import Answer, ToolCall
from posttrain.environments.tools import ToolMiss
from posttrain.evaluation.outcomes import OutcomeRow, Value

LINES_FILE = "answers.jsonl"
"""In a report artifact: one line a row, by slice, case and sample."""
LINE_SCHEMA = 1
"""Version of a line; a change that an old reader would misread gets a new number and a golden file."""


@dataclass(frozen=True, slots=True)
class Graded:
    """What the graders of a slice said of one answer."""

    success: bool | None
    """The slice's pass rule; None where it could not be told."""
    error: str | None = None
    """Why it could not."""
    metrics: Mapping[str, Value] = field(default_factory=dict)
    """Column of the report to value."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Grader to what it found, for the reader."""


@dataclass(frozen=True, slots=True)
class SuiteRow:
    """One row of a suite evaluation."""

    played: Played
    graded: Graded
    live: Mapping[str, Value] = field(default_factory=dict)
    """Metrics that only this very run has: latency and cost."""

    @property
    def place(self) -> tuple[str, str, int]:
        """Slice, case and sample: the order of every list of rows."""
        return (self.played.slice, self.played.case, self.played.sample)

    @property
    def outcome(self) -> OutcomeRow:
        """The row for the report's columns."""
        p, g = self.played, self.graded
        return OutcomeRow(p.case, p.slice, p.sample, g.success, g.error, {**g.metrics, **self.live})

    def to_json(self) -> dict[str, Any]:
        """The frozen half of the row."""
        p, g = self.played, self.graded
        return {
            "schema": LINE_SCHEMA,
            "case": p.case,
            "slice": p.slice,
            "sample": p.sample,
            "success": g.success,
            "error": g.error,
            "metrics": dict(g.metrics),
            "graders": dict(g.details),
            "answer": None if p.answer is None else answer_json(p.answer),
            "misses": [dataclasses.asdict(miss) for miss in p.misses],
        }

    def line(self) -> bytes:
        """:meth:`to_json` as one line: the same row gives the same bytes."""
        return _line(self.to_json())

    def journal_json(self) -> dict[str, Any]:
        """Everything, for the journal of an unfinished evaluation."""
        return {**self.to_json(), "live": dict(self.live), "seconds": self.played.seconds}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SuiteRow:
        """The inverse of :meth:`to_json` and :meth:`journal_json`. Raises DataError."""
        try:
            if data["schema"] != LINE_SCHEMA:
                raise DataError(
                    f"a row of schema {data['schema']}; this posttrain knows {LINE_SCHEMA}",
                    hint="read it with the posttrain that wrote it",
                )
            answer = data["answer"]
            played = Played(
                data["case"],
                data["slice"],
                data["sample"],
                None if answer is None else answer_from(answer),
                data["error"] if answer is None else None,
                tuple(ToolMiss(**miss) for miss in data["misses"]),
                data.get("seconds"),
            )
            graded = Graded(data["success"], data["error"], data["metrics"], data["graders"])
            return cls(played, graded, data.get("live", {}))
        except (KeyError, TypeError) as error:
            raise DataError(f"not a row of a suite evaluation: {error!r}") from error


def answer_json(answer: Answer) -> dict[str, Any]:
    """An answer as JSON; :func:`answer_from` is the inverse."""
    # By hand: dataclasses.asdict takes longer than a whole instant turn.
    return {
        "text": answer.text,
        "tool_calls": [
            {"name": call.name, "arguments": call.arguments, "raw": call.raw, "reply": call.reply}
            for call in answer.tool_calls
        ],
        "turns": answer.turns,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "finish": answer.finish,
    }


def answer_from(data: Mapping[str, Any]) -> Answer:
    """Raises KeyError or TypeError for what is no answer."""
    calls = tuple(ToolCall(**call) for call in data["tool_calls"])
    return Answer(**{**data, "tool_calls": calls})


def dump_lines(rows: Iterable[SuiteRow]) -> bytes:
    """Every row's line, by slice, case and sample: the same outcomes give the same bytes, whatever the order was."""
    return b"".join(row.line() for row in sorted(rows, key=lambda row: row.place))


def load_lines(data: bytes) -> list[SuiteRow]:
    """The inverse of :func:`dump_lines`. Raises DataError that names the line."""
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            rows.append(SuiteRow.from_json(json.loads(line)))
        except DataError as error:
            raise DataError(f"{LINES_FILE}, line {number}: {error.message}", hint=error.hint) from error
        except (ValueError, AttributeError) as error:
            raise DataError(f"{LINES_FILE}, line {number}: {error}") from error
    return rows


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
