"""A rollout from what a person typed.

Here: looking up the candidate's release, its contract and its decision, and making the record that the rollout runs
by. Not here: the record (``rollout.records``), running it (``rollouts``). The candidate is verified, loaded and probed
before the rollout exists: what cannot be served is refused at once, not at the canary.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from posttrain.artifacts.home import Home, resolve
from posttrain.core.errors import DataError, UsageError
from posttrain.promotion.grammar import parse_contract
from posttrain.promotion.records import Decision
from posttrain.releases.lanes import find_release, read_release
from posttrain.releases.records import ReleaseManifest
from posttrain.rollouts.errors import RolloutError
from posttrain.rollouts.events import DecisionAttached
from posttrain.rollouts.records import RolloutSpec, ShadowRule, Stage
from posttrain.rollouts.registered import spec_from_contract
from posttrain.routing.records import Snapshot, Target, Upstream
from posttrain.serving.config import TargetConfig
from posttrain.serving.control.deploy import Deployer

_DECISION_FILE = "decision.json"


async def propose(
    asked: Mapping[str, Any], home: Home, deployer: Deployer, current: Snapshot
) -> tuple[RolloutSpec, tuple[Upstream, ...]]:
    """The rollout that was asked for, and the upstreams of its candidate.

    ``asked``: ``release``; ``contract`` (text); and any of ``route``, ``decision``, ``suite``, ``stages``, ``shadow``,
    ``auto_advance``, ``adapter``, ``sampling``, ``usd_per_1k_prompt_tokens``, ``usd_per_1k_completion_tokens``.
    """
    route = _route(current, asked.get("route"))
    contract = parse_contract(str(asked["contract"]), origin="contract")
    manifest = read_release(home, find_release(home, str(asked["release"])))
    decision = read_decision(home, str(asked["decision"])) if asked.get("decision") else None
    suite = asked.get("suite") or (decision and decision.candidate.suite)
    if not suite:
        raise UsageError(
            "the rollout needs to know its frozen suite", hint="give --decision, or --suite DIGEST"
        )
    keys = ("adapter", "sampling", "usd_per_1k_prompt_tokens", "usd_per_1k_completion_tokens")
    wanted = TargetConfig(
        release=str(asked["release"]), **{key: asked[key] for key in keys if asked.get(key)}
    )
    target, upstreams = await deployer.deploy(route, wanted)
    current_route = current.route(route)
    assert current_route is not None, "it was looked up"
    fields: dict[str, Any] = {
        "id": _new_id(),
        "route": route,
        "candidate": target,
        "release": target.release,
        "known_as": _names(manifest, target),
        "production": current_route.production,
        "suite": suite,
        "gate_digest": decision.contract_digest if decision is not None else None,
        "unit": current_route.unit,
        "auto_advance": bool(asked.get("auto_advance", False)),
    }
    if asked.get("stages"):
        fields["stages"] = tuple(Stage.model_validate(stage) for stage in asked["stages"])
    if asked.get("shadow"):
        fields["shadow"] = ShadowRule.model_validate(asked["shadow"])
    return spec_from_contract(contract, **fields), upstreams


def attach_decision(home: Home, reference: str, *, by: str) -> DecisionAttached:
    """What the decision that ``reference`` names says."""
    decision = read_decision(home, reference)
    return DecisionAttached(
        decision=decision.digest,
        outcome=decision.outcome,
        candidate=decision.candidate.model,
        suite=decision.candidate.suite,
        contract=decision.contract_digest,
        by=by,
    )


def read_decision(home: Home, reference: str) -> Decision:
    """The decision of an artifact. Raises DataError where it is none."""
    artifact = resolve(home, reference)
    try:
        return Decision.from_json(home.store.read_bytes(artifact, _DECISION_FILE))
    except KeyError as error:
        raise DataError(
            f"{reference} is a {artifact.kind}, not a decision", hint="name the output `decision` of a gate"
        ) from error


def _route(current: Snapshot, asked: Any) -> str:
    names = [route.model for route in current.routes]
    if asked is None and len(names) == 1:
        return names[0]
    if asked not in names:
        raise RolloutError(f"there is no route {asked!r}", hint=f"there are: {', '.join(names)}")
    return str(asked)


def _names(manifest: ReleaseManifest, target: Target) -> tuple[str, ...]:
    """What a gate's report may call this candidate: its weights, or, where it is served with one, its adapter. A GO
    about the base says nothing of an adapter on it."""
    name = target.adapter or manifest.base.identity
    return (name,) if name.startswith("sha256:") else ()


def _new_id() -> str:
    return datetime.now(UTC).strftime("r-%Y%m%d-%H%M%S-") + secrets.token_hex(2)
