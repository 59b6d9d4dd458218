"""A rollout and its traffic, made up: rows as the traffic log has them, dealt by the real assignment."""

from __future__ import annotations

from typing import Any

import numpy as np

from posttrain.core.buckets import BUCKETS, bucket
from posttrain.core.canonical import digest_bytes
from posttrain.promotion.grammar import parse_contract
from posttrain.rollouts.events import (
    Advanced,
    Created,
    DecisionAttached,
    Entry,
    Event,
    Started,
)
from posttrain.rollouts.fold import Entered
from posttrain.rollouts.records import RolloutSpec, Stage
from posttrain.rollouts.registered import spec_from_contract
from posttrain.routing.assignment import assign
from posttrain.routing.records import Canary, Route, Shadow, Snapshot, Target, Upstream

RULES = """\
canary.abandon_rate.point <= 0.05
canary.error_rate.point <= 0.02
canary.safety_incidents.count == 0
canary.latency_p95_ms.point <= 950
canary.cost_per_1k_tokens_usd.point <= 0.022
"""

OLD, NEW = digest_bytes(b"v1.2"), digest_bytes(b"v1.3")
SUITE, DECISION = digest_bytes(b"suite"), digest_bytes(b"decision")
PRODUCTION = Target(name="v1.2", upstreams=("a",), model="chat-v1.2", release=OLD)
CANDIDATE = Target(name="v1.3", upstreams=("b",), model="chat-v1.3", release=NEW)
STAGES = (
    Stage(kind="gated", share=0),
    Stage(kind="shadow", share=1000, minimum_requests=20, minimum_seconds=60),
    Stage(kind="canary", share=500, minimum_requests=50, minimum_seconds=60),
    Stage(kind="canary", share=5000, minimum_requests=100, minimum_seconds=60),
    Stage(kind="production", share=BUCKETS, minimum_seconds=60),
)
GATED, SHADOW, SMALL, LARGE, LAST = range(5)
EPOCHS = (Entered(2, GATED), Entered(3, SHADOW), Entered(4, SMALL), Entered(5, LARGE), Entered(6, LAST))
"""Which epochs are which stage when all goes well."""


def make_spec(rules: str = RULES, **fields: Any) -> RolloutSpec:
    """A rollout of v1.3 over v1.2 on the route ``chat``."""
    given = {
        "id": "r-1",
        "route": "chat",
        "candidate": CANDIDATE,
        "release": NEW,
        "production": PRODUCTION,
        "suite": SUITE,
        "stages": STAGES,
        **fields,
    }
    return spec_from_contract(parse_contract(rules), **given)


def make_snapshot(route: Route | None = None) -> Snapshot:
    """Production alone."""
    upstreams = tuple(Upstream(name=name, url=f"http://127.0.0.1/{name}") for name in "ab")
    routes = (
        route or Route(model="chat", production=PRODUCTION),
        Route(model="other", production=PRODUCTION),
    )
    return Snapshot(epoch=1, at="2026-11-25T00:00:00Z", reason="first", upstreams=upstreams, routes=routes)


def go(spec: RolloutSpec, **fields: Any) -> DecisionAttached:
    """A GO about the candidate."""
    given = {
        "decision": DECISION,
        "outcome": "GO",
        "candidate": spec.release,
        "suite": spec.suite,
        "contract": spec.contract_digest,
        **fields,
    }
    return DecisionAttached(**given)


def entries_of(events: list[Event], *, step_ms: int = 1000) -> list[Entry]:
    """Events in their places."""
    return [
        Entry(number, f"e{number}", number * step_ms, event) for number, event in enumerate(events, start=1)
    ]


def history(spec: RolloutSpec, stage: int) -> list[Event]:
    """The events by which the rollout came to ``stage``, in the epochs of ``EPOCHS``."""
    events: list[Event] = [Created(spec=spec.digest), go(spec), Started(epoch=2)]
    return events + [Advanced(to=to, epoch=2 + to) for to in range(1, stage + 1)]


