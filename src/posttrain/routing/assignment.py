"""Who gets which answer: pure arithmetic on a snapshot.

Here: buckets to targets. Not here: reading a unit from a request (``gateway``), changing shares
(``rollout``).

A canary takes its users first; an experiment splits those that remain; shadow copies are drawn independently of both
and change nothing that a user sees.
"""

from __future__ import annotations

from typing import NamedTuple

from posttrain.core.buckets import BUCKETS, bucket
from posttrain.routing.records import Experiment, Lane, Route, Target


class Assignment(NamedTuple):
    """Which target answers a unit, and as what."""

    lane: Lane
    arm: str
    """``control`` or ``candidate`` beside a canary, an experiment's arm, else empty."""
    target: Target
    shadow: Target | None
    """Who answers beside it, unseen."""


def assign(route: Route, unit: str) -> Assignment:
    """Who answers ``unit`` on this route."""
    shadow = route.shadow
    beside = shadow.target if shadow is not None and bucket(shadow.salt, unit) < shadow.share else None
    canary = route.canary
    if canary is not None and bucket(canary.salt, unit) < canary.share:
        return Assignment("canary", "candidate", canary.target, beside)
    if route.experiment is not None:
        arm, target = _arm(route.experiment, unit)
        return Assignment("production", arm, target, beside)
    return Assignment("production", "" if canary is None else "control", route.production, beside)


def _arm(experiment: Experiment, unit: str) -> tuple[str, Target]:
    total = sum(arm.weight for arm in experiment.arms)
    # Whole numbers throughout: an arm's share is exact to one bucket, and the last arm takes no rounding.
    place, reached = bucket(experiment.salt, unit) * total, 0
    for arm in experiment.arms:
        reached += arm.weight * BUCKETS
        if place < reached:
            return arm.name, arm.target
    raise AssertionError("weights add to their sum")
