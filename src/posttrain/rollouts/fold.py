"""What a rollout's events add up to: its state, as a pure function.

Here: ``fold``. Not here: what is allowed next (``steps``), where events come from (``journal``). Entries are taken in
the order of their numbers, each id once, so duplicated, late and reordered ones give the same state. An event that does
not fit the state, such as an advance that was decided before a trip and written after it, changes nothing and is listed
under ``ignored``: whoever comes first in the journal is right.

    DEV ──started──► GATED ──► SHADOW ──► CANARY(share)… ──► PRODUCTION ──completed──► over
      a GO decision │            held ⇄ resumed: HOLD, or INVALID without a way back
                    └── at any time: tripped, rolled_back ► ROLLED_BACK, latched until cleared · aborted ► ABORTED
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from posttrain.rollouts.events import (
    Aborted,
    Advanced,
    Cleared,
    Completed,
    Created,
    DecisionAttached,
    Entry,
    Event,
    Held,
    Resumed,
    RolledBack,
    SnapshotAcked,
    Started,
    Tripped,
)
from posttrain.rollouts.records import RolloutSpec, Stage
from posttrain.routing.records import Target

Phase: TypeAlias = Literal[
    "DEV", "GATED", "SHADOW", "CANARY", "PRODUCTION", "HOLD", "INVALID", "ROLLED_BACK", "ABORTED"
]
_PHASES: dict[str, Phase] = {
    "gated": "GATED",
    "shadow": "SHADOW",
    "canary": "CANARY",
    "production": "PRODUCTION",
}


class Entered(NamedTuple):
    """From this epoch on snapshots are of this stage."""

    epoch: int
    stage: int | None
    """None: the candidate is gone."""


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Where a rollout is."""

    stage: int | None = None
    """Index of the stage that it is in or was in last; None before it started."""
    entered: tuple[Entered, ...] = ()
    """Which epochs were which stage, in order."""
    since_ms: int = 0
    """When the stage was entered."""
    go: str | None = None
    """Digest of the GO decision that counts."""
    refusal: str | None = None
    """Why the last decision that was attached does not count."""
    hold: Held | None = None
    end: Literal["rolled_back", "aborted", "completed"] | None = None
    end_reason: str = ""
    tripped: str | None = None
    """The trigger that ended it."""
    confirmed: bool = False
    """Whether a rollback is known to have reached every worker."""
    latched: bool = False
    """A rollback that no person has looked at."""
    acked_epoch: int = 0
    """The highest that all workers were known to serve."""
    seq: int = 0
    """Number of the last entry."""
    ignored: tuple[str, ...] = ()
    """Events that came too late to mean anything."""

    @property
    def active(self) -> bool:
        """Whether the candidate is on its way: started, and not over."""
        return self.stage is not None and self.end is None

    def current(self, spec: RolloutSpec) -> Stage | None:
        """The stage whose share is in force; None before the start and after the end."""
        return spec.stages[self.stage] if self.stage is not None and self.end is None else None

    def serving(self, spec: RolloutSpec) -> Target | None:
        """What production is by this rollout."""
        last = self.stage is not None and spec.stages[self.stage].kind == "production"
        return spec.candidate if last and self.end in (None, "completed") else spec.production

    def phase(self, spec: RolloutSpec) -> Phase:
        """The state's name."""
        if self.end == "rolled_back":
            return "ROLLED_BACK"
        if self.end == "aborted":
            return "ABORTED"
        if self.stage is None:
            return "DEV"
        if self.hold is not None:
            return "INVALID" if self.hold.invalid else "HOLD"
        return _PHASES[spec.stages[self.stage].kind]

    def label(self, spec: RolloutSpec) -> str:
        """For people: ``HOLD at canary 5 %: no data``."""
        phase = self.phase(spec)
        if self.end is not None:
            name = "COMPLETED" if self.end == "completed" else phase
            return name + (f": {self.end_reason}" if self.end_reason else "")
        if self.stage is None:
            return phase
        label = spec.stages[self.stage].label
        return label if self.hold is None else f"{phase} at {label}: {self.hold.reason}"


def fold(spec: RolloutSpec, entries: Iterable[Entry]) -> RolloutState:
    """The state after ``entries``, which may come in any order and more than once."""
    state = RolloutState()
    seen = set[str]()
    for entry in sorted(entries, key=lambda entry: (entry.seq, entry.id)):
        if entry.id in seen:
            continue
        seen.add(entry.id)
        state = replace(state, seq=entry.seq)
        if entry.event is None:
            continue
        after = _apply(spec, state, entry.event, entry.at_ms)
        if after is None:
            note = f"#{entry.seq} {entry.event.kind} at {state.label(spec)}"
            after = replace(state, ignored=(*state.ignored, note))
        state = after
    return state


