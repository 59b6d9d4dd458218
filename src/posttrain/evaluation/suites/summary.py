"""What a suite report says: successes by slice with intervals, metrics, and what changed against a baseline.

Here: the numbers, and their table as text. Not here: verdicts (``promotion``). Success@1 has the exact interval
(Clopper-Pearson) where each case has one sample, and Korn-Graubard's over cases where it has several. The intervals
here are for a reader; a gate computes its own from the columns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from posttrain.core.documents import Record
from posttrain.evaluation.outcomes import Outcomes, Series
from posttrain.evaluation.suites.report import SuiteReport, check_suite
from posttrain.statistics.intervals import clopper_pearson, clustered_proportion

ALL = "all"
"""Name of the line over every case."""
_SHOWN_CASES = 12


class MetricLine(Record):
    """One metric over the rows of a slice that have it."""

    name: str
    statistic: Literal["rate", "mean", "median", "p95"]
    value: float
    rows: int


class SliceLine(Record):
    """One slice of a report."""

    name: str
    cases: int
    rows: int
    unscored: int
    """Rows without a success; in no rate."""
    successes: int
    success_at_1: float | None
    """Mean over cases of the share of successes; None where nothing could be scored."""
    low: float | None
    high: float | None
    metrics: tuple[MetricLine, ...]
    baseline: float | None = None
    """The baseline's success@1."""


class Flip(Record):
    """A case whose share of successes changed."""

    case: str
    slice: str
    before: float
    after: float


class SuiteSummary(Record):
    """A report for a reader."""

    suite: str
    model: str
    lane: str
    frozen_digest: str
    """Digest of the rows' frozen half: equal for equal evaluations."""
    confidence: float
    slices: tuple[SliceLine, ...]
    """By name, then the line over every case."""
    errors: dict[str, int]
    """Kind of reason to rows that could not be scored for it, the most frequent first."""
    example: str | None
    """One reason in full."""
    misses: dict[str, int]
    """Tool call that was never recorded, with the nearest one that was, to how often it was made."""
    baseline: str | None = None
    """The baseline's model."""
    better: tuple[Flip, ...] = ()
    worse: tuple[Flip, ...] = ()


def summarise(
    report: SuiteReport, baseline: SuiteReport | None = None, *, confidence: float = 0.95
) -> SuiteSummary:
    """Raises DataError where the baseline was measured on another suite."""
    outcomes = report.outcomes
    if baseline is not None:
        check_suite(outcomes.evaluated.suite, baseline.outcomes)
    rates = case_rates(outcomes)
    before = case_rates(baseline.outcomes) if baseline else {}
    flips = [
        Flip(case=case, slice=_slice_of(outcomes, index), before=before[case], after=rates[case])
        for index, case in enumerate(outcomes.case_ids)
        if case in before and case in rates and before[case] != rates[case]
    ]
    lines = [
        _line(outcomes, name, rates=rates, before=before, confidence=confidence)
        for name in (*outcomes.slices, ALL)
    ]
    evaluated = outcomes.evaluated
    return SuiteSummary(
        suite=evaluated.suite,
        model=evaluated.model,
        lane=evaluated.lane,
        frozen_digest=report.frozen_digest,
        confidence=confidence,
        slices=tuple(lines),
        errors=_counted(map(error_kind, outcomes.errors.values())),
        example=next(iter(outcomes.errors.values()), None),
        misses=_counted(miss.why for row in report.rows for miss in row.played.misses),
        baseline=baseline.outcomes.evaluated.model if baseline else None,
        better=tuple(flip for flip in flips if flip.after > flip.before),
        worse=tuple(flip for flip in flips if flip.after < flip.before),
    )


def case_rates(outcomes: Outcomes) -> dict[str, float]:
    """Case to its share of successes among the samples that could be scored; cases without any are absent."""
    size = len(outcomes.case_ids)
    scored = np.bincount(outcomes.case, outcomes.success.present, size)
    passed = np.bincount(outcomes.case, outcomes.success.values & outcomes.success.present, size)
    return {case: float(p / n) for case, p, n in zip(outcomes.case_ids, passed, scored, strict=True) if n}


def error_kind(error: str) -> str:
    """What an error is about, without the particulars: ``engine: PolicyCrash``, ``grader: unit_tests``."""
    return ": ".join(error.split(": ")[:2])


