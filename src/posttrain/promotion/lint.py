"""What is wrong with a contract before any run: rules that cannot pass, bounds that point the wrong way, low power.

Here: findings from the contract and, where they are known, the sizes of the slices and the columns of a report. Not
here: judging records (``gate``). An *error* is a rule that can never be PASS, or that would be ERROR in the gate; a
*warning* is a rule that will decide by luck; a *note* is what the rule can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from posttrain.core.errors import UnknownReferenceError
from posttrain.core.suggest import did_you_mean
from posttrain.evaluation.outcomes import OutcomesHeader
from posttrain.promotion.grammar import parse_rule
from posttrain.promotion.judging import label, misdirection
from posttrain.promotion.metrics import (
    SUCCESS,
    Metric,
    PassAtK,
    Proportion,
    Quantile,
    Reading,
    columns_of,
    find_metric,
)
from posttrain.promotion.rules import Contract, MetricCall, NoRegressionRule, Rule, ThresholdRule
from posttrain.statistics import power
from posttrain.statistics.intervals import clopper_pearson
from posttrain.statistics.sequential import log_evidence

FEW = 200
"""Cases below which a point says little: its interval is wider than ten points."""
DISCORDANCE = 0.1
"""Share of cases that change between two models, where nothing better is known."""


class Finding(NamedTuple):
    """One thing to know about a rule."""

    level: Literal["error", "warning", "note"]
    line: int
    column: int
    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the evaluation that the contract will meet."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    """Slice to its cases; empty where nothing is known."""
    columns: tuple[str, ...] | None = None
    """Metric columns of the report; None where they are not known."""
    lane: str | None = None
    true: Mapping[MetricCall, float] = field(default_factory=dict)
    """Metric to the value that a candidate is expected to have."""
    discordance: float = DISCORDANCE

    @classmethod
    def of_report(cls, header: OutcomesHeader) -> Known:
        """What the header of a report says."""
        columns = tuple(column.name for column in header.evaluated.columns)
        return cls(header.slices, columns, header.evaluated.lane)

    def cases(self, name: str | None) -> int | None:
        """Cases of a slice, or of all; None where that is not known."""
        if not self.sizes:
            return None
        return sum(self.sizes.values()) if name is None else self.sizes.get(name)


def parse_call(text: str) -> MetricCall:
    """The metric that ``math_correct_rate(math_basic)`` writes. Raises ContractError."""
    rule = parse_rule(f"{text}.point >= 0")
    if not isinstance(rule, ThresholdRule):
        raise UnknownReferenceError(f"{text!r} is no metric")
    return rule.metric


def lint(contract: Contract, known: Known | None = None) -> tuple[Finding, ...]:
    """Everything that can be said of ``contract`` before a run, in order of its lines."""
    facts = known or Known()
    findings = [
        Finding(level, rule.place.line, rule.place.column, rule.text, message)
        for rule in contract.rules
        for level, message in _of_rule(rule, contract, facts)
    ]
    count = len(contract.rules)
    if count > 1:
        each = 0.8 ** (1 / count)
        first = contract.rules[0]
        message = (
            f"{count} rules must all hold: at 95 % power each a good model passes {0.95**count:.0%} of the time if "
            f"they are independent; 80 % over all needs {each:.1%} each"
        )
        findings.append(Finding("note", first.place.line, first.place.column, "", message))
    return tuple(findings)


def _asks_for_worse(rule: ThresholdRule, metric: Metric) -> bool:
    return (
        metric.better != "either"
        and rule.comparator != "=="
        and rule.scope != "delta"
        and (metric.better == "higher") != rule.upward
    )


_Said = tuple[Literal["error", "warning", "note"], str]


def _of_rule(rule: Rule, contract: Contract, known: Known) -> Iterator[_Said]:
    if isinstance(rule, NoRegressionRule):
        for name in rule.slices:
            yield from _slice(name, known)
            yield from _non_inferiority(rule, name, contract, known)
        return
    try:
        metric = find_metric(rule.metric)
    except UnknownReferenceError as error:
        yield "error", f"{error.message}; {error.hint}"
        return
    problem = misdirection(rule, metric)
    if problem is not None:
        yield "error", problem
    elif rule.stat == "point" and _asks_for_worse(rule, metric):
        yield "warning", f"of {metric.name} {metric.better} is better, and this rule asks for the opposite"
    if rule.scope == "canary":
        yield from _canary(rule, metric, contract)
        return
    yield from _slice(rule.metric.slice, known)
    yield from _columns(rule, metric, known)
    if rule.scope == "delta":
        yield from _delta(rule, metric, contract, known)
    else:
        yield from _threshold(rule, metric, contract, known)


def _slice(name: str | None, known: Known) -> Iterator[_Said]:
    if name is not None and known.sizes and name not in known.sizes:
        yield "error", f"no slice {name!r}; {did_you_mean(name, known.sizes)}"


def _columns(rule: ThresholdRule, metric: Metric, known: Known) -> Iterator[_Said]:
    if metric.live and known.lane == "replay":
        yield (
            "error",
            f"{metric.name} comes only from a lane in which the model runs, and the report is a replay",
        )
    if known.columns is None or metric.derive is not None:
        return
    for column in columns_of(metric.read(rule.metric)):
        if column != SUCCESS and column not in known.columns:
            yield "error", f"the report has no column {column!r}; {did_you_mean(column, known.columns)}"


def _threshold(rule: ThresholdRule, metric: Metric, contract: Contract, known: Known) -> Iterator[_Said]:
    reading = metric.read(rule.metric)
    if rule.stat == "p_value":
        yield "error", "a p-value compares with the baseline: write delta."
        return
    cases = known.cases(rule.metric.slice)
    if isinstance(reading, Proportion | PassAtK) and rule.stat != "count":
        yield from _vacuous(rule)
    if cases is None:
        return
    if cases < contract.options.min_n:
        yield "error", f"{cases} cases are fewer than min_n {contract.options.min_n}: it stays INCONCLUSIVE"
    if rule.stat == "point":
        if cases < FEW and isinstance(reading, Proportion | PassAtK | Quantile):
            low, high = clopper_pearson(cases // 2, cases, confidence=float(contract.options.confidence))
            yield (
                "warning",
                (
                    f"a point over {cases} cases is a coin toss near its threshold: a rate of one half has an interval "
                    f"of {low:.2f} to {high:.2f}; ask for a bound, or for {FEW} cases"
                ),
            )
        return
    yield from _bound(rule, reading, cases=cases, contract=contract, known=known)


def _vacuous(rule: ThresholdRule) -> Iterator[_Said]:
    limit = rule.limit
    never = (
        limit > 1 or (limit == 1 and rule.strictly)
        if rule.upward
        else limit < 0 or (limit == 0 and rule.strictly)
    )
    bound = rule.stat in ("lower_ci", "upper_ci")
    if never or (bound and (limit == 1 if rule.upward else limit == 0)):
        what = "bound of a rate" if bound else "rate"
        yield "error", f"no {what} is {rule.comparator} {rule.threshold}: it can never pass"
    elif (limit <= 0 if rule.upward else limit >= 1) and not rule.strictly and rule.comparator != "==":
        yield "warning", f"every rate is {rule.comparator} {rule.threshold}: it always passes"


def _bound(
    rule: ThresholdRule, reading: Reading, *, cases: int, contract: Contract, known: Known
) -> Iterator[_Said]:
    """Whether a bound can reach its threshold, and from which true value on it mostly does."""
    level = contract.options.level
    if isinstance(reading, Quantile):
        share = reading.quantile if not rule.upward else 1 - reading.quantile
        least = power.smallest_perfect_run(share, confidence=level) or 0
        if cases < least:
            yield "error", f"{cases} cases give no bound of this percentile: {least} are the fewest"
        return
    if not isinstance(reading, Proportion | PassAtK) or not 0 < rule.limit < 1:
        return
    limit = rule.limit if rule.upward else 1 - rule.limit
    needed = power.passing_count(cases, limit, confidence=level)
    if needed is None:
        perfect = power.smallest_perfect_run(limit, confidence=level)
        yield "error", f"{cases} cases cannot reach it: even a perfect run needs {perfect}"
        return
    from_rate = power.detectable_rate(cases, limit, confidence=level) or 1.0
    shown = from_rate if rule.upward else 1 - from_rate
    failing, reach = ("failing", "from") if rule.upward else ("true", "down from")
    yield (
        "note",
        (
            f"passes with at most {cases - needed} of {cases} {failing}; 80 % power {reach} a true rate of {shown:.4f}"
        ),
    )
    stated = known.true.get(rule.metric)
    if stated is not None:
        true = stated if rule.upward else 1 - stated
        chance = power.pass_probability(cases, limit, true, confidence=level)
        wanted = power.cases_for_lower_bound(limit, true, confidence=level)
        more = "no number of cases would help" if wanted is None else f"80 % needs {wanted} cases"
        yield (
            ("note" if chance >= power.POWER else "warning"),
            (f"at a true {label(rule.metric)} of {stated:g} it passes {chance:.1%} of the time; {more}"),
        )


def _delta(rule: ThresholdRule, metric: Metric, contract: Contract, known: Known) -> Iterator[_Said]:
    if not isinstance(metric.read(rule.metric), Proportion):
        yield "error", "a difference is of rates, and this is none"
        return
    if rule.stat == "count":
        yield "error", "a difference has no count: write .point"
    if rule.stat == "p_value" and (rule.upward or rule.comparator == "=="):
        yield "error", "a p-value is evidence where it is small: write p_value < 0.05"
        return
    cases = known.cases(rule.metric.slice)
    if cases is None:
        return
    if rule.stat == "point" and cases < FEW:
        half = 1.96 * math.sqrt(known.discordance / cases)
        yield (
            "warning",
            (
                f"a difference over {cases} cases is known to ± {half:.3f} where {known.discordance:.0%} of the cases "
                "change: ask for a bound or a p-value beside it"
            ),
        )
    if rule.stat == "p_value":
        level = float(rule.limit) / (2 if contract.options.alternative == "two-sided" else 1)
        difference = _detectable_difference(cases, known.discordance, level)
        changed = max(known.discordance, difference)
        message = f"80 % power for a difference of {difference:.3f} where {changed:.0%} of the cases change"
        yield "note", message if difference < 1 else f"{cases} cases tell no difference with 80 % power"


def _detectable_difference(cases: int, discordance: float, level: float) -> float:
    """The smallest difference that McNemar finds in so many cases with 80 % power."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        size = power.cases_for_difference(max(discordance, middle), middle, level=level)
        low, high = (low, middle) if size is not None and size <= cases else (middle, high)
    return high


