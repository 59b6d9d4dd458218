"""A candidate that is better, and one that is not, before simulated users.

Here: R1-tiny beside R1-Zero-tiny through shadow, canary and production; then the same weights with a sampling setting
that nobody evaluated, which the triggers roll back. Everything is the real thing: releases in the store, engines,
worker processes, HTTP, the traffic log. Only the users are made up, and the stages are seconds instead of hours. Not
here: any part of the system; this module only calls what a person would call.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.artifacts.errors import ConflictError
from posttrain.artifacts.home import Home, resolve
from posttrain.core.atomic import locked, make_folder, remove_tree
from posttrain.core.errors import ServingError, UnknownReferenceError
from posttrain.releases.create import create_release
from posttrain.serving.config import ServeConfig
from posttrain.serving.control.admin import AdminClient
from posttrain.serving.control.control import Control

MODEL = "assistant"
CONTRACT = """\
canary_min_n: 400
canary_hours: 0.001
alpha_rollback: 0.05
canary.abandon_rate.point <= 0.05
canary.safety_incidents.count == 0
canary.latency_p95_ms.point <= 950
canary.cost_per_1k_tokens_usd.point <= 0.022
"""
"""The canary rules of the specification, with a window that fits an example."""

STAGES: tuple[Mapping[str, Any], ...] = (
    {"kind": "gated", "share": 0},
    {"kind": "shadow", "share": 2000, "minimum_requests": 60, "minimum_seconds": 1},
    {"kind": "canary", "share": 100, "minimum_requests": 8, "minimum_seconds": 1},
    {"kind": "canary", "share": 500, "minimum_requests": 30, "minimum_seconds": 1},
    {"kind": "canary", "share": 2500, "minimum_requests": 120, "minimum_seconds": 1},
    {"kind": "canary", "share": 5000, "minimum_requests": 250, "minimum_seconds": 1},
    {"kind": "production", "share": 10_000, "minimum_requests": 200, "minimum_seconds": 1},
)
_SAMPLING = {"temperature": 0.7}
_UNTESTED = {"temperature": 2.5}
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 600.0

Say = Callable[[str], None]


class Releases(NamedTuple):
    """Names of the story's releases, and the decision about R1."""

    first: str
    second: str
    third: str
    decision: str


@dataclass(slots=True)
class Story:
    """What happened, in figures."""

    url: str = ""
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    """Status of each rollout at its end."""
    rollback: dict[str, Any] = field(default_factory=dict)
    """The report of the automatic rollback."""
    visits: dict[str, Any] = field(default_factory=dict)
    """What the users lived through."""
    log: dict[str, Any] = field(default_factory=dict)
    """Requests accepted and rows kept."""


def find_models(home: Home, run: str | None = None) -> str:
    """The run of r1-tiny whose models are used: ``run``, else the latest finished one."""
    if run is not None:
        return home.registry.run(run).id
    done = [
        found.id
        for found in home.registry.runs()
        if found.recipe == "r1-tiny" and found.status == "finished" and _has_gate(home, found.id)
    ]
    if not done:
        raise UnknownReferenceError(
            "there is no finished run of r1-tiny in this home", hint="`posttrain run r1-tiny` first: minutes"
        )
    return done[-1]


async def tell(home: Home, run: str, say: Say, *, workers: int = 2, at_once: int = 8) -> Story:
    """Play the story; ``say`` gets one line for each thing that happens."""
    story = Story()
    releases = make_releases(home, run)
    config = serve_config(run, releases.first, workers)
    # Each telling begins from the beginning: the chain of snapshots of the last one would make v2 production.
    folder = home.settings.home / "serving" / config.name
    make_folder(folder)
    with locked(folder / "control.lock", exclusive=True, wait=False) as mine:
        if not mine:
            raise ServingError("the example runs already in this home")
        remove_tree(folder)
    async with Control(config, home).running() as control:
        story.url = control.where()["url"]
        say(f"{releases.first} (R1-Zero) answers at {story.url}, {workers} workers")
        questions = _questions(home, run)
        async with _crowd(story, questions, at_once):
            admin = AdminClient(control.folder)
            say(
                f"the candidate {releases.second} (R1) has a GO of the gate; shadow, canary and production "
                "follow by themselves"
            )
            story.rollouts.append(await _roll_out(admin, releases.second, releases.decision, say))
            say(
                f"the candidate {releases.third} has the weights that passed, and a temperature of 2.5 that "
                "nobody evaluated"
            )
            story.rollouts.append(await _roll_out(admin, releases.third, releases.decision, say))
            story.rollback = _last_rollback(home)
            await asyncio.sleep(1.0)
    story.log = reconciled(control)
    return story


