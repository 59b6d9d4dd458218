"""What the metrics of a contract read: one table, and whatever other packages register.

A rule's metric name leads to a *reading*: which column of the records, and what is computed from it. Names with ``*``
are families: ``format_pass_rate`` is the share of true values in the column ``format_pass``. Arguments go into the
column's name: ``api_version_match_rate(tools, '3.2.1')`` reads ``api_version_match('3.2.1')`` over the slice ``tools``.

Here: names, readings, directions. Not here: how a reading is judged (``checks``). To add a metric: an entry in
``METRICS``; or, in another package, an entry point of the group ``posttrain.metrics`` that names a ``Metric``. One with
a ``derive`` computes its column from the others, so anything that can be said of a row in Python can be a rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Literal, TypeAlias

from posttrain.core.errors import UnknownReferenceError
from posttrain.core.suggest import nearest
from posttrain.promotion.rules import MetricCall

if TYPE_CHECKING:
    from posttrain.evaluation.outcomes import Outcomes, Series

ENTRY_POINTS = "posttrain.metrics"
"""Entry-point group under which other packages register metrics."""

SUCCESS = "success"
"""The column that every report has."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """The share of true values."""

    column: str


@dataclass(frozen=True, slots=True)
class PassAtK:
    """The chance that one (``every``: each) of k samples of a case is a success."""

    k: int
    every: bool = False


@dataclass(frozen=True, slots=True)
class Quantile:
    """An order statistic, ``x_(ceil(q n))``."""

    column: str
    quantile: Fraction


@dataclass(frozen=True, slots=True)
class RatioOfSums:
    """``scale * sum(numerator) / sum(denominator)``."""

    numerator: str
    denominator: str
    scale: int = 1


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of a column of counts or of true values."""

    column: str


Reading: TypeAlias = Proportion | PassAtK | Quantile | RatioOfSums | Total
Better: TypeAlias = Literal["higher", "lower", "either"]
"""Which way is better; ``either``: the rule's own comparison says it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, or a family of them."""

    name: str
    """As rules write it; ``*`` stands for a column's name, ``<NN>`` for two digits."""
    read: Callable[[MetricCall], Reading]
    """From a call to what it reads."""
    better: Better
    meaning: str
    """One sentence for the documentation."""
    live: bool = False
    """Whether it may come only from a lane in which the model really runs."""
    derive: Callable[[Outcomes, MetricCall], Series] | None = None
    """Computes the column from the report's other columns, a value a row; None where the report has it."""

    def matches(self, name: str) -> bool:
        """Whether a rule's name is this metric's."""
        pattern = re.escape(self.name).replace(r"\*", "[A-Za-z][A-Za-z0-9_-]*?")
        return re.fullmatch(pattern.replace("<NN>", "[0-9]{2}"), name) is not None


def column_of(name: str, call: MetricCall) -> str:
    """The column ``name`` with the call's part and arguments."""
    from posttrain.evaluation.outcomes import column_name

    return column_name(f"{name}.{call.part}" if call.part else name, call.arguments, dict(call.options))


def _rate(call: MetricCall) -> Reading:
    return Proportion(column_of(call.name.removesuffix("_rate"), call))


def _plain(call: MetricCall) -> Reading:
    return Proportion(column_of(call.name, call))


def _success(call: MetricCall) -> Reading:
    return Proportion(SUCCESS) if (call.at or 1) == 1 else PassAtK(call.at or 1)


def _every(call: MetricCall) -> Reading:
    return Proportion(SUCCESS) if (call.at or 1) == 1 else PassAtK(call.at or 1, every=True)


def _median(call: MetricCall) -> Reading:
    return Quantile(column_of(call.name.removesuffix("_median"), call), Fraction(1, 2))


def _percentile(call: MetricCall) -> Reading:
    what, percent, unit = _parts(call.name)
    return Quantile(column_of(f"{what}_{unit}", call), Fraction(percent, 100))


