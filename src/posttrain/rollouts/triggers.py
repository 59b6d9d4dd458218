"""Triggers: what an observation means for a rollout, and one line about each for the engineer on call.

Here: every kind of trigger, judged now. Not here: counting (``observe``), what is done about it (``steps``). Evidence
is valid however often it is looked at, so this may be called every few hundred milliseconds; triggers of evidence share
``alpha_rollback``, since any of them rolls back.

*Covered*: late feedback only adds events to requests that were counted before, so evidence is never too strong for
want of it. *Not covered*: while traffic runs, requests in flight are left out, and slow ones are longer in flight: a
latency share is seen a little late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from posttrain.core.buckets import BUCKETS
from posttrain.rollouts.arms import Moments, difference
from posttrain.rollouts.fold import RolloutState
from posttrain.rollouts.observe import Observation, Tally
from posttrain.rollouts.records import (
    ComparisonTrigger,
    ExposureTrigger,
    IncidentTrigger,
    NoDataTrigger,
    RateTrigger,
    RatioTrigger,
    RolloutSpec,
    SampleRatioTrigger,
    Trigger,
)
from posttrain.rollouts.registered import registered_under
from posttrain.statistics.sequential import log_evidence, sample_ratio_log_evidence, sequence_half_width

TriggerState: TypeAlias = Literal["quiet", "hold", "invalid", "tripped"]
_NANO = 1e9


@dataclass(frozen=True, slots=True)
class Reading:
    """One trigger, judged."""

    name: str
    kind: str
    state: TriggerState
    line: str
    """What an engineer on call reads."""
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    holds: bool | None = None
    """Whether the contract's rule holds as a point over the window; None where it is no rule of the contract, or there
    is nothing to judge yet."""

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "name": self.name,
            "kind": self.kind,
            "state": self.state,
            "line": self.line,
            "figures": {key: _finite(value) for key, value in self.figures.items()},
            "holds": self.holds,
        }


@dataclass(frozen=True, slots=True)
class TriggerReport:
    """All triggers, judged at one moment."""

    at_ms: int
    readings: tuple[Reading, ...]

    @property
    def tripped(self) -> Reading | None:
        """The first that asks for a rollback."""
        return self._first("tripped")

    @property
    def invalid(self) -> Reading | None:
        """The first that says that what was seen means nothing."""
        return self._first("invalid")

    @property
    def hold(self) -> Reading | None:
        """The first that asks to wait."""
        return self._first("hold")

    @property
    def broken(self) -> tuple[Reading, ...]:
        """Rules of the contract that do not hold as points."""
        return tuple(reading for reading in self.readings if reading.holds is False)

    def _first(self, state: TriggerState) -> Reading | None:
        return next((reading for reading in self.readings if reading.state == state), None)

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        return {"at_ms": self.at_ms, "triggers": [reading.to_json() for reading in self.readings]}


def evaluate(spec: RolloutSpec, state: RolloutState, observation: Observation, now_ms: int) -> TriggerReport:
    """Judge every trigger. ``now_ms`` is of the clock by which entries and ``received_ms`` are."""
    readings = tuple(_evaluate(spec, state, trigger, observation, now_ms=now_ms) for trigger in spec.triggers)
    return TriggerReport(now_ms, readings)


def window_stages(spec: RolloutSpec) -> tuple[int, ...]:
    """Stages whose candidate answers are the contract's window: the canaries, or the shadow where there are none."""
    for kind in ("canary", "shadow"):
        if found := tuple(index for index, stage in enumerate(spec.stages) if stage.kind == kind):
            return found
    return ()


def rate_of(
    tally: Tally, trigger: RateTrigger | ComparisonTrigger, seen: Tally | None = None
) -> tuple[int, int]:
    """Events and trials of a measure. ``seen``: the tally of answers that a user saw, for abandons."""
    if trigger.measure == "error":
        return tally.errors, tally.requests
    if trigger.measure == "abandon":
        by_users = tally if seen is None else seen
        return by_users.abandons, by_users.requests
    above = tally.above.get((trigger.measure, trigger.above or 0.0), 0)
    return above, tally.answered if trigger.measure == "latency" else tally.priced


# -- one kind each ---------------------------------------------------------------------------------


def _evaluate(
    spec: RolloutSpec, state: RolloutState, trigger: Trigger, observation: Observation, *, now_ms: int
) -> Reading:
    match trigger:
        case IncidentTrigger():
            return _incident(spec, trigger, observation)
        case RateTrigger():
            return _rate(spec, trigger, observation)
        case RatioTrigger():
            return _ratio(spec, trigger, observation)
        case ComparisonTrigger():
            return _comparison(spec, trigger, observation)
        case NoDataTrigger():
            return _no_data(spec, state, trigger, observation, now_ms=now_ms)
        case SampleRatioTrigger():
            return _sample_ratio(spec, trigger, observation)
        case ExposureTrigger():
            return _exposure(trigger, observation)


