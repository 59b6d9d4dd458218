"""Whether a rule on one report holds: the readings that are no rates, and the way from a rule to its reading.

Here: from a rule and a report to a ``Check``. Not here: rates (``rates``), pairs with the baseline (``pairs``), traffic
(``canary``), the verdict of the whole (``gate``), the formulas (``evaluation.exact``, ``order``, ``statistics``).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from posttrain.core.errors import UsageError
from posttrain.promotion.errors import GateError
from posttrain.promotion.judging import (
    bound_verdict,
    compare,
    finite,
    guarded,
    label,
    number,
    relation,
    settle,
    too_few,
)
from posttrain.promotion.metrics import Metric, PassAtK, Proportion, Quantile, RatioOfSums, Reading, Total
from posttrain.promotion.rates import check_pass_at_k, check_rate
from posttrain.promotion.records import Check, Verdict
from posttrain.promotion.rules import Options, ThresholdRule
from posttrain.promotion.world import Sample, Table, World
from posttrain.statistics import exact, order, power
from posttrain.statistics.intervals import Estimate


def check_threshold(rule: ThresholdRule, world: World) -> Check:
    """Judge a rule on the candidate's records alone. What cannot be judged is a check with the verdict ERROR."""
    return guarded(rule, world, lambda metric: _check(rule, metric, world))


def _check(rule: ThresholdRule, metric: Metric, world: World) -> Check:
    if rule.stat == "p_value":
        raise GateError("a p-value compares with the baseline: write delta.")
    if metric.live and world.candidate.outcomes.evaluated.lane == "replay":
        raise GateError(
            f"{metric.name} of a replay is the recording's, not the model's: evaluate in the lane live-frozen"
        )
    reading = metric.read(rule.metric)
    check = judge_reading(rule, metric, reading, world=world, table=world.candidate)
    before = _baseline_value(rule, metric, reading, world)
    return check if before is None else check.revised(baseline=before)


def judge_reading(
    rule: ThresholdRule, metric: Metric, reading: Reading, *, world: World, table: Table
) -> Check:
    """Judge what a reading finds in a table."""
    if rule.stat == "count" and not isinstance(reading, Proportion | Total):
        raise GateError(f"{label(rule.metric)} has no count: write .point")
    match reading:
        case Proportion(column):
            if rule.stat == "count":
                return _total(rule, metric, column, table=table)
            every = world.every_sample and rule.scope != "canary"
            sample = table.sample(metric, rule.metric, column, kind="bool", every_sample=every)
            return check_rate(rule, sample, world=world, table=table)
        case PassAtK():
            return check_pass_at_k(rule, metric, reading, world=world, table=table)
        case Quantile(column, quantile):
            sample = table.sample(metric, rule.metric, column, kind="number", every_sample=False)
            return _quantile(rule, sample, quantile, options=world.options)
        case RatioOfSums():
            return _ratio(rule, metric, reading, table=table, options=world.options)
        case Total(column):
            return _total(rule, metric, column, table=table)


def _baseline_value(rule: ThresholdRule, metric: Metric, reading: Reading, world: World) -> float | None:
    """The baseline's point, for the table; None where there is none to compare with."""
    if world.baseline is None or world.baseline_problem is not None:
        return None
    if metric.live and world.baseline.outcomes.evaluated.lane == "replay":
        return None
    try:
        return _point(rule, metric, reading, world=world, table=world.baseline)
    except UsageError:  # the baseline's report lacks the column: the table shows a dash
        return None


def _point(
    rule: ThresholdRule, metric: Metric, reading: Reading, *, world: World, table: Table
) -> float | None:
    """A reading's point without its interval, which the baseline's column of the table does not show."""
    if isinstance(reading, Proportion) and not world.every_sample and rule.scope == "candidate":
        sample = table.sample(metric, rule.metric, reading.column, kind="bool", every_sample=False)
        return float(np.count_nonzero(sample.filled(not rule.upward)) / len(sample.values))
    if isinstance(reading, Quantile):
        sample = table.sample(metric, rule.metric, reading.column, kind="number", every_sample=False)
        values = sample.filled(-math.inf if rule.upward else math.inf)
        return finite(order.quantile_point(values, reading.quantile))
    if isinstance(reading, RatioOfSums):
        above, below = (
            table.sample(metric, rule.metric, column, kind="number", every_sample=True)
            for column in (reading.numerator, reading.denominator)
        )
        total = float(below.values.sum())
        known = above.missing == below.missing == 0 and total > 0
        return float(reading.scale * above.values.sum() / total) if known else None
    return judge_reading(rule, metric, reading, world=world, table=table).value


