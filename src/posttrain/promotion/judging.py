"""What every judgement shares: exact comparison, missing values, bounds that point the wrong way, words for people.

A value that is missing counts against the candidate. Where it would have to count for the candidate to pass, the check
is an ERROR: missing data never passes, and is never taken for a failure of the model either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from posttrain.core.errors import UsageError
from posttrain.promotion.errors import GateError
from posttrain.promotion.metrics import Metric, find_metric
from posttrain.promotion.records import Check, Verdict
from posttrain.promotion.rules import MetricCall, Options, ThresholdRule
from posttrain.promotion.world import World


def guarded(rule: ThresholdRule, world: World, judge: Callable[[Metric], Check]) -> Check:
    """``judge`` with the rule's metric, and any reason that it cannot be judged as an ERROR."""
    try:
        metric = find_metric(rule.metric, world.metrics or None)
        if problem := misdirection(rule, metric):
            raise GateError(problem)
        return judge(metric)
    except UsageError as error:
        return error_check(rule.metric, f"{error.message}{f'; {error.hint}' if error.hint else ''}")


def error_check(call: MetricCall, why: str) -> Check:
    """A check that could not be made."""
    return Check(verdict="ERROR", decision=why, slice=call.slice, metric=label(call))


def label(call: MetricCall) -> str:
    """The metric without its slice, for tables."""
    return str(MetricCall(call.name, call.part, call.at, None, call.arguments, call.options))


def misdirection(rule: ThresholdRule, metric: Metric) -> str | None:
    """Why a bound asks for the end of the interval that little data push through; None where it does not."""
    ends = {"lower_ci": True, "upper_ci": False}
    if rule.stat not in ends:
        return None
    if ends[rule.stat] != rule.upward:
        other = "upper_ci" if rule.stat == "lower_ci" else "lower_ci"
        return (
            f"{rule.stat} {rule.comparator} points the wrong way: the fewer the cases, the easier it would pass; "
            f"write {other} {rule.comparator}"
        )
    if metric.better in ("higher", "lower") and (metric.better == "higher") != rule.upward:
        right = "lower_ci >=" if metric.better == "higher" else "upper_ci <="
        return f"of {metric.name} {metric.better} is better: write {right}"
    return None


def compare(value: Fraction | float, rule: ThresholdRule) -> bool:
    """``value cmp threshold``, exactly."""
    limit: Fraction | float = rule.limit
    match rule.comparator:
        case ">=":
            return value >= limit
        case "<=":
            return value <= limit
        case "==":
            return value == limit
        case "<":
            return value < limit
        case ">":
            return value > limit


def settle(missing: int, decide: Callable[[bool], Verdict]) -> tuple[Verdict, str]:
    """The verdict, with what is missing once counted against the candidate and once for it; and a word on that.

    ``decide(favour)`` judges with the missing values in the candidate's favour or not.
    """
    against = decide(False)
    if missing == 0 or against == "PASS":
        return against, "" if missing == 0 else f"; {missing} missing, counted against the candidate"
    favour = decide(True)
    if favour == "PASS":
        return "ERROR", f"; {missing} missing would decide: evaluate them again"
    return favour, f"; {missing} missing would not change it"


def bound_verdict(rule: ThresholdRule, low: float, high: float) -> Verdict:
    """A bound in floats against the threshold: PASS, FAIL where the other end is on the wrong side too."""
    limit = float(rule.limit)
    if rule.upward:
        passed = low > limit if rule.strictly else low >= limit
        refuted = high <= limit if rule.strictly else high < limit
    else:
        passed = high < limit if rule.strictly else high <= limit
        refuted = low >= limit if rule.strictly else low > limit
    return "PASS" if passed else "FAIL" if refuted else "INCONCLUSIVE"


def number(value: Fraction | float | None) -> str:
    """A number for people."""
    if value is None:
        return "–"
    text = f"{float(value):.6g}"
    return text.replace("-", "−")


def relation(held: bool, comparator: str) -> str:
    """The comparison that is true."""
    opposite = {">=": "<", "<=": ">", "==": "!=", "<": ">=", ">": "<="}
    return comparator if held else opposite[comparator]


def too_few(call: MetricCall, cases: int, options: Options) -> Check:
    """The check of fewer cases than the contract's ``min_n``."""
    return Check(
        verdict="INCONCLUSIVE",
        decision=f"{cases} cases < min_n {options.min_n}",
        slice=call.slice,
        metric=label(call),
        cases=cases,
        needed=options.min_n,
    )


def finite(value: float) -> float | None:
    """The value, or None for an infinite one: there is no such bound."""
    return value if math.isfinite(value) else None