def _line(
    outcomes: Outcomes, name: str, *, rates: dict[str, float], before: dict[str, float], confidence: float
) -> SliceLine:
    cases = [
        case
        for index, case in enumerate(outcomes.case_ids)
        if name == ALL or outcomes.slices[outcomes.slice_of_case[index]] == name
    ]
    of_case = np.isin(outcomes.slice_of_case, [i for i, s in enumerate(outcomes.slices) if name in (s, ALL)])
    inside = of_case[outcomes.case]
    scored = int(np.count_nonzero(inside & outcomes.success.present))
    passed = int(np.count_nonzero(inside & outcomes.success.present & outcomes.success.values))
    means = [rates[case] for case in cases if case in rates]
    value, low, high = None, None, None
    if means:
        value = math.fsum(means) / len(means)
        if scored == len(means):
            low, high = clopper_pearson(passed, scored, confidence=confidence)
        else:
            value, low, high = clustered_proportion(means, scored, confidence=confidence)
    known = [before[case] for case in cases if case in before]
    return SliceLine(
        name=name,
        cases=len(cases),
        rows=int(np.count_nonzero(inside)),
        unscored=int(np.count_nonzero(inside)) - scored,
        successes=passed,
        success_at_1=value,
        low=low,
        high=high,
        metrics=tuple(_metrics(outcomes, inside)),
        baseline=math.fsum(known) / len(known) if known else None,
    )


def _metrics(outcomes: Outcomes, inside: NDArray[np.bool_]) -> Iterator[MetricLine]:
    for name, series in outcomes.metrics.items():
        values = series.values[inside & series.present]
        if not len(values):
            continue
        for statistic, value in _statistics(name, series, values):
            yield MetricLine.model_validate(
                {"name": name, "statistic": statistic, "value": value, "rows": len(values)}
            )


def _statistics(name: str, series: Series, values: NDArray[Any]) -> Iterator[tuple[str, float]]:
    """The figures that are shown of a column; quantiles are order statistics, never interpolated."""
    if series.values.dtype.kind == "b":
        yield "rate", float(np.count_nonzero(values) / len(values))
        return
    ordered = np.sort(values)
    if name == "latency_ms":
        yield "p95", float(ordered[math.ceil(0.95 * len(ordered)) - 1])
    if series.values.dtype.kind == "i":
        yield "median", float(ordered[math.ceil(0.5 * len(ordered)) - 1])
    yield "mean", math.fsum(ordered.tolist()) / len(ordered)


def _slice_of(outcomes: Outcomes, case: int) -> str:
    return outcomes.slices[int(outcomes.slice_of_case[case])]


def _counted(texts: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0])))


# -- text ------------------------------------------------------------------------------------------


def render_summary(summary: SuiteSummary) -> str:
    """The summary as a person reads it; the same for the same summary."""
    level = f"{summary.confidence:.0%}"
    lines = [f"{summary.model} on {summary.suite} ({summary.lane})", ""]
    heads = ["slice", "cases", "success@1", f"{level} interval", "unscored"]
    rows = [heads + (["baseline", "change"] if summary.baseline else [])]
    for line in summary.slices:
        cells = [line.name, str(line.cases), _share(line.success_at_1), _interval(line), str(line.unscored)]
        if summary.baseline:
            change = None
            if line.success_at_1 is not None and line.baseline is not None:
                change = line.success_at_1 - line.baseline
            cells += [_share(line.baseline), "–" if change is None else f"{100 * change:+.1f}"]
        rows.append(cells)
    lines += _table(rows)
    for line in summary.slices:
        if line.metrics and line.name != ALL:
            lines += ["", line.name]
            lines += _table(_figures(line.metrics))
    lines += _counts("could not be scored", summary.errors)
    lines += [f"  such as {summary.example}"] if summary.example else []
    lines += _counts("calls that were never recorded", summary.misses)
    if summary.baseline:
        lines += ["", f"against {summary.baseline}, same cases"]
        lines += [f"  better {len(summary.better)}: {_names(summary.better)}"] if summary.better else []
        lines += [f"  worse  {len(summary.worse)}: {_names(summary.worse)}"] if summary.worse else []
        lines += ["  no case changed"] if not summary.better and not summary.worse else []
    return "\n".join([*lines, "", f"frozen half {summary.frozen_digest}"]) + "\n"


def _counts(title: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    shown = [f"  {number} × {reason}" for reason, number in list(counts.items())[:_SHOWN_CASES]]
    more = [f"  and {len(counts) - _SHOWN_CASES} more reasons"] if len(counts) > _SHOWN_CASES else []
    return ["", f"{title}: {sum(counts.values())}", *shown, *more]


def _names(flips: Sequence[Flip]) -> str:
    names = ", ".join(flip.case for flip in flips[:_SHOWN_CASES])
    return names + (f" and {len(flips) - _SHOWN_CASES} more" if len(flips) > _SHOWN_CASES else "")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _interval(line: SliceLine) -> str:
    if line.low is None or line.high is None:
        return "–"
    return f"{100 * line.low:.1f} to {100 * line.high:.1f}"


def _figures(metrics: Sequence[MetricLine]) -> list[list[str]]:
    """One line a metric."""
    found: dict[str, list[str]] = {}
    for m in metrics:
        text = f"{100 * m.value:.1f}%" if m.statistic == "rate" else f"{m.statistic} {m.value:.6g}"
        found.setdefault(m.name, []).append(text)
    return [["", name, ", ".join(texts)] for name, texts in found.items()]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
