"""Rules on rates: Clopper-Pearson over one value a case, Korn-Graubard over several or over weighted slices, pass@k.

Here: reading to ``Check``. Not here: other readings (``checks``), pairs (``pairs``). The decision at a bound is the
tail of the binomial at the threshold, so no bound is rounded; the bound itself is shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import special

from posttrain.promotion.errors import GateError
from posttrain.promotion.judging import bound_verdict, compare, label, number, relation, settle, too_few
from posttrain.promotion.metrics import SUCCESS, Metric, PassAtK
from posttrain.promotion.records import Check, Verdict
from posttrain.promotion.rules import Options, ThresholdRule
from posttrain.promotion.world import Sample, Table, World
from posttrain.statistics import exact, power
from posttrain.statistics.intervals import clopper_pearson, clustered_proportion

MIN_CLUSTERS = 100
"""Cases below which ``korn-graubard`` may not decide: its lower end misses too often there."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A proportion with its interval."""

    value: Fraction
    low: float
    high: float
    cases: int
    successes: int | None
    """None where the value is no count over the cases."""
    estimator: str


def rate_of(values: NDArray[np.bool_], sample: Sample, options: Options) -> Rate:
    """The proportion of ``values``: exact over one value a case, clustered over several."""
    total, count, confidence = int(np.count_nonzero(values)), len(values), float(options.confidence)
    if options.estimator == "clopper-pearson" or count == sample.cases:
        low, high = clopper_pearson(total, count, confidence=confidence)
        return Rate(Fraction(total, count), low, high, count, total, "clopper-pearson")
    means = case_means(values, sample)
    estimate = clustered_proportion([float(m) for m in means], count, confidence=confidence)
    value = sum(means, Fraction(0)) / len(means)
    return Rate(value, estimate.low, estimate.high, len(means), None, "korn-graubard")


def case_means(values: NDArray[np.bool_], sample: Sample) -> list[Fraction]:
    """The exact mean of each case, in order of case."""
    counts, hits = np.bincount(sample.codes), np.bincount(sample.codes, weights=values)
    return [Fraction(int(hit), int(count)) for hit, count in zip(hits, counts, strict=True)]


def check_rate(rule: ThresholdRule, sample: Sample, *, world: World, table: Table) -> Check:
    """Judge the share of true values."""
    options = world.options
    strata = _strata(rule, sample, table, options)
    rates: dict[bool, Rate] = {}

    def decide(favour: bool) -> Verdict:
        values = sample.filled(rule.upward == favour)
        rate = _stratified(values, sample, strata, options) if strata else rate_of(values, sample, options)
        rates[favour] = rate
        if rate.estimator == "korn-graubard" and rate.cases < MIN_CLUSTERS and rule.stat != "point":
            raise GateError(
                f"korn-graubard needs {MIN_CLUSTERS} cases, there are {rate.cases}: use clopper-pearson"
            )
        return _rate_verdict(rule, rate, options)

    verdict, word = settle(sample.missing, decide)
    rate = rates[False]
    if verdict != "ERROR" and rate.cases < options.min_n:
        return too_few(rule.metric, rate.cases, options)
    fraction = None if rate.successes is None else f"{rate.successes}/{rate.cases}"
    return Check(
        verdict=verdict,
        decision=_rate_line(rule, rate, options) + word,
        slice=rule.metric.slice,
        metric=label(rule.metric),
        estimator=f"{rate.estimator}, {'all samples' if world.every_sample else 'first sample of each case'}",
        cases=rate.cases,
        samples=len(sample.values),
        missing=sample.missing,
        successes=rate.successes,
        value=float(rate.value),
        exact=fraction,
        low=rate.low,
        high=rate.high,
        needed=_rate_needed(rule, rate, options) if verdict == "INCONCLUSIVE" else None,
        coin_toss=rule.stat == "point" and rate.low <= float(rule.limit) <= rate.high,
    )


def _rate_verdict(rule: ThresholdRule, rate: Rate, options: Options) -> Verdict:
    if rule.stat == "point":
        return "PASS" if compare(rate.value, rule) else "FAIL"
    if rate.successes is None:
        return bound_verdict(rule, rate.low, rate.high)
    reaches = exact.lower_bound_reaches if rule.upward else exact.upper_bound_reaches
    refutes = exact.upper_bound_reaches if rule.upward else exact.lower_bound_reaches
    k, n, level = rate.successes, rate.cases, options.level
    if reaches(k, n, rule.limit, confidence=level, strictly=rule.strictly):
        return "PASS"
    return (
        "FAIL" if refutes(k, n, rule.limit, confidence=level, strictly=not rule.strictly) else "INCONCLUSIVE"
    )


def _rate_line(rule: ThresholdRule, rate: Rate, options: Options) -> str:
    if rule.stat == "point":
        shown = f"{rate.successes}/{rate.cases} = " if rate.successes is not None else ""
        held = compare(rate.value, rule)
        return f"{shown}{number(rate.value)} {relation(held, rule.comparator)} {rule.threshold}"
    end = rate.low if rule.upward else rate.high
    held = _rate_verdict(rule, rate, options) == "PASS"
    side = "lower" if rule.upward else "upper"
    line = f"{side} end {number(end)} {relation(held, rule.comparator)} {rule.threshold}"
    if rate.successes is None or not 0 < rule.limit < 1:
        return line
    hits = rate.successes if rule.upward else rate.cases - rate.successes
    limit = rule.limit if rule.upward else 1 - rule.limit
    tail = exact.upper_tail(hits, rate.cases, limit)
    sign = ">=" if rule.upward else "<="
    return (
        f"{line}: P(X {sign} {rate.successes} | n={rate.cases}, p={rule.threshold}) = {tail:.4g} "
        f"{'<=' if held else '>'} {number((1 - options.level) / 2)}"
    )