def _parts(name: str) -> tuple[str, int, str]:
    match = re.fullmatch(r"(.+)_p([0-9]{2})_(.+)", name)
    if match is None:
        raise UnknownReferenceError(f"{name!r} is no percentile")
    return match[1], int(match[2]), match[3]


def _cost(call: MetricCall) -> Reading:
    return RatioOfSums("cost_usd", "tokens", 1000)


def _total(call: MetricCall) -> Reading:
    return Total(column_of(call.name, call))


METRICS: tuple[Metric, ...] = (
    Metric(
        "success",
        _success,
        "higher",
        "Cases that pass their slice's rule. `success@k` with k above 1 is pass@k: one of k samples does.",
    ),
    Metric(
        "every_success",
        _every,
        "higher",
        "`every_success@k` is pass^k, the chance that each of k samples passes.",
    ),
    Metric(
        "tool_call_correctness",
        _plain,
        "higher",
        "Cases whose tool calls are right; `.schema` by the tools' schemas. Column `tool_call_correctness.schema`.",
    ),
    Metric(
        "rule_violation_rate",
        _rate,
        "lower",
        "Cases that break a rule of their slice. Column `rule_violation`.",
    ),
    Metric(
        "abandon_rate",
        _rate,
        "lower",
        "Conversations that the user left unfinished: what helpfulness looks like from outside. Column `abandon`.",
    ),
    Metric("truncated_rate", _rate, "lower", "Answers cut by the token limit. Column `truncated`."),
    Metric(
        "steps_to_solve_median",
        _median,
        "lower",
        "Median rounds of tool calls; a case without a value was not solved and counts as endless. "
        "Column `steps_to_solve`.",
    ),
    Metric(
        "cost_per_1k_tokens_usd",
        _cost,
        "lower",
        "1000 × sum of `cost_usd` / sum of `tokens`, over all samples; never a mean of ratios.",
        live=True,
    ),
    Metric(
        "latency_p<NN>_ms",
        _percentile,
        "lower",
        "A percentile of `latency_ms`; a missing value counts as endless.",
        live=True,
    ),
    Metric(
        "safety_incidents", _total, "lower", "Number of incidents, for `.count`. Column `safety_incidents`."
    ),
    Metric(
        "*_p<NN>_ms", _percentile, "lower", "A percentile of any column in milliseconds, `*_ms`.", live=True
    ),
    Metric("*_median", _median, "either", "The median of any number column."),
    Metric("*_rate", _rate, "either", "The share of true values in any bool column, arguments in its name."),
    Metric("*_count", _total, "either", "The total of any column of counts or bools, for `.count`."),
)
"""What ships, the special before the general."""


@cache
def metrics() -> tuple[Metric, ...]:
    """Every metric: those that other packages registered first, so that a special one can stand before a family."""
    found = []
    for entry in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        metric = entry.load()
        if not isinstance(metric, Metric):
            raise UnknownReferenceError(
                f"the entry point {entry.name!r} of {ENTRY_POINTS} names no Metric but {metric!r}",
                hint=f"uninstall or mend the package of {entry.value!r}",
            )
        found.append(metric)
    return (*found, *METRICS)


def find_metric(call: MetricCall, known: tuple[Metric, ...] | None = None) -> Metric:
    """The metric that a rule names. Raises UnknownReferenceError with the nearest known name."""
    table = metrics() if known is None else known
    for metric in table:
        if metric.matches(call.name):
            return metric
    names = [metric.name for metric in table]
    best = nearest(call.name, [name for name in names if "*" not in name])
    hint = f"did you mean {best!r}?" if best else f"known: {', '.join(names)}; a new one is registered"
    raise UnknownReferenceError(f"no metric {call.name!r}", hint=hint)


def columns_of(reading: Reading) -> tuple[str, ...]:
    """The columns that a reading needs."""
    match reading:
        case RatioOfSums(numerator, denominator):
            return numerator, denominator
        case PassAtK():
            return (SUCCESS,)
        case Proportion(column) | Quantile(column) | Total(column):
            return (column,)


BETTER_TEXT: Mapping[Better, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "either": "as the rule says",
}
"""For people."""