def route_at(spec: RolloutSpec, stage: int) -> Route:
    """What workers serve in a stage."""
    at = spec.stages[stage]
    return Route(
        model=spec.route,
        production=spec.candidate if at.kind == "production" else PRODUCTION,
        canary=Canary(target=spec.candidate, share=at.share, salt=spec.salt) if at.kind == "canary" else None,
        shadow=Shadow(target=spec.candidate, share=at.share, salt=spec.shadow_salt)
        if at.kind == "shadow"
        else None,
        unit=spec.unit,
        rollout=spec.id,
    )


def make_traffic(
    spec: RolloutSpec, stage: int, requests: int, *, seed: int = 0, users: int | None = None, **bad: float
) -> list[dict[str, Any]]:
    """Rows of ``requests`` requests in a stage. ``bad``: chance of ``error``, ``slow``, ``abandon`` for the candidate;
    control has 1 %, 2 %, 2 %."""
    generator = np.random.default_rng([seed, stage])
    route, epoch = route_at(spec, stage), 2 + stage
    rows = []
    for index in range(requests):
        user = f"u{generator.integers(users)}" if users else f"u{seed}-{stage}-{index}"
        given = assign(route, user)
        name = f"q{seed}-{stage}-{index}"
        chance = {"error": 0.005, "slow": 0.02, "abandon": 0.02}
        if given.target == spec.candidate:
            chance |= bad
        row = make_row(
            name,
            user,
            epoch=epoch,
            lane=given.lane,
            arm=given.arm,
            release=given.target.release,
            at_ms=epoch * 1_000_000 + index,
        )
        row |= _fate(generator, chance)
        rows.append(row)
        if generator.random() < chance["abandon"]:
            rows.append(make_feedback(name, "abandon"))
        if given.shadow is not None:
            beside = make_row(
                f"{name}s", user, epoch=epoch, lane="shadow", arm="", release=NEW, at_ms=row["at_ms"]
            )
            rows.append({**beside, "kind": "shadow", "of": name})
            rows.append(make_verdict(name, f"{name}s", "tie"))
    return rows


def _fate(generator: np.random.Generator, chance: dict[str, float]) -> dict[str, Any]:
    if generator.random() < chance["error"]:
        return {"finish": "error", "status": 502}
    slow = generator.random() < chance["slow"]
    latency = float(generator.uniform(1000, 2000) if slow else generator.uniform(100, 900))
    return {"latency_ms": latency, "cost_usd": float(generator.uniform(0.001, 0.003))}


def make_row(name: str, user: str, **fields: Any) -> dict[str, Any]:
    """One ``end`` row of a request that went well."""
    return {
        "v": 1,
        "kind": "end",
        "id": name,
        "at_ms": 1000,
        "worker": "w1",
        "epoch": 4,
        "model": "chat",
        "lane": "production",
        "arm": "control",
        "release": OLD,
        "user": user,
        "status": 200,
        "finish": "stop",
        "tries": 1,
        "prompt_tokens": 80,
        "completion_tokens": 40,
        "cost_usd": 0.002,
        "latency_ms": 300.0,
        **fields,
    }


def make_feedback(request: str, kind: str, **fields: Any) -> dict[str, Any]:
    """A ``feedback`` row."""
    return {
        "v": 1,
        "kind": "feedback",
        "id": f"f-{request}-{kind}",
        "of": request,
        "at_ms": 1,
        "type": kind,
        **fields,
    }


def make_verdict(request: str, shadow: str, outcome: str, **fields: Any) -> dict[str, Any]:
    """A ``verdict`` row."""
    return {
        "v": 1,
        "kind": "verdict",
        "id": f"v-{shadow}",
        "of": request,
        "shadow": shadow,
        "at_ms": 1,
        "judge": "j",
        "outcome": outcome,
        "flipped": False,
        **fields,
    }


def one_unit_a_bucket(salt: str) -> list[str]:
    """Units that fill all ten thousand buckets, one each: shares over them are exact."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < BUCKETS:
        found.setdefault(bucket(salt, str(number)), str(number))
        number += 1
    return list(found.values())