def _non_inferiority(rule: NoRegressionRule, name: str, contract: Contract, known: Known) -> Iterator[_Said]:
    cases = known.cases(name)
    if cases is None:
        return
    margin = float(rule.margin if rule.margin is not None else contract.options.margin_of(name))
    confidence = float(contract.options.confidence)
    needed = power.cases_for_non_inferiority(known.discordance, 0.0, margin, confidence=confidence)
    spread = math.sqrt(known.discordance / cases)
    chance = float(special.ndtr(margin / spread - special.ndtri(0.5 + confidence / 2)))
    more = (
        "a margin of 0 is never shown by an equal model" if needed is None else f"80 % needs {needed} cases"
    )
    yield (
        ("note" if chance >= power.POWER else "warning"),
        (
            f"{name}: an equal model passes a margin of {margin:g} {chance:.0%} of the time on {cases} cases where "
            f"{known.discordance:.0%} of them change; {more}"
        ),
    )


def _canary(rule: ThresholdRule, metric: Metric, contract: Contract) -> Iterator[_Said]:
    reading = metric.read(rule.metric)
    requests = contract.options.canary_min_n
    if rule.stat == "count":
        if rule.limit == 0 and rule.comparator in ("==", "<="):
            most = -math.expm1(math.log(0.05) / requests)
            yield "note", f"none in {requests} requests still allows a rate of {most:.2g} (one-sided 95 %)"
        return
    if not isinstance(reading, Proportion | Quantile):
        yield "note", "a ratio of sums has no trip wire: it is judged at the end of the window only"
        return
    limit = _event_limit(rule, reading)
    if not 0 < limit < 1:
        yield "warning", "a limit at the end of the scale has no trip wire"
        return
    wires = sum(
        isinstance(other, ThresholdRule) and other.scope == "canary" and other.stat != "count"
        for other in contract.rules
    )
    needed = math.log(wires / float(contract.options.alpha_rollback))
    counts = np.arange(math.ceil(float(limit) * requests), requests + 1)
    over = np.flatnonzero(log_evidence(counts, requests, float(limit)) >= needed)
    if len(over):
        rate = float(counts[over[0]] / requests)
        yield (
            "note",
            (
                f"in {requests} requests the trip wire is reached by a rate of bad requests of about {rate:.2%}, limit "
                f"{float(limit):.2%}"
            ),
        )


def _event_limit(rule: ThresholdRule, reading: Proportion | Quantile) -> Fraction:
    if isinstance(reading, Proportion):
        return 1 - rule.limit if rule.upward else rule.limit
    return reading.quantile if rule.upward else 1 - reading.quantile
