"""A whole gateway with mock upstreams: control in the test's loop, its workers and indexer as real processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.artifacts.home import Home, open_home
from posttrain.artifacts.records import Artifact
from posttrain.core.settings import Settings
from posttrain.promotion.records import Decision, Evidence
from posttrain.releases.create import create_release
from posttrain.serving.config import ServeConfig
from posttrain.serving.control.admin import AdminClient
from posttrain.serving.control.control import Control
from posttrain.traffic.follow import Follower
from tests.serving.gateway_world import Client, chat
from tests.serving.upstreams import Upstream as MockUpstream

SUITE = "sha256:" + "5" * 64
CONTRACT = """\
canary_min_n: 60
canary_hours: 0.0001
alpha_rollback: 0.05
canary.error_rate.point <= 0.05
canary.safety_incidents.count == 0
"""
STAGES = [
    {"kind": "gated", "share": 0},
    {"kind": "shadow", "share": 5000, "minimum_requests": 5},
    {"kind": "canary", "share": 1000, "minimum_requests": 5},
    {"kind": "canary", "share": 5000, "minimum_requests": 30},
    {"kind": "production", "share": 10_000, "minimum_requests": 20},
]


@dataclass
class Load:
    """Clients that ask without a pause."""

    port: int
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    """Connections that ended without an answer."""
    by_text: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    """Of answers that came whole."""
    over: bool = False

    async def run(self, clients: int = 4, users: int = 200) -> None:
        """Until it is over; what was asked is waited for."""
        await asyncio.gather(*(self._client(number, users) for number in range(clients)))

    async def _client(self, number: int, users: int) -> None:
        count = 0
        while not self.over:
            try:
                client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
            except OSError:
                await asyncio.sleep(0.01)
                continue
            try:
                while not self.over:
                    count += 1
                    reply = await client.ask(chat(user=f"user-{(number * 7919 + count * 31) % users}"))
                    self.statuses[reply.status] += 1
                    self.ids.append(reply.id)
                    if reply.status == 200:
                        self.by_text[reply.json()["choices"][0]["message"]["content"]] += 1
                    await asyncio.sleep(0)
            except (OSError, EOFError, ValueError):
                self.broken += 1
            finally:
                client.close()


@dataclass
class Place:
    """Everything that a test needs."""

    home: Home
    control: Control
    old: MockUpstream
    new: MockUpstream
    admin: AdminClient

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the admin surface."""
        return await asyncio.to_thread(self.admin.call, method, path, body)

    @asynccontextmanager
    async def load(self, **options: int) -> AsyncIterator[Load]:
        """Clients meanwhile."""
        load = Load(self.control.port)
        task = asyncio.create_task(load.run(**options))
        try:
            yield load
        finally:
            load.over = True
            await task

    async def until(self, holds: Any, seconds: float = 60.0) -> Any:
        """Wait for something true; its value."""
        for _ in range(int(seconds / 0.02)):
            value = holds()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)
        raise AssertionError("it did not come")

    def rows(self, *kinds: str) -> list[dict[str, Any]]:
        """Rows of the log."""
        rows = Follower(self.control.traffic_folder).poll(10_000_000)
        return [row for row in rows if row["kind"] in kinds]


def serve_config(
    old: MockUpstream, new: MockUpstream, *, production: dict[str, Any] | None = None, **changes: Any
) -> ServeConfig:
    """Production is ``old``, unless said otherwise; releases are run by somebody else at ``new``."""
    data: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "workers": 2,
        "grace_seconds": 5,
        "upstreams": [{"name": "old", "url": old.url}],
        "routes": [
            {
                "model": "m",
                "production": production or {"upstream": "old", "model": "old"},
                "engine": {"engine": "openai", "url": new.url},
            }
        ],
        **changes,
    }
    return ServeConfig.model_validate(data)


@asynccontextmanager
async def gateway(folder: Path, **changes: Any) -> AsyncIterator[Place]:
    """A running gateway."""
    async with upstreams() as (old, new), running(folder, old, new, **changes) as place:
        yield place


@asynccontextmanager
async def upstreams() -> AsyncIterator[tuple[MockUpstream, MockUpstream]]:
    """Both mock upstreams."""
    old, new = await MockUpstream("old").start(), await MockUpstream("new").start()
    try:
        yield old, new
    finally:
        await old.stop()
        await new.stop()


@asynccontextmanager
async def running(folder: Path, old: MockUpstream, new: MockUpstream, **changes: Any) -> AsyncIterator[Place]:
    """A gateway in front of them; in the same folder again, it goes on where it was."""
    home = open_home(Settings(home=folder / "home"))
    async with Control(serve_config(old, new, **changes), home).running() as control:
        yield Place(home, control, old, new, AdminClient(control.folder))


def make_release(home: Home, name: str, weights: bytes = b"weights", **more: Any) -> tuple[str, Artifact]:
    """A release of a few bytes, and its weights."""
    with home.store.writer("model") as writer:
        (writer.directory / "model.safetensors").write_bytes(weights)
        (writer.directory / "config.json").write_text("{}")
        (writer.directory / "tokenizer.json").write_text("{}")
        (writer.directory / "chat_template.jinja").write_text("{{ messages }}")
        model = writer.commit()
    home.registry.record(model)
    create_release(home, {"name": name, "model": model.digest, **more})
    return name, model


def make_decision(home: Home, model: Artifact, outcome: str = "GO") -> str:
    """What a gate said of a model; the reference of its artifact."""
    evidence = Evidence(
        model=model.digest,
        suite=SUITE,
        lane="frozen",
        header="sha256:" + "1" * 64,
        content="sha256:" + "2" * 64,
        artifact=None,
        rows=1,
        cases=1,
        unscored=0,
    )
    decision = Decision(
        outcome=outcome,
        contract="success@1.point >= 0.5\n",
        contract_digest="sha256:" + "3" * 64,
        options={},
        candidate=evidence,
        baseline=None,
        canary=None,
        rules=(),
        table=(),
        flips={},
        sample_ratio=None,
    )
    with home.store.writer("decision", meta={"outcome": outcome}) as writer:
        (writer.directory / "decision.json").write_bytes(decision.to_bytes())
        artifact = writer.commit()
    home.registry.record(artifact)
    return artifact.digest
