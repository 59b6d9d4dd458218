"""Rows grouped by mode and case, and the one value a row that each measure takes. Private to the room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, get_args

from posttrain.core.errors import DataError
from posttrain.evaluation.heldout.records import CaseRow, Mode

RatePick: TypeAlias = Callable[[CaseRow], bool | None]
"""Whether a row has a property; None leaves the row out of the rate."""
CountPick: TypeAlias = Callable[[CaseRow], int]
Cases: TypeAlias = Mapping[str, Sequence[CaseRow]]
"""Case id to its samples, sorted."""

MODES: tuple[Mode, ...] = get_args(Mode)

RATES: Mapping[str, RatePick] = {
    "success@1": lambda row: row.correct,
    "accuracy_any_format": lambda row: row.correct_anywhere,
    "format_rate": lambda row: row.format_ok,
    "language_mixing": lambda row: row.mixed_language,
    "truncated_rate": lambda row: row.truncated,
    "none_rate": lambda row: row.correct is None,
}
COUNTS: Mapping[str, CountPick] = {
    "reasoning_tokens": lambda row: row.think_tokens,
    "completion_tokens": lambda row: row.completion_tokens,
}


def group(rows: Iterable[CaseRow]) -> dict[Mode, dict[str, list[CaseRow]]]:
    """Mode to case id to its samples, everything sorted; modes without rows are absent."""
    ordered = sorted(rows, key=lambda row: (row.mode, row.case_id, row.sample_index))
    if not ordered:
        raise DataError(
            "there are no completions to measure", hint="check that the held-out set has problems"
        )
    modes: dict[Mode, dict[str, list[CaseRow]]] = {}
    for row in ordered:
        samples = modes.setdefault(row.mode, {}).setdefault(row.case_id, [])
        if samples and samples[-1].sample_index == row.sample_index:
            raise DataError(f"case {row.case_id!r} has {row.mode} sample {row.sample_index} twice")
        if samples and _problem(samples) != _problem([row]):
            raise DataError(f"case {row.case_id!r} stands for two problems", hint="make the case ids unique")
        samples.append(row)
    return modes


def check_same_cases(mode: Mode, first: Cases, second: Cases) -> None:
    """Raise DataError unless both sides hold the same problems under the same ids."""
    odd = sorted(first.keys() ^ second.keys())
    if odd:
        raise DataError(
            f"{len(odd)} {mode} cases are in only one of the two evaluations, {odd[0]!r} among them",
            hint="evaluate both models on the same suite",
        )
    for case_id, samples in first.items():
        if _problem(samples) != _problem(second[case_id]):
            raise DataError(f"case {case_id!r} is not the same problem in both evaluations")


def scored(cases: Cases, pick: RatePick) -> dict[str, list[bool]]:
    """Case id to the values that are not None; cases without any are absent."""
    values = {c: [v for row in samples if (v := pick(row)) is not None] for c, samples in cases.items()}
    return {case_id: kept for case_id, kept in values.items() if kept}


def outcome(row: CaseRow) -> str:
    """The row's error kind, else ``correct``, ``other`` (wrong, unexplained) or ``unscored``."""
    if row.error_kind is not None:
        return row.error_kind
    return {True: "correct", False: "other", None: "unscored"}[row.correct]


def mean(values: Sequence[float]) -> float:
    """The plain mean of a non-empty list of counts or flags."""
    return sum(values) / len(values)


def _problem(samples: Sequence[CaseRow]) -> tuple[str, str]:
    return samples[0].question, samples[0].reference
