"""A whole gateway with a real engine: releases with adapters, one process, each public name its own text."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.home import Home, open_home
from posttrain.artifacts.records import Artifact
from posttrain.artifacts.releases.create import create_release
from posttrain.core.settings import Settings
from posttrain.serving.config import ServeConfig
from posttrain.serving.control.control import Control
from posttrain.serving.traffic.follow import Follower
from tests.serving.drivers_world import QUESTIONS, World, ask_all
from tests.serving.gateway_world import Client, run

pytestmark = pytest.mark.xdist_group("drivers")
ENGINES: dict[str, dict[str, Any]] = {
    "transformers": {"engine": "transformers", "context_tokens": 256, "max_adapters": 2},
    "llama_cpp": {
        "engine": "llama_cpp", "context_tokens": 256, "max_adapters": 2, "threads": 1, "dtype": "float32",
        "parallel": 1, "deterministic": True,
    },
}  # fmt: skip
TINY = ENGINES["transformers"]


def keep(home: Home, kind: str, folder: Path, *, only: tuple[str, ...] = ()) -> Artifact:
    """A folder as an artifact of the home."""
    with home.store.writer(kind) as writer:
        for path in sorted(folder.iterdir()):
            if path.is_file() and (not only or path.name in only):
                shutil.copy(path, writer.directory / path.name)
        artifact = writer.commit()
    home.registry.record(artifact)
    return artifact


def make_home(folder: Path, world: World, names: tuple[str, ...] = ("red", "blue", "green")) -> Home:
    """The tiny model in a store, and a release of it for each adapter: ``base``, ``red``…"""
    home = open_home(Settings(home=folder / "home"))
    model = keep(home, "model", world.model.folder)
    create_release(home, {"name": "base", "model": model.digest})
    for name in names:
        adapter = keep(home, "adapter", world.adapters[name].folder)
        pieces = [{"name": name, "piece": adapter.digest}]
        create_release(home, {"name": name, "model": model.digest, "adapters": pieces})
    return home


def serve_config(releases: Mapping[str, str], engine: Mapping[str, Any] = TINY) -> ServeConfig:
    """Public names, and the release behind each."""
    return ServeConfig.model_validate(
        {
            "listen": "127.0.0.1:0",
            "workers": 2,
            "grace_seconds": 5,
            "upstreams": [],
            "routes": [
                {"model": public, "production": {"release": release}, "engine": dict(engine)}
                for public, release in releases.items()
            ],
        }
    )


@asynccontextmanager
async def gateway(home: Home, config: ServeConfig) -> AsyncIterator[Control]:
    async with Control(config, home).running() as control:
        yield control


@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_adapters_and_their_base_are_served_at_once_by_one_engine(
    drivers_world: World, tmp_path: Path, engine: str
) -> None:
    if engine == "llama_cpp":
        pytest.importorskip("xllamacpp")
        pytest.importorskip("gguf")
    home = make_home(tmp_path, drivers_world)
    public = {"base": "tiny", "red": "tiny-red", "blue": "tiny-blue"}
    expected = {name: drivers_world.texts[name] for name in public}
    assert len({json.dumps(texts) for texts in expected.values()}) == 3, "the adapters change nothing"

    async def test() -> None:
        config = serve_config({name: release for release, name in public.items()}, ENGINES[engine])
        async with gateway(home, config) as control:
            engines = control.deployer.status()
            assert len(engines) == 1, "one process holds them all"
            assert sorted(engines[0]["releases"]) == sorted(public)
            assert set(engines[0]["adapters"].values()) == {"ready"} and len(engines[0]["adapters"]) == 2
            said = await asyncio.to_thread(ask_all, control.url(), public, rounds=3)
            assert said == expected
            assert await streamed(control.port, public["red"], QUESTIONS[0]) == expected["red"][QUESTIONS[0]]
            traffic = control.traffic_folder
        rows = [row for row in Follower(traffic).poll(1_000_000) if row["kind"] == "end"]
        assert len(rows) == 3 * 3 * len(QUESTIONS) + 1
        by_model = {row["model"]: (row["target"], row.get("adapter"), row["upstream"]) for row in rows}
        assert {name: found[0] for name, found in by_model.items()} == {
            "tiny": "base",
            "tiny-red": "red",
            "tiny-blue": "blue",
        }
        adapters = [adapter for _, adapter, _ in by_model.values()]
        assert by_model["tiny"][1] is None and len(set(adapters)) == 3
        assert len({upstream for _, _, upstream in by_model.values()}) == 1

    run(test, 300)


async def streamed(port: int, model: str, question: str) -> str:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    messages = [{"role": "user", "content": question}]
    reply = await client.ask(
        {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, "stream": True}
    )
    client.close()
    assert reply.whole and reply.events[-1] == "[DONE]"
    return "".join(
        event["choices"][0]["delta"].get("content") or "" for event in reply.events[:-1] if event["choices"]
    )
