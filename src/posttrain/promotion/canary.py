"""Rules on production traffic: ``canary.``.

Here: the point at the end of the window, and the trip wire that may fire at any moment before. Not here: who gets which
traffic (``serving``), alerts (``monitoring``).

A window's point rule holds only at its end: a point that is looked at every hour is above its limit by chance sooner
or later (57 % of windows of a model at 4.5 %, limit 5 %, 24 looks), and one that is looked at early knows nothing. So
until the window has ``canary_min_n`` requests and ``canary_hours`` hours, a rule is FAIL where the evidence tripped and
INCONCLUSIVE otherwise. Evidence is an e-process (``evaluation.sequential``), valid at every look; the triggers of one
contract share ``alpha_rollback``. A count that may only grow trips at once.

*Covered*: rates, percentiles (``p95 <= 950`` is a rate of 5 % above 950), counts. *Not covered by evidence*: ratios of
sums, whose point is judged at the end only.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from posttrain.core.errors import UsageError
from posttrain.evaluation.outcomes import Evaluated
from posttrain.promotion.checks import judge_reading
from posttrain.promotion.errors import GateError
from posttrain.promotion.judging import guarded, number
from posttrain.promotion.metrics import Metric, Proportion, Quantile, Reading, find_metric
from posttrain.promotion.records import Check, SampleRatio
from posttrain.promotion.rules import Options, ThresholdRule
from posttrain.promotion.world import Table, World
from posttrain.statistics.sequential import Trip, rate_trip, sample_ratio_p_value

TIME_COLUMN = "at_ms"
"""When a request came, milliseconds of any clock that only goes forward; an int64 column of canary records."""
_HOUR_MS = 3_600_000


def check_canary(rule: ThresholdRule, world: World) -> Check:
    """Judge a ``canary.`` rule."""
    return guarded(rule, world, lambda metric: _check(rule, metric, world))


def sample_ratio(evaluated: Evaluated, options: Options) -> SampleRatio | None:
    """Whether traffic was split as meant; None where fewer than two arms are recorded."""
    arms = evaluated.arms
    if len(arms) < 2 or sum(arm.units for arm in arms) == 0:
        return None
    p_value = sample_ratio_p_value([arm.units for arm in arms], [arm.weight for arm in arms])
    return SampleRatio(
        counts={arm.name: arm.units for arm in arms},
        weights={arm.name: arm.weight for arm in arms},
        p_value=p_value,
        valid=p_value >= float(options.srm_p),
    )


def _check(rule: ThresholdRule, metric: Metric, world: World) -> Check:
    if world.canary is None:
        raise GateError("no data: there are no canary records; give them with --canary")
    if rule.stat == "p_value":
        raise GateError("a p-value compares with the baseline: write delta.")
    table, options = world.canary, world.options
    reading = metric.read(rule.metric)
    check = judge_reading(rule, metric, reading, world=world, table=table)
    check = check.revised(metric=f"canary.{check.metric}")
    if check.verdict == "ERROR":
        return check
    hours, requests = _hours(table), check.samples
    still = [] if requests >= options.canary_min_n else [f"{requests} of {options.canary_min_n} requests"]
    if hours < float(options.canary_hours):
        still.append(f"{hours:.1f} of {options.canary_hours} hours")
    trip = _trip(rule, metric, reading, world=world)
    if trip is not None and trip.at is not None:
        return check.revised(
            verdict="FAIL",
            needed=None,
            decision=f"{check.decision}; tripped at request {trip.at}: log e {trip.log_evidence:.4g} >= "
            f"{trip.needed:.4g}",
        )
    notes = check.notes + _notes(rule, check, trip)
    grown = rule.stat == "count" and not rule.upward and check.verdict == "FAIL"
    if still and not grown:
        return check.revised(
            verdict="INCONCLUSIVE",
            needed=options.canary_min_n,
            notes=notes,
            decision=f"{check.decision}; the window is not over: {', '.join(still)}",
        )
    return check.revised(notes=notes)


def _notes(rule: ThresholdRule, check: Check, trip: Trip | None) -> tuple[str, ...]:
    notes = []
    if trip is not None:
        notes.append(
            f"evidence against it: log e at most {number(trip.log_evidence)}, trips at {trip.needed:.4g}"
        )
    if rule.stat == "count" and check.value == 0 and check.samples:
        most = -math.expm1(math.log(0.05) / check.samples)
        notes.append(f"none in {check.samples} still allows a rate of {most:.2g} (one-sided 95 %)")
    return tuple(notes)


def _hours(table: Table) -> float:
    """How long the window lasted: the fact ``window_hours`` where the records state it, else first to last request."""
    stated = table.outcomes.evaluated.facts.get("window_hours")
    if isinstance(stated, int | float) and not isinstance(stated, bool):
        return float(stated)
    at = _times(table)
    return float(at.max() - at.min()) / _HOUR_MS


def _times(table: Table) -> NDArray[np.int64]:
    series = table.outcomes.metrics.get(TIME_COLUMN)
    if series is None or series.values.dtype.kind != "i" or not series.present.all():
        raise GateError(
            f"the canary records have no whole column {TIME_COLUMN!r}: the order of requests is not known"
        )
    return series.values


def _trip(rule: ThresholdRule, metric: Metric, reading: Reading, *, world: World) -> Trip | None:
    """The e-process over the requests in order of time; None for a reading that has none."""
    if world.canary is None or not isinstance(reading, Proportion | Quantile) or rule.stat == "count":
        return None
    table = world.canary
    kind = "bool" if isinstance(reading, Proportion) else "number"
    sample = table.sample(metric, rule.metric, reading.column, kind=kind, every_sample=False)
    if isinstance(reading, Proportion):
        limit = rule.limit if not rule.upward else 1 - rule.limit
        bad = sample.values if not rule.upward else ~sample.values
    else:
        limit = 1 - reading.quantile if not rule.upward else Fraction(reading.quantile)
        threshold = float(rule.limit)
        bad = sample.values > threshold if not rule.upward else sample.values < threshold
    if not 0 < limit < 1:
        return None
    at = _times(table)[table.first[sample.case]]
    order = np.argsort(at, kind="stable")
    order = order[sample.present[order]]
    alpha = float(world.options.alpha_rollback) / max(1, triggers(world))
    return rate_trip(bad[order], float(limit), alpha=alpha)


def triggers(world: World) -> int:
    """Rules of the contract that have a trip wire of evidence; they share ``alpha_rollback``."""
    count = 0
    for rule in world.rules:
        if (
            isinstance(rule, ThresholdRule)
            and rule.scope == "canary"
            and rule.stat not in ("count", "p_value")
        ):
            try:
                reading = find_metric(rule.metric, world.metrics or None).read(rule.metric)
            except UsageError:  # that rule is an ERROR of its own
                continue
            count += isinstance(reading, Proportion | Quantile)
    return count
