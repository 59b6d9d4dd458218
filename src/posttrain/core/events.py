"""Progress events: what a long piece of work tells whoever watches.

Here: the record and the sink protocol. Not here: how a terminal draws them (``cli``). A stage emits; it never prints.
Kinds used by the runner and the stages are listed in ``EVENT_KINDS``; a new kind is added there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

EventKind: TypeAlias = Literal[
    "run_started",  # run, recipe, stages=[names]
    "stage_started",  # key
    "stage_reused",  # key, outputs
    "stage_resumed",  # key, from_step
    "progress",  # step, total, plus any of: reward, accuracy, tokens_per_second, loss, phase
    "note",  # text: one line worth reading
    "warning",  # text, hint
    "stage_finished",  # key, outputs, seconds
    "stage_failed",  # error, hint
    "run_finished",  # run, status, outputs, seconds
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, JSON-ready."""

    kind: EventKind
    stage: str | None = None
    """Name of the stage in the recipe; None for the run as a whole."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Kind-specific values: text, numbers, lists of them."""


EventSink: TypeAlias = Callable[[Event], None]
"""Receives each event, in order, in the emitting thread; must not raise."""


def ignore_events(event: Event) -> None:
    """The sink that drops everything."""