def _rate_needed(rule: ThresholdRule, rate: Rate, options: Options) -> int | None:
    value, limit = rate.value, rule.limit
    if not rule.upward:
        value, limit = 1 - value, 1 - limit
    return power.cases_for_lower_bound(limit, float(value), confidence=options.level)


def check_pass_at_k(
    rule: ThresholdRule, metric: Metric, reading: PassAtK, *, world: World, table: Table
) -> Check:
    """Judge pass@k or pass^k over all samples of each case."""
    k, every = reading.k, reading.every
    sample = table.sample(metric, rule.metric, SUCCESS, kind="bool", every_sample=True)
    codes = sample.codes
    counts = np.bincount(codes)
    if counts.min() < k:
        raise GateError(f"{rule.metric.name}@{k} needs {k} samples a case; a case has {counts.min()}")
    found: dict[bool, tuple[Rate, list[Fraction]]] = {}

    def decide(favour: bool) -> Verdict:
        hits = np.bincount(codes, weights=sample.filled(rule.upward == favour)).astype(np.int64)
        scores = [_chance(int(n), int(c), k, every=every) for n, c in zip(counts, hits, strict=True)]
        confidence, cases = float(world.options.confidence), len(scores)
        if all(score in (0, 1) for score in scores):  # one draw of k a case: a count again, and exact
            total = int(sum(scores))
            low, high = clopper_pearson(total, cases, confidence=confidence)
            rate = Rate(Fraction(total, cases), low, high, cases, total, "clopper-pearson")
        else:
            estimate = clustered_proportion([float(s) for s in scores], cases, confidence=confidence)
            value = sum(scores, Fraction(0)) / cases
            rate = Rate(value, estimate.low, estimate.high, cases, None, "korn-graubard")
        found[favour] = rate, scores
        return _rate_verdict(rule, rate, world.options)

    verdict, word = settle(sample.missing, decide)
    rate = found[False][0]
    return Check(
        verdict=verdict,
        decision=_rate_line(rule, rate, world.options) + word,
        slice=rule.metric.slice,
        metric=label(rule.metric),
        estimator=f"{rate.estimator}, {'all' if every else 'any'} of {k} samples, unbiased",
        cases=rate.cases,
        samples=len(sample.values),
        missing=sample.missing,
        successes=rate.successes,
        value=float(rate.value),
        low=rate.low,
        high=rate.high,
        needed=_rate_needed(rule, rate, world.options) if verdict == "INCONCLUSIVE" else None,
        coin_toss=rule.stat == "point" and rate.low <= float(rule.limit) <= rate.high,
    )


def _chance(samples: int, correct: int, k: int, *, every: bool) -> Fraction:
    """pass@k or pass^k of one case, exactly."""
    if every:
        return Fraction(math.comb(correct, k), math.comb(samples, k))
    return 1 - Fraction(math.comb(samples - correct, k), math.comb(samples, k))


# -- aggregates with weights -------------------------------------------------------------------------


def _strata(
    rule: ThresholdRule, sample: Sample, table: Table, options: Options
) -> list[tuple[Fraction, NDArray[np.int64]]]:
    """Weight and positions of each slice, for an aggregate that is not over cases; empty for one that is."""
    weights = options.aggregate_weights
    if rule.scope != "aggregate" or weights == "micro":
        return []
    names = table.outcomes.slices
    if not isinstance(weights, str):
        for name in weights:
            table.cases(name)  # an unknown slice is an error that names the nearest
        names = tuple(weights)
    raw = [Fraction(1) if isinstance(weights, str) else Fraction(weights[name]) for name in names]
    total = sum(raw, Fraction(0))
    of_slice = table.outcomes.slice_of_case[sample.case]
    positions = [np.flatnonzero(of_slice == table.outcomes.slices.index(name)) for name in names]
    return [(weight / total, where) for weight, where in zip(raw, positions, strict=True)]


def _stratified(
    values: NDArray[np.bool_],
    sample: Sample,
    strata: Sequence[tuple[Fraction, NDArray[np.int64]]],
    options: Options,
) -> Rate:
    """A weighted mean of the slices' rates; Clopper-Pearson at its effective size (Korn and Graubard 1998).

    The size is p (1 - p) over the variance of the weighted mean, and never more than the Kish size
    ``1 / sum(w**2 / n)``, which is what it is where a slice shows no spread. *Covered*: nearly nominal for slices of
    some dozens of cases. *Not covered*: exactness; ``micro`` has it.
    """
    value, variance, kish = Fraction(0), 0.0, 0.0
    for weight, where in strata:
        inside = Sample(values[where], sample.present[where], sample.case[where])
        rate = rate_of(values[where], inside, options)
        value += weight * rate.value
        variance += float(weight * weight * rate.value * (1 - rate.value)) / rate.cases
        kish += float(weight * weight) / rate.cases
    p = float(value)
    size = 1 / kish
    if variance > 0:
        size = min(size, p * (1 - p) / variance)
    low, high = _effective_interval(p, size, float(options.confidence))
    return Rate(value, low, high, sample.cases, None, "stratified korn-graubard")


def _effective_interval(value: float, size: float, confidence: float) -> tuple[float, float]:
    tail, hits = (1 - confidence) / 2, value * size
    low = 0.0 if hits <= 0 else float(special.betaincinv(hits, size - hits + 1, tail))
    high = 1.0 if hits >= size else float(special.betaincinv(hits + 1, size - hits, 1 - tail))
    return low, high