def _incident(spec: RolloutSpec, trigger: IncidentTrigger, observation: Observation) -> Reading:
    tally = observation.tally(range(len(spec.stages)), "candidate", trigger.slice)
    count = tally.incidents if trigger.measure == "incident" else tally.blocked
    what = "safety incidents" if trigger.measure == "incident" else "answers blocked by a guardrail"
    over = count > trigger.limit
    line = f"{count} {what} in {tally.requests} requests, {'more than the' if over else 'of'} {trigger.limit} allowed"
    if count == 0 and tally.requests:
        line += f"; none in {tally.requests} still allows a rate of {rule_of_three(tally.requests):.2g}"
    return Reading(
        trigger.name,
        trigger.kind,
        "tripped" if over else "quiet",
        _signed(line, spec),
        {"count": count, "requests": tally.requests, "limit": trigger.limit},
        (not over) if trigger.rule else None,
    )


def rule_of_three(requests: int) -> float:
    """The highest rate at which none in ``requests`` has a chance of 5 %: about three divided by them."""
    return -math.expm1(math.log(0.05) / requests)


def _rate(spec: RolloutSpec, trigger: RateTrigger, observation: Observation) -> Reading:
    everywhere = observation.tally(range(len(spec.stages)), "candidate", trigger.slice)
    events, trials = rate_of(everywhere, trigger, _seen_by_users(spec, observation, trigger.slice))
    needed = -math.log(spec.alpha_each)
    evidence = float(log_evidence(events, trials, trigger.limit)) if trials else 0.0
    tripped = evidence >= needed
    what = _what(trigger.measure, trigger.above)
    rate = f" ({events / trials:.2%})" if trials else ""
    line = (
        f"{what} {events} of {trials}{rate} against a limit of {trigger.limit:g}: log e {evidence:.3g} "
        f"{'>=' if tripped else '<'} {needed:.3g}"
    )
    figures = {"events": events, "trials": trials, "limit": trigger.limit}
    return Reading(
        trigger.name,
        trigger.kind,
        "tripped" if tripped else "quiet",
        _signed(line, spec),
        {**figures, "log_evidence": evidence, "needed": needed},
        _rate_holds(spec, trigger, observation),
    )


def _rate_holds(spec: RolloutSpec, trigger: RateTrigger, observation: Observation) -> bool | None:
    """The contract's point over the window. A percentile is an order statistic: at most ``n - ceil(q n)`` above it."""
    window = observation.tally(window_stages(spec), "candidate", trigger.slice)
    events, trials = rate_of(window, trigger)
    if not trigger.rule or not trials:
        return None
    # The limit is a float of a short decimal; without this, 5 of 100 would be above 0.05 on some machines.
    return events <= math.floor(trials * trigger.limit + 1e-9)


def _ratio(spec: RolloutSpec, trigger: RatioTrigger, observation: Observation) -> Reading:
    tally = observation.tally(range(len(spec.stages)), "candidate", trigger.slice)
    window = observation.tally(window_stages(spec), "candidate", trigger.slice)
    count = tally.priced
    if not tally.tokens:
        return Reading(trigger.name, trigger.kind, "quiet", _signed("no costs were seen", spec))
    # Of each request: what it cost beyond the limit at its tokens, in billionths of a dollar.
    per_token = trigger.limit * _NANO / 1000
    mean = (tally.cost_nano - per_token * tally.tokens) / count
    squares = (
        tally.cost_squared - 2 * per_token * tally.cost_tokens + per_token * per_token * tally.tokens_squared
    ) / count
    variance = max(0.0, squares - mean * mean)
    ratio = tally.cost_nano / tally.tokens * 1000 / _NANO
    per_request = per_token * tally.tokens / count
    half = sequence_half_width(variance, count, alpha=spec.alpha_each, planned=trigger.planned)
    low = (mean - half) / per_request
    enough = count >= trigger.minimum
    tripped = enough and low > 0
    line = (
        f"${ratio:.4g} per 1,000 tokens over {count} requests against a limit of ${trigger.limit:g}: "
        f"{mean / per_request:+.1%}, at least {low:+.1%}"
    )
    if not enough:
        line += f"; silent before {trigger.minimum} requests"
    holds = window.cost_nano * 1000 <= trigger.limit * _NANO * window.tokens * (1 + 1e-12)
    return Reading(
        trigger.name,
        trigger.kind,
        "tripped" if tripped else "quiet",
        _signed(line, spec),
        {"ratio": ratio, "requests": count, "limit": trigger.limit, "excess_low": low},
        holds if trigger.rule and window.priced else None,
    )


