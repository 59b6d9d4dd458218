"""What N requests in H hours can show, and cannot: before anything is started.

Here: the figures of ``posttrain rollout plan``. Not here: their mathematics (``detection``), their layout
(``plan_text``). For every rule of the contract and every stage: the chance that the rollback has come by the end of the
stage, at a grid of true values, and the requests that it takes. Requests are the candidate's own answers; what the
whole route must have for that is said stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from scipy import special

from posttrain.core.buckets import BUCKETS
from posttrain.promotion.rules import Contract
from posttrain.rollouts.detection import (
    Detection,
    count_detection,
    looks_of,
    rate_detection,
    ratio_detection,
)
from posttrain.rollouts.records import (
    EvidenceTrigger,
    IncidentTrigger,
    RateTrigger,
    RatioTrigger,
    Stage,
    Trigger,
)
from posttrain.rollouts.registered import register, stages_of
from posttrain.rollouts.triggers import rule_of_three

STAGING_RULES = """\
canary.abandon_rate.point <= 0.05
canary.safety_incidents.count == 0
canary.latency_p95_ms.point <= 950
canary.cost_per_1k_tokens_usd.point <= 0.022
"""
"""What is planned where no contract is given."""

_RATE_GRID = (0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 2.0)
"""True rates, in limits."""
_INCIDENT_GRID = (1e-5, 1e-4, 1e-3, 1e-2)
_RATIO_GRID = (0.95, 1.0, 1.02, 1.05, 1.1, 1.25)
"""True ratios, in limits."""
SPREAD = 0.5
"""Assumed of a ratio: standard deviation of one request's excess over the limit, in what is allowed for a request."""
_RATIO_LOOKS = 200


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """What a stage takes."""

    label: str
    share: int
    requests: int
    """Answers of the candidate that it needs."""
    together: int
    """Of this and the canary stages before it: what evidence has by its end."""
    hours: float
    """How long it takes, at ``traffic`` requests an hour on the route."""
    expected: float
    """Answers that the candidate gives in that time."""
    traffic_needed: float
    """Requests an hour on the route at which it takes no longer than its least time."""


@dataclass(frozen=True, slots=True)
class Point:
    """A trigger at one true value."""

    value: float
    detection: Detection
    by_stage: tuple[float, ...]
    """The chance that it has fired by the end of each canary stage."""
    holds: float
    """The chance that the rule holds as a point over the whole window, which production needs."""
    at_limit: bool = False
    """Whether this is a candidate exactly at its limit, so that every rollback is a false one."""