def why_not(spec: RolloutSpec, event: DecisionAttached) -> str | None:
    """Why a decision does not let this rollout start; None where it does."""
    if spec.decision is not None and event.decision != spec.decision:
        return f"the rollout names the decision {spec.decision}, not {event.decision}"
    if event.outcome != "GO":
        return f"the decision is {event.outcome}, not GO"
    if event.candidate not in spec.candidate_names:
        return f"the decision is about {event.candidate}, the candidate is the release {spec.release}"
    if event.suite != spec.suite:
        return f"the decision is about the suite {event.suite}, the rollout asks for {spec.suite}"
    contract = spec.gate_digest or spec.contract_digest
    if event.contract != contract:
        return f"the decision is by the contract {event.contract}, the rollout asks for {contract}"
    return None


def _apply(spec: RolloutSpec, state: RolloutState, event: Event, at_ms: int) -> RolloutState | None:
    """None where the event does not fit."""
    if isinstance(event, Started | Advanced):
        return _move(spec, state, event, at_ms)
    return _HANDLERS[type(event)](spec, state, event)


def _decided(spec: RolloutSpec, state: RolloutState, event: DecisionAttached) -> RolloutState:
    reason = why_not(spec, event)
    # A later NO-GO about the same candidate takes an earlier GO away until it has started.
    same = event.candidate in spec.candidate_names and event.suite == spec.suite
    go = event.decision if reason is None else None if same and state.stage is None else state.go
    return replace(state, go=go, refusal=reason)


def _move(
    spec: RolloutSpec, state: RolloutState, event: Started | Advanced, at_ms: int
) -> RolloutState | None:
    if isinstance(event, Started):
        to, fits = 0, state.stage is None and state.go is not None
    else:
        to = event.to
        fits = state.stage is not None and to == state.stage + 1 < len(spec.stages) and state.hold is None
        fits = fits and event.epoch > _epoch(state)
    if not fits or state.end is not None:
        return None
    return replace(state, stage=to, since_ms=at_ms, entered=(*state.entered, Entered(event.epoch, to)))


def _held(spec: RolloutSpec, state: RolloutState, event: Held) -> RolloutState | None:
    hold = state.hold
    # Among holds the stronger stays: INVALID, then a person's, then a trigger's, which may go by itself.
    if not state.active or (hold is not None and _strength(event) <= _strength(hold)):
        return None
    return replace(state, hold=event)


def _strength(hold: Held) -> int:
    return 2 if hold.invalid else 1 if hold.trigger is None else 0


def _resumed(spec: RolloutSpec, state: RolloutState, event: Resumed) -> RolloutState | None:
    if not state.active or state.hold is None or state.hold.invalid:
        return None
    return replace(state, hold=None)


def _acked(spec: RolloutSpec, state: RolloutState, event: SnapshotAcked) -> RolloutState:
    reached = state.end == "rolled_back" and _is_gone(state) and event.epoch >= _epoch(state)
    return replace(
        state,
        acked_epoch=max(state.acked_epoch, event.epoch),
        confirmed=state.confirmed or reached,
    )


def _trip(spec: RolloutSpec, state: RolloutState, event: Tripped) -> RolloutState | None:
    if not state.active:
        return None
    gone = _gone(state, event.epoch)
    return replace(gone, end="rolled_back", end_reason=event.line, tripped=event.trigger, latched=True)


def _back(spec: RolloutSpec, state: RolloutState, event: RolledBack) -> RolloutState | None:
    if state.end == "rolled_back" and not state.confirmed:
        return replace(_gone(state, event.epoch), confirmed=True)
    if not state.active:
        return None
    gone = _gone(state, event.epoch)
    return replace(gone, end="rolled_back", end_reason=event.reason, latched=True)


def _aborted(spec: RolloutSpec, state: RolloutState, event: Aborted) -> RolloutState | None:
    if state.end is not None:
        return None
    return replace(_gone(state, event.epoch), end="aborted", end_reason=event.reason)


def _cleared(spec: RolloutSpec, state: RolloutState, event: Cleared) -> RolloutState | None:
    return replace(state, latched=False) if state.latched else None


def _completed(spec: RolloutSpec, state: RolloutState, event: Completed) -> RolloutState | None:
    at_last = state.stage is not None and spec.stages[state.stage].kind == "production"
    if not state.active or not at_last or state.hold is not None:
        return None
    return replace(state, end="completed", end_reason="")


def _created(spec: RolloutSpec, state: RolloutState, event: Created) -> RolloutState | None:
    """The first line of a journal: it binds the journal to its document, and changes nothing."""
    return state if event.spec == spec.digest else None


_HANDLERS: dict[type, Callable[[RolloutSpec, RolloutState, Any], RolloutState | None]] = {
    Created: _created,
    DecisionAttached: _decided,
    Held: _held,
    Resumed: _resumed,
    SnapshotAcked: _acked,
    Tripped: _trip,
    RolledBack: _back,
    Aborted: _aborted,
    Cleared: _cleared,
    Completed: _completed,
}


def _epoch(state: RolloutState) -> int:
    return state.entered[-1].epoch if state.entered else 0


def _is_gone(state: RolloutState) -> bool:
    return bool(state.entered) and state.entered[-1].stage is None


def _gone(state: RolloutState, epoch: int) -> RolloutState:
    """The candidate leaves at ``epoch``, where that is known and later than what came before."""
    if not state.entered or _is_gone(state) or epoch <= _epoch(state):
        return state
    return replace(state, entered=(*state.entered, Entered(epoch, None)))