def _comparison(spec: RolloutSpec, trigger: ComparisonTrigger, observation: Observation) -> Reading:
    canaries = [index for index, stage in enumerate(spec.stages) if stage.kind == "canary"]
    pairs = []
    for index in canaries:
        candidate, control = (
            _moments(observation.tally((index,), arm, trigger.slice), trigger)
            for arm in ("candidate", "control")
        )
        pairs.append((candidate, control))
    found = difference(pairs)
    what, unit = _what(trigger.measure, trigger.above), trigger.measure == "latency" and trigger.above is None
    if found is None:
        return Reading(trigger.name, trigger.kind, "quiet", _signed(f"{what}: nothing to compare yet", spec))
    half = sequence_half_width(found.variance, found.count, alpha=spec.alpha_each, planned=trigger.planned)
    low = found.value - half
    enough = min(found.candidate, found.control) >= trigger.minimum
    tripped = enough and low > trigger.margin
    line = (
        f"{what} {_amount(found.value, unit)} against control ({found.candidate} and {found.control} requests), "
        f"at least {_amount(low, unit)}; {_amount(trigger.margin, unit)} is allowed"
    )
    if not enough:
        line += f"; silent before {trigger.minimum} requests in each arm"
    return Reading(
        trigger.name,
        trigger.kind,
        "tripped" if tripped else "quiet",
        _signed(line, spec),
        {
            "difference": found.value,
            "low": low,
            "margin": trigger.margin,
            "candidate": found.candidate,
            "control": found.control,
        },
    )


def _moments(tally: Tally, trigger: ComparisonTrigger) -> Moments:
    if trigger.measure == "latency" and trigger.above is None:
        found = Moments.of_sums(tally.timed, tally.latency_us, tally.latency_us_squared)
        return Moments(found.count, found.mean / 1e3, found.variance / 1e6)
    return Moments.of_rate(*rate_of(tally, trigger))


def _no_data(
    spec: RolloutSpec,
    state: RolloutState,
    trigger: NoDataTrigger,
    observation: Observation,
    *,
    now_ms: int,
) -> Reading:
    stage = state.current(spec)
    if stage is None or stage.kind == "gated":
        return Reading(trigger.name, trigger.kind, "quiet", "no traffic is meant to come")
    heard = state.since_ms if observation.heard_ms is None else max(observation.heard_ms, state.since_ms)
    silent = max(0.0, (now_ms - heard) / 1000)
    late = silent > trigger.seconds
    line = f"nothing was heard of the candidate for {silent:.0f} s, {trigger.seconds:g} s are allowed"
    return Reading(
        trigger.name,
        trigger.kind,
        "hold" if late else "quiet",
        line,
        {"silent_seconds": silent, "limit": trigger.seconds},
    )


def _sample_ratio(spec: RolloutSpec, trigger: SampleRatioTrigger, observation: Observation) -> Reading:
    canaries = [index for index, stage in enumerate(spec.stages) if stage.kind == "canary"]
    needed = -math.log(trigger.alpha / max(1, len(canaries)))
    worst, line = -math.inf, "no units were seen yet"
    sampled = (
        spec.control_sampling
        if spec.control_sampling >= 1
        else round(spec.control_sampling * BUCKETS) / BUCKETS
    )
    for index in canaries:
        stage = spec.stages[index]
        counts = [
            observation.units.get((index, "candidate"), 0),
            observation.units.get((index, "control"), 0),
        ]
        if not sum(counts):
            continue
        share = stage.share / BUCKETS
        weights = [share, (1 - share) * sampled]
        evidence = sample_ratio_log_evidence(counts, weights)
        if evidence > worst:
            worst = evidence
            meant = weights[0] / sum(weights)
            line = (
                f"{counts[0]} and {counts[1]} {spec.unit}s at {stage.label}, {meant:.2%} should be the candidate's: "
                f"log e {evidence:.3g} {'>=' if evidence >= needed else '<'} {needed:.3g}"
            )
    state: TriggerState = "invalid" if worst >= needed else "quiet"
    figures = {"log_evidence": None if worst == -math.inf else worst, "needed": needed}
    return Reading(trigger.name, trigger.kind, state, line, figures)


def _exposure(trigger: ExposureTrigger, observation: Observation) -> Reading:
    count = observation.misplaced
    line = f"{count} requests were answered by another than their bucket says, {trigger.limit} are allowed"
    if observation.misplaced_examples:
        line += f": {', '.join(observation.misplaced_examples)}"
    state: TriggerState = "hold" if count > trigger.limit else "quiet"
    return Reading(trigger.name, trigger.kind, state, line, {"count": count, "limit": trigger.limit})


def _seen_by_users(spec: RolloutSpec, observation: Observation, part: str | None) -> Tally:
    seen = (index for index, stage in enumerate(spec.stages) if stage.kind in ("canary", "production"))
    return observation.tally(seen, "candidate", part)


def _what(measure: str, above: float | None) -> str:
    if measure == "latency":
        return "mean latency" if above is None else f"latency above {above:g} ms"
    if measure == "cost":
        return f"cost above ${above:g} per 1,000 tokens"
    return f"{measure} rate"


def _amount(value: float, milliseconds: bool) -> str:
    return f"{value:+.1f} ms" if milliseconds else f"{100 * value:+.2f} points"


def _signed(line: str, spec: RolloutSpec) -> str:
    return f"{line}; {registered_under(spec)}"


def _finite(value: float | int | None) -> float | int | None:
    return value if value is None or math.isfinite(value) else None