@dataclass(frozen=True, slots=True)
class PlannedTrigger:
    """A trigger over a grid of true values."""

    trigger: Trigger
    points: tuple[Point, ...]
    alpha: float | None
    """Its share of the error; None for a hard trip."""
    unseen_rate: float | None = None
    """Of a hard trip that allows none: the rate that no incident at all still allows, with 95 %."""

    @property
    def false_rollback(self) -> float | None:
        """The chance of a rollback of a candidate that is exactly at its limit."""
        return next((point.detection.probability for point in self.points if point.at_limit), None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What N requests in H hours can show under a contract."""

    contract: str
    """Its digest."""
    requests: int
    hours: float
    looks: int | None
    """None: after every request."""
    traffic: float
    """Requests an hour on the route."""
    alpha_rollback: float
    stages: tuple[PlannedStage, ...]
    triggers: tuple[PlannedTrigger, ...]
    unwatched: tuple[str, ...]

    @property
    def total_hours(self) -> float:
        """From the first shadow copy to the end of the last stage."""
        return math.fsum(stage.hours for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "contract": self.contract,
            "requests": self.requests,
            "hours": self.hours,
            "looks": self.looks or "every request",
            "traffic_per_hour": self.traffic,
            "total_hours": self.total_hours,
            "alpha_rollback": self.alpha_rollback,
            "stages": [
                {name: getattr(stage, name) for name in PlannedStage.__dataclass_fields__}
                for stage in self.stages
            ],
            "triggers": [_trigger_json(planned) for planned in self.triggers],
            "unwatched": list(self.unwatched),
        }


def make_plan(
    contract: Contract,
    *,
    requests: int = 5000,
    hours: float = 24.0,
    traffic: float | None = None,
    looks: int | None = None,
) -> Plan:
    """The plan. ``traffic``: requests an hour on the route; None: the least at which no stage takes longer than its
    least time. ``looks``: None looks after every request, as the running rollout does."""
    options = replace(contract.options, canary_min_n=requests, canary_hours=Decimal(str(hours)))
    stages = stages_of(options)
    needed = max(_traffic_needed(stage) for stage in stages)
    planned = _stages(stages, needed if traffic is None else traffic)
    ends = tuple(stage.together for stage in planned if stage.label.startswith("canary"))
    triggers, unwatched = register(contract)
    alpha = float(options.alpha_rollback)
    each = alpha / max(1, sum(isinstance(trigger, EvidenceTrigger) for trigger in triggers))
    rules = [trigger for trigger in triggers if trigger.rule]
    return Plan(
        contract=contract.digest,
        requests=requests,
        hours=hours,
        looks=looks,
        traffic=needed if traffic is None else traffic,
        alpha_rollback=alpha,
        stages=planned,
        triggers=tuple(
            _plan(trigger, requests=requests, looks=looks, alpha=each, ends=ends) for trigger in rules
        ),
        unwatched=unwatched,
    )


def _traffic_needed(stage: Stage) -> float:
    if stage.kind not in ("shadow", "canary") or not stage.minimum_seconds:
        return 0.0
    return stage.minimum_requests / (stage.share / BUCKETS) / (stage.minimum_seconds / 3600)


def _stages(stages: Sequence[Stage], traffic: float) -> tuple[PlannedStage, ...]:
    planned, together = [], 0
    for stage in stages:
        if stage.kind == "gated":
            continue
        rate = traffic * stage.share / BUCKETS
        hours = max(stage.minimum_seconds / 3600, stage.minimum_requests / rate if rate else 0.0)
        together += stage.minimum_requests if stage.kind == "canary" else 0
        planned.append(
            PlannedStage(
                label=stage.label,
                share=stage.share,
                requests=stage.minimum_requests,
                together=together,
                hours=hours,
                expected=rate * hours,
                traffic_needed=_traffic_needed(stage),
            )
        )
    return tuple(planned)


def _plan(
    trigger: Trigger, *, requests: int, looks: int | None, alpha: float, ends: tuple[int, ...]
) -> PlannedTrigger:
    match trigger:
        case IncidentTrigger():
            return _plan_incident(trigger, requests=requests, ends=ends)
        case RateTrigger():
            return _plan_rate(trigger, looks_of(requests, looks), alpha=alpha, ends=ends)
        case RatioTrigger():
            thinned = looks_of(requests, min(looks or _RATIO_LOOKS, _RATIO_LOOKS))
            return _plan_ratio(trigger, thinned, alpha=alpha, ends=ends)
        case _:
            raise AssertionError("contracts make no other trigger")


def _plan_incident(trigger: IncidentTrigger, *, requests: int, ends: tuple[int, ...]) -> PlannedTrigger:
    points = []
    for rate in _INCIDENT_GRID:
        found = count_detection(trigger.limit, rate, looks=looks_of(requests))  # a trip needs no look
        points.append(_point(rate, found, ends, holds=1 - found.probability))
    unseen = rule_of_three(requests) if trigger.limit == 0 else None
    return PlannedTrigger(trigger, tuple(points), None, unseen)


def _plan_rate(
    trigger: RateTrigger, looks: tuple[int, ...], *, alpha: float, ends: tuple[int, ...]
) -> PlannedTrigger:
    limit, requests = trigger.limit, looks[-1]
    points = []
    for step in _RATE_GRID:
        if (rate := limit * step) < 1:
            found = rate_detection(limit, rate, alpha=alpha, looks=looks)
            holds = float(special.bdtr(math.floor(limit * requests + 1e-9), requests, rate))
            points.append(_point(rate, found, ends, holds=holds, at_limit=step == 1))
    return PlannedTrigger(trigger, tuple(points), alpha)


def _plan_ratio(
    trigger: RatioTrigger, looks: tuple[int, ...], *, alpha: float, ends: tuple[int, ...]
) -> PlannedTrigger:
    # Stages are seen at their ends too, however few the looks are.
    looks = tuple(sorted({*looks, *(end for end in ends if end <= looks[-1])}))
    points = []
    for step in _RATIO_GRID:
        found = ratio_detection(
            step - 1, SPREAD, alpha=alpha, looks=looks, planned=trigger.planned, minimum=trigger.minimum
        )
        holds = float(special.ndtr((1 - step) / SPREAD * math.sqrt(looks[-1])))
        points.append(_point(trigger.limit * step, found, ends, holds=holds, at_limit=step == 1))
    return PlannedTrigger(trigger, tuple(points), alpha)


def _point(
    value: float, detection: Detection, ends: tuple[int, ...], *, holds: float, at_limit: bool = False
) -> Point:
    return Point(value, detection, tuple(detection.by(end) for end in ends), holds, at_limit)


def _trigger_json(planned: PlannedTrigger) -> dict[str, Any]:
    trigger = planned.trigger
    return {
        "name": trigger.name,
        "kind": trigger.kind,
        "rule": trigger.rule,
        "alpha": planned.alpha,
        "false_rollback": planned.false_rollback,
        "rate_that_none_allows": planned.unseen_rate,
        "true_values": [
            {
                "value": point.value,
                "detection": point.detection.probability,
                "by_stage": list(point.by_stage),
                "median_requests": point.detection.median,
                "holds_at_the_end": point.holds,
            }
            for point in planned.points
        ],
    }
