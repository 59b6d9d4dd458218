"""What may be done with a rollout now, and what should be.

Here: permissions, and the next step that control takes by itself. Not here: doing it (``control``). Going on needs
evidence: a GO decision about this very candidate, suite and contract, enough requests, enough time, no hold, and
for production the contract's points over the whole window. Going back needs nobody's leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from posttrain.rollouts.fold import RolloutState
from posttrain.rollouts.observe import Observation
from posttrain.rollouts.records import RolloutSpec
from posttrain.rollouts.triggers import TriggerReport, evaluate

Action: TypeAlias = Literal["start", "advance", "hold", "resume", "abort", "rollback", "clear", "complete"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at the moment of asking."""

    now_ms: int
    """By the clock of the journal's entries."""
    observation: Observation
    report: TriggerReport


def facts_at(spec: RolloutSpec, state: RolloutState, observation: Observation, now_ms: int) -> Facts:
    """Look: judge every trigger now."""
    return Facts(now_ms, observation, evaluate(spec, state, observation, now_ms))


class Permission(NamedTuple):
    """Whether something may be done, and if not, every reason."""

    ok: bool
    reasons: tuple[str, ...]


class Step(NamedTuple):
    """What control should do now."""

    action: Literal["trip", "invalid", "hold", "resume", "advance", "complete"]
    reason: str
    trigger: str | None = None


def allowed(spec: RolloutSpec, state: RolloutState, action: Action, facts: Facts) -> Permission:
    """Whether ``action`` may be taken, by a person or by control."""
    reasons = list(_reasons(spec, state, action, facts))
    return Permission(not reasons, tuple(reasons))


def next_step(spec: RolloutSpec, state: RolloutState, facts: Facts) -> Step | None:
    """The step that control takes by itself; None: nothing is to be done.

    A trip comes before everything else. Holds of triggers come and go with their trigger; a person's hold stays until
    a person resumes.
    """
    if not state.active:
        return None
    report = facts.report
    if (found := report.tripped) is not None:
        return Step("trip", found.line, found.name)
    if (found := report.invalid) is not None and not (state.hold is not None and state.hold.invalid):
        return Step("invalid", found.line, found.name)
    held = state.hold
    if held is None and (found := report.hold) is not None:
        return Step("hold", found.line, found.name)
    if held is not None and held.trigger is not None and not held.invalid and report.hold is None:
        return Step("resume", f"{held.trigger} is quiet again", held.trigger)
    if held is None and spec.auto_advance and allowed(spec, state, "advance", facts).ok:
        return Step("advance", f"{progress(spec, state, facts)}")
    if held is None and allowed(spec, state, "complete", facts).ok:
        return Step("complete", f"{progress(spec, state, facts)}")
    return None


def stage_requests(state: RolloutState, observation: Observation) -> int:
    """Answers of the candidate in the present stage."""
    return 0 if state.stage is None else observation.tally((state.stage,), "candidate").requests


def progress(spec: RolloutSpec, state: RolloutState, facts: Facts) -> str:
    """``412 of 500 requests, 1.5 of 4 hours``."""
    stage = state.current(spec)
    if stage is None:
        return state.label(spec)
    hours = (facts.now_ms - state.since_ms) / 3_600_000
    return (
        f"{stage_requests(state, facts.observation)} of {stage.minimum_requests} requests, "
        f"{hours:.2g} of {stage.minimum_seconds / 3600:.2g} hours"
    )


def _reasons(spec: RolloutSpec, state: RolloutState, action: Action, facts: Facts) -> list[str]:
    match action:
        case "start":
            return _start(spec, state)
        case "advance" | "complete":
            return _over(spec, state) or _forward(spec, state, action, facts)
        case "hold":
            held = state.hold is not None and (state.hold.trigger is None or state.hold.invalid)
            return _over(spec, state) or (["it is held already"] if held else [])
        case "resume":
            return _over(spec, state) or _resume(state, facts)
        case "rollback":
            return _over(spec, state)
        case "abort":
            return [] if state.end is None else _over(spec, state)
        case "clear":
            return [] if state.latched else ["no rollback of it waits to be cleared"]


def _over(spec: RolloutSpec, state: RolloutState) -> list[str]:
    if state.end is not None:
        return [f"the rollout is over: {state.label(spec)}"]
    return [] if state.stage is not None else ["it has not been started"]


def _start(spec: RolloutSpec, state: RolloutState) -> list[str]:
    if state.end is not None:
        return _over(spec, state)
    if state.stage is not None:
        return [f"it is already at {state.label(spec)}"]
    if state.go is None:
        return [state.refusal or "no decision of a gate is attached: it needs a GO about this candidate"]
    return []


def _resume(state: RolloutState, facts: Facts) -> list[str]:
    if state.hold is None:
        return ["it is not held"]
    if state.hold.invalid:
        return [f"what was seen means nothing ({state.hold.reason}): abort it or roll it back"]
    # A person may resume what a person held; a trigger's hold lasts as long as its cause.
    if state.hold.trigger is not None and (found := facts.report.hold) is not None:
        return [f"{found.name} still asks to wait: {found.line}"]
    return []


def _forward(spec: RolloutSpec, state: RolloutState, action: Action, facts: Facts) -> list[str]:
    assert state.stage is not None, "checked before"
    stage, reasons = spec.stages[state.stage], []
    at_last = state.stage == len(spec.stages) - 1
    if action == "advance" and at_last:
        return ["it is at its last stage"]
    if action == "complete" and not at_last:
        return [f"it is at {stage.label}, not at production"]
    if state.go is None:
        reasons.append("no GO decision is attached")
    if state.hold is not None:
        reasons.append(f"it is held: {state.hold.reason}")
    for found in (facts.report.tripped, facts.report.invalid, facts.report.hold):
        if found is not None:
            reasons.append(f"{found.name}: {found.line}")
    requests = stage_requests(state, facts.observation)
    if requests < stage.minimum_requests:
        reasons.append(f"{requests} of {stage.minimum_requests} requests at {stage.label}")
    seconds = (facts.now_ms - state.since_ms) / 1000
    if seconds < stage.minimum_seconds:
        reasons.append(f"{seconds / 3600:.2f} of {stage.minimum_seconds / 3600:.2f} hours at {stage.label}")
    if stage.kind == "shadow":
        reasons += _pairs(spec, facts)
    if not at_last and spec.stages[state.stage + 1].kind == "production":
        reasons += [f"the contract's rule does not hold: {found.line}" for found in facts.report.broken]
    return reasons


def _pairs(spec: RolloutSpec, facts: Facts) -> list[str]:
    rule, pairs = spec.shadow, facts.observation.pairs
    if pairs.judged < rule.minimum_pairs:
        return [f"{pairs.judged} of {rule.minimum_pairs} judged pairs"]
    rate = pairs.win_rate
    if rate is not None and rate < rule.least_win_rate:
        return [f"a win rate of {rate:.3f} over {pairs.judged} pairs, {rule.least_win_rate:g} is needed"]
    return []
