"""What is agreed before a release takes traffic: what the service promises, and when it goes back.

Here: named fields only; free text would be agreed on by nobody's machine. Not here: measuring any of it, or acting on
it. To add a field: give it a default that means what an old policy meant.
"""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from posttrain.core.documents import Record
from posttrain.releases.fields import Name, unique

TriggerKind: TypeAlias = Literal["hard_trip", "anytime_valid", "health"]
TriggerAction: TypeAlias = Literal["rollback", "hold", "alert"]


class Limit(Record):
    """A bound on one metric."""

    metric: Name
    """``error_rate``, ``p99_latency_ms``…"""
    slice: Name | None = None
    """None: all traffic."""
    at_most: float | None = None
    """The value may reach this."""
    at_least: float | None = None
    """The value may fall to this."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"{self.metric}: give at_most, at_least or both")
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise ValueError(f"{self.metric}: at_least {self.at_least} is above at_most {self.at_most}")
        return self


class SloPolicy(Record):
    """What the service promises while this release answers."""

    objectives: tuple[Limit, ...] = Field(min_length=1)
    """What is promised, one limit for each metric and slice."""
    window_seconds: int = Field(3600, ge=1)
    """Over which each is measured."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        unique("objectives", (f"{limit.metric}({limit.slice or 'all'})" for limit in self.objectives))
        return self


class Trigger(Record):
    """What makes a release go back by itself; agreed before it takes traffic."""

    name: Name
    """What the journal calls it."""
    kind: TriggerKind
    """``hard_trip``: an incident, one is enough; ``anytime_valid``: a sequential test against production;
    ``health``: the experiment itself is broken (no data, wrong split)."""
    metric: Name
    """What is watched."""
    slice: Name | None = None
    """None: all traffic."""
    above: float | None = None
    """It fires above this value…"""
    below: float | None = None
    """…or below this; one of the two."""
    window_seconds: int = Field(300, ge=1)
    """Over which the metric is taken."""
    min_requests: int = Field(0, ge=0)
    """Fewer than this say nothing."""
    action: TriggerAction = "rollback"
    """``rollback``, ``hold`` (no more traffic than now) or ``alert``."""

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"{self.name}: give one of above and below")
        return self


class RollbackPolicy(Record):
    """When production goes back, and to what."""

    limits: tuple[Limit, ...] = ()
    """One that is broken over ``limit_window_seconds`` is a reason to go back."""
    limit_window_seconds: int = Field(300, ge=1)
    """Over which limits are taken."""
    triggers: tuple[Trigger, ...] = ()
    """What makes it go back by itself."""
    to: Name = "previous"
    """``previous``: what held the lane before; or the name of a release."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.limits and not self.triggers:
            raise ValueError("a rollback policy has at least one limit or trigger")
        unique("limits", (f"{limit.metric}({limit.slice or 'all'})" for limit in self.limits))
        unique("triggers", (trigger.name for trigger in self.triggers))
        return self
