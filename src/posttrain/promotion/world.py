"""What a gate looks at: the reports, with what rules ask of them found once.

Here: which rows and columns a rule reads, whether two reports may be compared. Not here: judging what was read
(``checks``). A report is held as ``Outcomes``; rows stay where they are and are named by their indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.core.errors import UnknownReferenceError
from posttrain.core.suggest import did_you_mean
from posttrain.evaluation.outcomes import Outcomes, Series
from posttrain.promotion.errors import GateError
from posttrain.promotion.metrics import SUCCESS, Metric
from posttrain.promotion.rules import MetricCall, NoRegressionRule, Options, Rule


class Sample(NamedTuple):
    """The values that a rule reads."""

    values: NDArray[Any]
    """Zero where absent."""
    present: NDArray[np.bool_]
    case: NDArray[np.int64]
    """Which case each value is of; values of one case stand together."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each case begins."""
        return np.flatnonzero(np.diff(self.case, prepend=-1))

    @property
    def codes(self) -> NDArray[np.int64]:
        """Which case each value is of, counted from 0 without gaps."""
        return np.cumsum(np.diff(self.case, prepend=self.case[0]) != 0)

    @property
    def cases(self) -> int:
        """Cases that have a value or lack one."""
        return len(self.starts)

    @property
    def missing(self) -> int:
        """Values that are not there."""
        return int(len(self.present) - np.count_nonzero(self.present))

    def filled(self, value: float | bool) -> NDArray[Any]:
        """The values with ``value`` where there is none."""
        if self.missing == 0:
            return self.values
        dtype = self.values.dtype if isinstance(value, bool) else np.float64
        return np.where(self.present, self.values.astype(dtype), value)


class Table:
    """One report."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        self._columns: dict[tuple[str, MetricCall], Series] = {}
        self._cases: dict[str | None, NDArray[np.int64]] = {}

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """The row of each case's first sample; rows are in order of case and sample."""
        return np.flatnonzero(np.diff(self.outcomes.case, prepend=-1))

    def cases(self, name: str | None) -> NDArray[np.int64]:
        """The cases of a slice, or all. Raises UnknownReferenceError."""
        if name not in self._cases:
            self._cases[name] = self._find_cases(name)
        return self._cases[name]

    def names(self, cases: NDArray[np.int64]) -> tuple[str, ...]:
        """The ids of these cases."""
        ids = self.outcomes.case_ids
        return tuple([ids[case] for case in cases.tolist()])

    def _find_cases(self, name: str | None) -> NDArray[np.int64]:
        slices = self.outcomes.slices
        if name is None:
            return np.arange(len(self.outcomes.case_ids))
        if name not in slices:
            raise UnknownReferenceError(
                f"the report has no case of a slice {name!r}", hint=did_you_mean(name, slices)
            )
        return np.flatnonzero(self.outcomes.slice_of_case == slices.index(name))

    def sample(
        self, metric: Metric, call: MetricCall, column: str, *, kind: str, every_sample: bool
    ) -> Sample:
        """The values of a column over the call's slice: of each case's first sample, or of all.

        ``kind`` is ``bool`` or ``number``. Raises UnknownReferenceError or GateError for what is not there.
        """
        cases = self.cases(call.slice)
        series = self._column(metric, call, column)
        if kind == "bool" and series.values.dtype.kind != "b":
            raise GateError(f"the column {column!r} holds numbers; a rate is the share of true values")
        if every_sample:
            rows = np.flatnonzero(np.isin(self.outcomes.case, cases)) if call.slice else slice(None)
            found = Sample(series.values[rows], series.present[rows], self.outcomes.case[rows])
        else:
            rows = self.first if call.slice is None else self.first[cases]
            found = Sample(series.values[rows], series.present[rows], cases)
        if not found.present.any():
            where = f"slice {call.slice!r}" if call.slice else "the report"
            raise GateError(f"no case of {where} has a value in the column {column!r}: there is no data")
        return found

    def _column(self, metric: Metric, call: MetricCall, column: str) -> Series:
        if metric.derive is not None:
            key = (metric.name, call)
            if key not in self._columns:
                self._columns[key] = metric.derive(self.outcomes, call)
            return self._columns[key]
        if column == SUCCESS:
            return self.outcomes.success
        if column not in self.outcomes.metrics:
            raise UnknownReferenceError(
                f"the report has no column {column!r}", hint=did_you_mean(column, self.outcomes.metrics)
            )
        return self.outcomes.metrics[column]


@dataclass(frozen=True)
class World:
    """Everything that the rules of one contract may ask about."""

    options: Options
    rules: tuple[Rule, ...]
    candidate: Table
    baseline: Table | None = None
    canary: Table | None = None
    metrics: tuple[Metric, ...] = ()
    """The metrics that rules may name."""

    @cached_property
    def baseline_problem(self) -> str | None:
        """Why the baseline cannot be compared with; None where it can."""
        if self.baseline is None:
            return "there is no baseline to compare with: give one with --baseline"
        ours, theirs = self.candidate.outcomes, self.baseline.outcomes
        if ours.evaluated.suite != theirs.evaluated.suite:
            return (
                f"the baseline was evaluated on another suite ({theirs.evaluated.suite}, the candidate on "
                f"{ours.evaluated.suite}): evaluate it on this one"
            )
        if ours.cases_digest == theirs.cases_digest:
            return None
        alone = sorted(set(ours.case_ids) ^ set(theirs.case_ids))
        if not alone:
            return "the cases do not pair: some are in other slices"
        whose = "candidate" if alone[0] in set(ours.case_ids) else "baseline"
        return f"the cases do not pair: {len(alone)} are on one side only, {alone[0]!r} in the {whose}"

    def paired_baseline(self) -> Table:
        """The baseline, comparable. Raises GateError."""
        if self.baseline is None or self.baseline_problem is not None:
            raise GateError(self.baseline_problem or "there is no baseline")
        return self.baseline

    @property
    def every_sample(self) -> bool:
        """Whether all samples of a case are read."""
        return self.options.estimator == "korn-graubard"

    def slices_named(self) -> tuple[str, ...]:
        """Slices that rules name, in order of first mention."""
        names: dict[str, None] = {}
        for rule in self.rules:
            if isinstance(rule, NoRegressionRule):
                names |= dict.fromkeys(rule.slices)
            elif rule.metric.slice and rule.scope != "canary":
                names[rule.metric.slice] = None
        return tuple(names)
