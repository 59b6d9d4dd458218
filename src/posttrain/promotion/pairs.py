"""Rules that compare with the baseline, case by case: ``delta.`` and ``no_regressions_on``.

Here: pairing, McNemar, Tango. Not here: a candidate by itself (``checks``). Pairs are of the first sample of each case;
under ``korn-graubard`` of the mean over samples, with sign flips over cases in McNemar's place.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from posttrain.core.errors import UsageError
from posttrain.core.suggest import did_you_mean
from posttrain.promotion.errors import GateError
from posttrain.promotion.judging import (
    bound_verdict,
    compare,
    error_check,
    guarded,
    label,
    number,
    relation,
    settle,
)
from posttrain.promotion.metrics import Metric, Proportion, find_metric
from posttrain.promotion.rates import case_means
from posttrain.promotion.records import Check, Verdict
from posttrain.promotion.rules import MetricCall, NoRegressionRule, ThresholdRule
from posttrain.promotion.world import Sample, World
from posttrain.statistics import exact, power
from posttrain.statistics.intervals import paired_clustered_difference, tango_interval, tango_score

_SUCCESS = MetricCall("success", at=1)


class Difference(NamedTuple):
    """A paired difference."""

    value: Fraction
    low: float
    high: float
    cases: int
    gained: int
    lost: int
    differences: list[Fraction]
    """Of each case; only where there are several samples, else empty."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same column of candidate and baseline over the same cases."""

    after: Sample
    before: Sample

    @property
    def missing(self) -> int:
        """Pairs of which a side is missing."""
        return int(np.count_nonzero(~(self.after.present & self.before.present)))

    def filled(self, *, high: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Both sides, what is missing as makes the difference high, or low."""
        return self.after.filled(high), self.before.filled(not high)


def pair_up(world: World, metric: Metric, call: MetricCall) -> Pair:
    """The pairs of a call. Raises GateError where there is no comparable baseline, or the metric is no rate."""
    reading = metric.read(call)
    if not isinstance(reading, Proportion):
        raise GateError(f"a difference is of rates, and {label(call)} is none")
    before = world.paired_baseline()
    every = world.every_sample
    after_sample, before_sample = (
        table.sample(metric, call, reading.column, kind="bool", every_sample=every)
        for table in (world.candidate, before)
    )
    if len(after_sample.values) != len(before_sample.values):
        raise GateError(
            "the candidate and the baseline have different numbers of samples: evaluate both alike"
        )
    return Pair(after_sample, before_sample)


def difference_of(pair: Pair, *, high: bool, world: World) -> Difference:
    """The difference with its interval: Tango's, or MOVER over clusters for several samples a case."""
    after, before = pair.filled(high=high)
    confidence = float(world.options.confidence)
    gained = int(np.count_nonzero(after & ~before))
    lost = int(np.count_nonzero(~after & before))
    if not world.every_sample or pair.after.cases == len(after):
        tango = tango_interval(gained, lost, len(after), confidence=confidence)
        value = Fraction(gained - lost, len(after))
        return Difference(value, tango.low, tango.high, len(after), gained, lost, [])
    means_after, means_before = (
        case_means(after, pair.after),
        case_means(before, pair.before),
    )
    estimate = paired_clustered_difference(
        [float(m) for m in means_before],
        [float(m) for m in means_after],
        observations=(len(before), len(after)),
        confidence=confidence,
    )
    differences = [a - b for a, b in zip(means_after, means_before, strict=True)]
    value = sum(differences, Fraction(0)) / len(differences)
    return Difference(value, estimate.low, estimate.high, len(differences), gained, lost, differences)


def check_delta(rule: ThresholdRule, world: World) -> Check:
    """Judge a ``delta.`` rule."""
    return guarded(rule, world, lambda metric: _check_delta(rule, metric, world))


def _check_delta(rule: ThresholdRule, metric: Metric, world: World) -> Check:
    if rule.stat == "count":
        raise GateError("a difference has no count: write .point")
    pair = pair_up(world, metric, rule.metric)
    direction = _direction(rule, metric, world)
    upward = direction != "less" if rule.stat == "p_value" else rule.upward
    found: dict[bool, tuple[Difference, Fraction | float | None]] = {}

    def decide(favour: bool) -> Verdict:
        difference = difference_of(pair, high=upward == favour, world=world)
        p_value = None if rule.stat != "p_value" else _p_value(difference, direction)
        found[favour] = difference, p_value
        if rule.stat == "p_value":
            return _p_verdict(rule, difference, direction)
        if rule.stat == "point":
            return "PASS" if compare(difference.value, rule) else "FAIL"
        return bound_verdict(rule, difference.low, difference.high)

    verdict, word = settle(pair.missing, decide)
    difference, p_value = found[False]
    if verdict != "ERROR" and difference.cases < world.options.min_n:
        verdict, word = "INCONCLUSIVE", f"; {difference.cases} cases < min_n {world.options.min_n}"
    shown = "" if p_value is None else _p_line(difference, p_value, direction)
    check = _check_of(difference, pair, rule.metric)
    return check.revised(
        verdict=verdict,
        decision=_line(rule, difference, shown, held=verdict == "PASS") + word,
        estimator=_estimator(rule, difference, direction),
        p_value=None if p_value is None else float(p_value),
        needed=_needed(rule, difference, direction, world) if verdict == "INCONCLUSIVE" else None,
        coin_toss=rule.stat == "point" and difference.low <= float(rule.limit) <= difference.high,
    )


def _check_of(difference: Difference, pair: Pair, call: MetricCall) -> Check:
    before = pair.before.filled(True)
    return Check(
        verdict="ERROR",
        decision="",
        slice=call.slice,
        metric=f"delta.{label(call)}",
        cases=difference.cases,
        samples=len(pair.after.values),
        missing=pair.missing,
        successes=difference.gained - difference.lost,
        value=float(difference.value),
        exact=str(difference.value),
        low=difference.low,
        high=difference.high,
        baseline=float(np.count_nonzero(before) / len(before)),
        gained=difference.gained,
        lost=difference.lost,
    )


def _direction(rule: ThresholdRule, metric: Metric, world: World) -> exact.Alternative:
    """Which way a p-value looks: as the other rules on the same difference do, else as the metric is better."""
    if world.options.alternative == "two-sided":
        return "two-sided"
    for other in world.rules:
        if (
            isinstance(other, ThresholdRule)
            and other.scope == "delta"
            and other.metric == rule.metric
            and other.stat != "p_value"
        ):
            return "greater" if other.upward else "less"
    return "less" if metric.better == "lower" else "greater"


def _p_value(difference: Difference, direction: exact.Alternative) -> Fraction | float:
    if difference.differences:
        return exact.sign_flip(difference.differences, direction).p_value
    return exact.mcnemar(difference.gained, difference.lost, direction)


def _p_verdict(rule: ThresholdRule, difference: Difference, direction: exact.Alternative) -> Verdict:
    if rule.upward or rule.comparator == "==":
        raise GateError("a p-value is evidence where it is small: write p_value < 0.05")
    if difference.differences:
        passed = compare(exact.sign_flip(difference.differences, direction).p_value, rule)
    else:
        passed = exact.mcnemar_is_below(
            difference.gained, difference.lost, rule.limit, direction, strictly=rule.strictly
        )
    if direction == "two-sided":
        return "PASS" if passed else "INCONCLUSIVE"
    if passed:
        return "PASS"
    refuted = difference.high < 0 if direction == "greater" else difference.low > 0
    return "FAIL" if refuted else "INCONCLUSIVE"


def _line(rule: ThresholdRule, difference: Difference, p_value: str, *, held: bool) -> str:
    counts = f"({difference.gained} gained − {difference.lost} lost) / {difference.cases}"
    if difference.differences:
        counts = f"mean over {difference.cases} cases"
    against = f"{relation(held, rule.comparator)} {rule.threshold}"
    if rule.stat == "p_value":
        return f"{p_value} {against}"
    if rule.stat == "point":
        return f"{counts} = {number(difference.value)} {against}"
    end = difference.low if rule.upward else difference.high
    return f"{counts} = {number(difference.value)}, bound {number(end)} {against}"


def _p_line(difference: Difference, p_value: Fraction | float, direction: exact.Alternative) -> str:
    """The p-value with its formula."""
    gained, lost = difference.gained, difference.lost
    tail = f"P(X >= {lost if direction == 'less' else gained} | n={gained + lost}, p=0.5)"
    if direction == "two-sided":
        tail = f"2 × P(X >= {max(gained, lost)} | n={gained + lost}, p=0.5)"
    if difference.differences:
        tail = "sign flips over cases"
    return f"{tail} = {float(p_value):.4g}"


def _estimator(rule: ThresholdRule, difference: Difference, direction: exact.Alternative) -> str:
    if rule.stat == "p_value":
        return f"{'sign flips' if difference.differences else 'mcnemar exact'}, {direction}"
    return (
        "mover-korn-graubard, all samples" if difference.differences else "tango, first sample of each case"
    )


def _discordance(difference: Difference) -> float:
    return (difference.gained + difference.lost) / max(1, difference.cases)


def _needed(
    rule: ThresholdRule, difference: Difference, direction: exact.Alternative, world: World
) -> int | None:
    """Cases at which this difference, with this discordance, would pass four times in five."""
    sign = 1.0
    if (rule.stat == "p_value" and direction == "less") or (rule.stat != "p_value" and not rule.upward):
        sign = -1.0
    value, psi = sign * float(difference.value), _discordance(difference)
    if rule.stat == "p_value":
        level = float(rule.limit) / (2 if direction == "two-sided" else 1)
        return power.cases_for_difference(psi, abs(value) if direction == "two-sided" else value, level=level)
    margin = -sign * float(rule.limit)
    return power.cases_for_non_inferiority(psi, value, margin, confidence=float(world.options.confidence))


# -- no regressions ------------------------------------------------------------------------------------


def check_no_regressions(rule: NoRegressionRule, world: World) -> tuple[Check, ...]:
    """Judge ``no_regressions_on``: one check a slice, and one for hard cases that are in none of them."""
    checks = [_guarded_slice(rule, name, world) for name in rule.slices]
    ids = world.candidate.outcomes.case_ids
    known = set(ids) if rule.hard else set()
    for case in rule.hard:
        if case not in known:
            checks.append(error_check(_SUCCESS, f"no hard case {case!r}; {did_you_mean(case, _some(ids))}"))
    return tuple(checks)


def _some(ids: tuple[str, ...]) -> tuple[str, ...]:
    """Enough ids to look for the nearest one among; comparing with 100,000 would take seconds."""
    return ids[:1000]


def _guarded_slice(rule: NoRegressionRule, name: str, world: World) -> Check:
    call = MetricCall("success", at=1, slice=name)
    try:
        return _check_slice(rule, call, world)
    except UsageError as error:
        return error_check(call, f"{error.message}{f'; {error.hint}' if error.hint else ''}")


def _check_slice(rule: NoRegressionRule, call: MetricCall, world: World) -> Check:
    options = world.options
    metric = find_metric(_SUCCESS, world.metrics or None)
    pair = pair_up(world, metric, call)
    margin = rule.margin if rule.margin is not None else options.margin_of(call.slice or "")
    critical = float(special.ndtri(0.5 + float(options.confidence) / 2))
    found: dict[bool, Difference] = {}

    def decide(favour: bool) -> Verdict:
        difference = difference_of(pair, high=favour, world=world)
        found[favour] = difference
        if difference.differences:
            above, below = difference.low > -margin, difference.high <= -margin
        else:
            score = tango_score(difference.gained, difference.lost, difference.cases, -float(margin))
            above, below = score > critical, score <= -critical
        return "PASS" if above else "FAIL" if below else "INCONCLUSIVE"

    verdict, word = settle(pair.missing, decide)
    difference = found[False]
    if verdict != "ERROR" and difference.cases < options.min_n:
        verdict, word = "INCONCLUSIVE", f"; {difference.cases} cases < min_n {options.min_n}"
    broken = _broken(rule, call, pair, world)
    if broken:
        verdict, word = "FAIL", f"; hard cases turned wrong: {', '.join(broken)}"
    held = {"PASS": ">", "FAIL": "<=" if not broken else "and"}.get(verdict, "<=")
    end = difference.high if verdict == "FAIL" and not broken else difference.low
    bound = "upper" if verdict == "FAIL" and not broken else "lower"
    needed = power.cases_for_non_inferiority(
        _discordance(difference), float(difference.value), float(margin), confidence=float(options.confidence)
    )
    check = _check_of(difference, pair, call)
    return check.revised(
        verdict=verdict,
        decision=f"({difference.gained} gained − {difference.lost} lost) / {difference.cases} = "
        f"{number(difference.value)}, {bound} end {number(end)} {held} −{margin}{word}",
        estimator="mover-korn-graubard" if difference.differences else "tango non-inferiority",
        margin=str(margin),
        needed=needed if verdict == "INCONCLUSIVE" else None,
    )


def _broken(rule: NoRegressionRule, call: MetricCall, pair: Pair, world: World) -> list[str]:
    """Hard cases of the slice that the baseline has right and the candidate has not. Raises GateError."""
    if not rule.hard:
        return []
    outcomes = world.candidate.outcomes
    after, before = pair.filled(high=False)
    wrong = set(pair.after.case[~after & before].tolist())
    missing = set(pair.after.case[~(pair.after.present & pair.before.present)].tolist())
    ours = set(world.candidate.cases(call.slice).tolist())
    position = {outcomes.case_ids[index]: index for index in ours}
    hard = [case for case in rule.hard if case in position]
    unknown = [case for case in hard if position[case] in missing]
    if unknown:
        raise GateError(f"the hard case {unknown[0]!r} was not scored: evaluate it again")
    return [case for case in hard if position[case] in wrong]