def _quantile(rule: ThresholdRule, sample: Sample, quantile: Fraction, *, options: Options) -> Check:
    found: dict[bool, Estimate] = {}

    def decide(favour: bool) -> Verdict:
        endless = math.inf if rule.upward == favour else -math.inf
        values = sample.filled(endless)
        estimate = order.quantile_interval(values, quantile, confidence=float(options.confidence))
        found[favour] = estimate
        if rule.stat == "point":
            exactly = exact.as_fraction(estimate.value) if math.isfinite(estimate.value) else estimate.value
            return "PASS" if compare(exactly, rule) else "FAIL"
        return bound_verdict(rule, estimate.low, estimate.high)

    verdict, word = settle(sample.missing, decide)
    estimate, cases = found[False], len(sample.values)
    if verdict != "ERROR" and cases < options.min_n:
        return too_few(rule.metric, cases, options)
    ranks = order.quantile_ranks(cases, quantile, confidence=float(options.confidence))
    shown, rank = {
        "point": (estimate.value, ranks.point),
        "lower_ci": (estimate.low, ranks.low),
        "upper_ci": (estimate.high, ranks.high),
    }[rule.stat]
    line = f"x({rank} of {cases}) = {number(shown)} {relation(verdict == 'PASS', rule.comparator)} {rule.threshold}"
    return Check(
        verdict=verdict,
        decision=line + word,
        slice=rule.metric.slice,
        metric=label(rule.metric),
        estimator=f"order statistic, q = {quantile}, first sample of each case",
        cases=cases,
        samples=cases,
        missing=sample.missing,
        value=finite(estimate.value),
        low=finite(estimate.low),
        high=finite(estimate.high),
        needed=_quantile_needed(rule, sample, quantile, options) if verdict == "INCONCLUSIVE" else None,
        coin_toss=rule.stat == "point" and estimate.low <= float(rule.limit) <= estimate.high,
    )


def _quantile_needed(rule: ThresholdRule, sample: Sample, quantile: Fraction, options: Options) -> int | None:
    """A bound of a quantile is a bound of the share of values on the right side of the limit."""
    limit = float(rule.limit)
    values = sample.values[sample.present]
    right = float(np.mean(values >= limit if rule.upward else values <= limit))
    share = 1 - quantile if rule.upward else quantile
    return power.cases_for_lower_bound(share, right, confidence=options.level)


def _ratio(
    rule: ThresholdRule, metric: Metric, reading: RatioOfSums, *, table: Table, options: Options
) -> Check:
    above, below = (
        table.sample(metric, rule.metric, column, kind="number", every_sample=True)
        for column in (reading.numerator, reading.denominator)
    )
    missing = int(np.count_nonzero(~(above.present & below.present)))
    if missing:
        raise GateError(
            f"{missing} of {len(above.values)} rows have no {reading.numerator} or no {reading.denominator}: "
            "a cost that was not recorded may be any cost"
        )
    try:
        ratio = order.ratio_of_sums(
            above.values,
            below.values,
            scale=reading.scale,
            clusters=above.codes if above.cases < len(above.values) else None,
            confidence=float(options.confidence),
        )
    except ValueError as error:
        raise GateError(f"{reading.denominator}: {error}") from error
    if rule.stat == "point":
        verdict: Verdict = "PASS" if compare(ratio.value, rule) else "FAIL"
        shown: Fraction | float = ratio.value
    else:
        verdict = bound_verdict(rule, ratio.low, ratio.high)
        shown = ratio.low if rule.upward else ratio.high
    return Check(
        verdict=verdict,
        decision=f"{number(shown)} {relation(verdict == 'PASS', rule.comparator)} {rule.threshold}",
        slice=rule.metric.slice,
        metric=label(rule.metric),
        estimator=f"{reading.scale} × sum({reading.numerator}) / sum({reading.denominator}), clustered by case",
        cases=above.cases,
        samples=len(above.values),
        value=float(ratio.value),
        low=finite(ratio.low),
        high=finite(ratio.high),
        coin_toss=rule.stat == "point" and ratio.low <= float(rule.limit) <= ratio.high,
        notes=() if ratio.exact else ("sums of numbers finer than a billionth are rounded",),
    )


def _total(rule: ThresholdRule, metric: Metric, column: str, *, table: Table) -> Check:
    if rule.stat not in ("count", "point"):
        raise GateError(f"a total has no {rule.stat}: write .count, or a rate")
    sample = table.sample(metric, rule.metric, column, kind="number", every_sample=True)
    if sample.missing:
        raise GateError(f"{sample.missing} of {len(sample.values)} rows have no {column}")
    total = sum(
        (exact.as_fraction(value) for value in sample.values[sample.values != 0].tolist()), Fraction(0)
    )
    held = compare(total, rule)
    return Check(
        verdict="PASS" if held else "FAIL",
        decision=f"{number(total)} {relation(held, rule.comparator)} {rule.threshold}",
        slice=rule.metric.slice,
        metric=label(rule.metric),
        estimator="total over all samples",
        cases=sample.cases,
        samples=len(sample.values),
        successes=int(total) if total.denominator == 1 else None,
        value=float(total),
        exact=str(total),
    )