def make_releases(home: Home, run: str) -> Releases:
    """The three releases of the story. Names are never moved, so another run or other code gets new ones."""
    decision = f"{run}:gate.decision"
    passed = {"model": f"{run}:final-rl.model", "decision": decision}
    first = _release(home, "v1", {"model": f"{run}:zero-rl.model", "sampling": _SAMPLING})
    second = _release(home, "v2", {**passed, "sampling": _SAMPLING, "parent": first})
    third = _release(home, "v3", {**passed, "sampling": _UNTESTED, "parent": second})
    return Releases(first, second, third, decision)


def _release(home: Home, version: str, spec: Mapping[str, Any]) -> str:
    number = 1
    while True:
        name = f"example-{version}" if number == 1 else f"example-{version}.{number}"
        try:
            create_release(home, {"name": name, **spec}, actor="example")
        except ConflictError:
            number += 1
        else:
            return name


def serve_config(run: str, production: str, workers: int) -> ServeConfig:
    """The gateway of the example, on a free port."""
    return ServeConfig.model_validate(
        {
            "name": "example",
            "listen": "127.0.0.1:0",
            "workers": workers,
            "judge": {"kind": "reward_model", "name": "helpful", "model": f"{run}:helpful.model"},
            "routes": [
                {
                    "model": MODEL,
                    "production": {
                        "release": production,
                        "usd_per_1k_prompt_tokens": 0.01,
                        "usd_per_1k_completion_tokens": 0.02,
                    },
                    "engine": {"engine": "llama_cpp", "threads": 1, "parallel": 4, "context_tokens": 256},
                }
            ],
        }
    )


async def _roll_out(admin: AdminClient, release: str, decision: str, say: Say) -> dict[str, Any]:
    asked = {
        "release": release,
        "contract": CONTRACT,
        "decision": decision,
        "stages": list(STAGES),
        "shadow": {"judge": "helpful", "minimum_pairs": 20},
        "auto_advance": True,
        "usd_per_1k_prompt_tokens": 0.01,
        "usd_per_1k_completion_tokens": 0.02,
        "by": "example",
    }
    found = await asyncio.to_thread(admin.call, "POST", "/v1/rollouts", asked)
    label, deadline = "", time.monotonic() + _PATIENCE_SECONDS
    while True:
        if found["label"] != label:
            label = found["label"]
            say(f"  {release}: {label}")
        if found["phase"] in ("ROLLED_BACK", "ABORTED") or label == "COMPLETED":
            return dict(found)
        if time.monotonic() > deadline:
            raise ServingError(f"{release} is still at {label}: {'; '.join(found['advance'])}")
        await asyncio.sleep(_LOOK_SECONDS)
        found = await asyncio.to_thread(admin.call, "GET", f"/v1/rollouts/{found['id']}")


@asynccontextmanager
async def _crowd(story: Story, questions: Path, at_once: int) -> AsyncIterator[None]:
    """Users who ask for as long as the block runs."""
    command = [sys.executable, "-m", "posttrain.examples.users", story.url, MODEL, str(questions)]
    users = await asyncio.create_subprocess_exec(
        *command, "--at-once", str(at_once), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        users.send_signal(signal.SIGTERM)
        output, _ = await users.communicate()
        visits: dict[str, Any] = json.loads(output or b"{}")
        story.visits = _summary(visits)


def reconciled(control: Control) -> dict[str, Any]:
    """Accepted requests and rows of the log, after everything has stopped."""
    counts = control.reconcile()
    return {
        "accepted": sum(count.accepted for count in counts),
        "indexed": sum(count.indexed for count in counts),
        "lost": sum(count.lost for count in counts),
        "agrees": all(count.agrees for count in counts),
    }


def _summary(visits: dict[str, Any]) -> dict[str, Any]:
    latencies = sorted(visits.pop("latencies_ms", []))
    if latencies:
        visits["latency_p50_ms"] = round(latencies[len(latencies) // 2], 1)
        visits["latency_p95_ms"] = round(latencies[int(len(latencies) * 0.95)], 1)
    return visits


def _last_rollback(home: Home) -> dict[str, Any]:
    found = [entry for entry in home.registry.journal() if entry.action == "rollback"]
    return dict(found[-1].data) if found else {}


def _questions(home: Home, run: str) -> Path:
    folder: Path = home.store.view(resolve(home, f"{run}:problems.heldout"))
    return folder / "prompts.jsonl"


def _has_gate(home: Home, run: str) -> bool:
    return any(stage.name == "gate" and stage.outputs for stage in home.registry.run_stages(run))
