"""The triggers that a contract registers, and a rollout made of it.

Here: ``canary.`` rules to triggers, and which rules have none. Not here: the grammar (``promotion``), evaluating
(``triggers``). A rule is judged twice: by its trigger at every moment, and by its point over the whole window before
the candidate becomes production. A rule without a trigger (its metric is not in a row of traffic) is judged by
``posttrain gate`` on the canary's records only, and ``Registration.unwatched`` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from posttrain.core.canonical import short
from posttrain.core.errors import UsageError
from posttrain.promotion.metrics import Proportion, Quantile, RatioOfSums, Total, find_metric
from posttrain.promotion.records import Decision
from posttrain.promotion.rules import Contract, Options, ThresholdRule
from posttrain.rollouts.events import DecisionAttached
from posttrain.rollouts.records import (
    DEFAULT_STAGES,
    HEALTH,
    IncidentTrigger,
    RateTrigger,
    RatioTrigger,
    RolloutSpec,
    SampleRatioTrigger,
    Stage,
    Trigger,
)


class Registration(NamedTuple):
    """What a contract asks to be watched."""

    triggers: tuple[Trigger, ...]
    """Health included."""
    unwatched: tuple[str, ...]
    """Rules on traffic that no trigger can watch."""


def register(contract: Contract) -> Registration:
    """Triggers of the contract's ``canary.`` rules, and health."""
    triggers: list[Trigger] = []
    unwatched = []
    for rule in contract.rules:
        if not isinstance(rule, ThresholdRule) or rule.scope != "canary":
            continue
        trigger = _trigger(rule, _name(rule, triggers))
        if trigger is None:
            unwatched.append(rule.text)
        else:
            triggers.append(trigger)
    alpha = float(contract.options.srm_p)
    health = (
        trigger.model_copy(update={"alpha": alpha}) if isinstance(trigger, SampleRatioTrigger) else trigger
        for trigger in HEALTH
    )
    return Registration((*triggers, *health), tuple(unwatched))


def triggers_from_contract(contract: Contract) -> tuple[Trigger, ...]:
    """The triggers alone."""
    return register(contract).triggers


def spec_from_contract(contract: Contract, /, **fields: Any) -> RolloutSpec:
    """A rollout under ``contract``; ``fields`` are the others of ``RolloutSpec``, and win.

    The salt is the rollout's id, and the canary stages together are the window that the contract asks for.
    """
    made: dict[str, Any] = {
        "contract": contract.text,
        "contract_digest": contract.digest,
        "triggers": triggers_from_contract(contract),
        "alpha_rollback": float(contract.options.alpha_rollback),
        "stages": stages_of(contract.options),
        "salt": f"rollout:{fields.get('id')}",
    }
    return RolloutSpec(**{**made, **fields})


def stages_of(options: Options) -> tuple[Stage, ...]:
    """The default stages, scaled so that the canary ones together are the contract's window."""
    requests = sum(stage.minimum_requests for stage in DEFAULT_STAGES if stage.kind == "canary")
    seconds = sum(stage.minimum_seconds for stage in DEFAULT_STAGES if stage.kind == "canary")
    more, longer = options.canary_min_n / requests, float(options.canary_hours) * 3600 / seconds
    return tuple(
        stage.model_copy(
            update={
                "minimum_requests": -int(-stage.minimum_requests * more // 1),
                "minimum_seconds": stage.minimum_seconds * longer,
            }
        )
        if stage.kind == "canary"
        else stage
        for stage in DEFAULT_STAGES
    )


def decision_event(decision: Decision, *, by: str) -> DecisionAttached:
    """A gate's decision as the event that attaches it. A rollout knows the candidate by its release, and by
    ``known_as``: reports mostly name the model artifact."""
    return DecisionAttached(
        by=by,
        decision=decision.digest,
        outcome=decision.outcome,
        candidate=decision.candidate.model,
        suite=decision.candidate.suite,
        contract=decision.contract_digest,
    )


def registered_under(spec: RolloutSpec) -> str:
    """For the end of a line: which contract, in short."""
    return f"registered under contract sha256:{short(spec.contract_digest)}"


def _name(rule: ThresholdRule, taken: list[Trigger]) -> str:
    name = str(rule.metric)
    same = sum(trigger.name == name or trigger.name.startswith(f"{name} #") for trigger in taken)
    return f"{name} #{same + 1}" if same else name


def _trigger(rule: ThresholdRule, name: str) -> Trigger | None:
    """None where no row of traffic can say whether the rule is broken, or more is better."""
    if rule.upward or rule.stat == "p_value" or rule.metric.arguments or rule.metric.options:
        return None
    try:
        reading = find_metric(rule.metric).read(rule.metric)
    except UsageError:
        return None  # the linter and the gate say what is wrong with it
    common = {"name": name, "rule": rule.text, "slice": rule.metric.slice}
    make = _MAKERS.get(type(reading))
    return None if make is None else make(rule, reading, common)


def _of_count(rule: ThresholdRule, reading: Total, common: dict[str, Any]) -> Trigger | None:
    measures = {"safety_incidents": "incident", "guardrail_blocks_count": "guardrail"}
    measure = measures.get(reading.column)
    if measure is None or rule.stat != "count":
        return None
    most = int(rule.limit) - (1 if rule.strictly and rule.limit.denominator == 1 else 0)
    return IncidentTrigger(measure=measure, limit=max(0, most), **common)


def _of_rate(rule: ThresholdRule, reading: Proportion, common: dict[str, Any]) -> Trigger | None:
    if reading.column not in ("abandon", "error") or not 0 < rule.limit < 1:
        return None
    return RateTrigger(measure=reading.column, limit=float(rule.limit), **common)


def _of_quantile(rule: ThresholdRule, reading: Quantile, common: dict[str, Any]) -> Trigger | None:
    if reading.column != "latency_ms" or not 0 < reading.quantile < 1:
        return None
    limit = float(1 - reading.quantile)
    return RateTrigger(measure="latency", limit=limit, above=float(rule.limit), **common)


def _of_ratio(rule: ThresholdRule, reading: RatioOfSums, common: dict[str, Any]) -> Trigger | None:
    if (reading.numerator, reading.denominator, reading.scale) != ("cost_usd", "tokens", 1000):
        return None
    return RatioTrigger(limit=float(rule.limit), **common)


_MAKERS: dict[type, Callable[..., Trigger | None]] = {
    Total: _of_count,
    Proportion: _of_rate,
    Quantile: _of_quantile,
    RatioOfSums: _of_ratio,
}
