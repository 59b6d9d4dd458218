"""A whole gateway with a real engine: releases with adapters, one process, each public name its own text."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.home import Home, open_home
from posttrain.artifacts.records import Artifact
from posttrain.core.errors import PosttrainError, ServingError
from posttrain.core.settings import Settings
from posttrain.releases.create import create_release
from posttrain.routing.records import Snapshot
from posttrain.serving.config import ServeConfig, TargetConfig
from posttrain.serving.control.admin import AdminClient
from posttrain.serving.control.control import Control
from posttrain.traffic.follow import Follower
from tests.engines.drivers_stale_engine import StaleEngine
from tests.engines.drivers_world import QUESTIONS, World, ask, ask_all
from tests.serving.control_gateway_world import CONTRACT, SUITE
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


@pytest.mark.parametrize("engine", ["transformers", pytest.param("llama_cpp", marks=pytest.mark.slow)])
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
            # Housekeeping may look before the snapshot that names an adapter is there; what serves is never evicted.
            control.deployer.retire((), 3600.0)
            control.deployer.retire(control._needed(), 3600.0)
            assert "all 2 adapters of the engine are routed" in await propose(control, "green", route="tiny")
            said = await asyncio.to_thread(ask_all, control.url(), public)
            assert said == expected
            traffic = control.traffic_folder
        rows = [row for row in Follower(traffic).poll(1_000_000) if row["kind"] == "end"]
        assert len(rows) == 4 * 3 * len(QUESTIONS) + 1
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


# What comes from outside: names and paths

NAMES = (
    "..", "../../red", "a/b", "a\0b", "\uff52\uff45\uff44", "r\u0435d", " red", "red\n", ".red", "r" * 64, "red@1",
    "red/../..",
)  # fmt: skip
"""Of adapters."""
REFERENCES = (
    "../../red", "release/../red", "/etc/passwd", "red\0", "", "r\u0435d", 7, ["red"], {"a": 1}, None,
)  # fmt: skip
"""Of releases."""
PATHS = (
    "/v1/rollouts/../../keys.json", "/v1/rollouts/%2e%2e%2fadmin.json", "/v1/rollouts/..", "/admin.json",
)  # fmt: skip
"""Of the admin surface."""


@asynccontextmanager
async def watched(home: Home, world: World) -> AsyncIterator[tuple[Control, StaleEngine]]:
    """A gateway whose route runs releases on an engine that says what it was asked to load."""
    engine = StaleEngine(world.model.folder)
    data = {
        "listen": "127.0.0.1:0",
        "workers": 1,
        "grace_seconds": 5,
        "upstreams": [{"name": "old", "url": engine.url}],
        "routes": [
            {
                "model": "m",
                "production": {"upstream": "old", "model": "base"},
                "engine": {"engine": "openai", "url": engine.url, "adapter_api": "vllm"},
            }
        ],
    }
    try:
        async with gateway(home, ServeConfig.model_validate(data)) as control:
            yield control, engine
    finally:
        engine.close()


async def propose(control: Control, release: Any, **more: Any) -> str:
    """Why a rollout of it is refused; the call itself must be answered."""
    admin = AdminClient(control.folder)
    asked = {"release": release, "contract": CONTRACT, "suite": SUITE, "start": False, "by": "test", **more}
    try:
        rollout = await asyncio.to_thread(admin.call, "POST", "/v1/rollouts", asked)
    except ServingError as error:
        assert "no gateway answers" not in str(error), "the call was not answered at all"
        return str(error)
    await asyncio.to_thread(admin.call, "POST", f"/v1/rollouts/{rollout['id']}/abort", {"by": "test"})
    return ""


def test_what_names_or_holds_an_adapter_may_not_lead_anywhere_else(
    drivers_world: World, tmp_path: Path
) -> None:
    home = make_home(tmp_path, drivers_world, ("red",))
    model = keep(home, "model", drivers_world.model.folder)
    source = drivers_world.adapters["red"].folder
    made: dict[str, str] = {}

    def release(name: str, adapter: Artifact, called: str = "tone") -> None:
        """A release with this adapter, where one can be made."""
        pieces = [{"name": called, "piece": adapter.digest}]
        try:
            create_release(home, {"name": name, "model": model.digest, "adapters": pieces})
            made[name] = ""
        except (PosttrainError, ValueError) as error:
            made[name] = str(error)

    good = keep(home, "adapter", source)
    for number, called in enumerate(NAMES):
        release(f"name-{number}", good, called)
    folder = tmp_path / "pickle"
    shutil.copytree(source, folder)
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    release("pickle", keep(home, "adapter", folder))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    release("bin", keep(home, "adapter", folder))
    release("no-weights", keep(home, "adapter", source, only=("adapter_config.json",)))
    release("a-model", model)
    linked, grown = (keep(home, "adapter", drivers_world.adapters[name].folder) for name in ("blue", "green"))
    release("linked", linked)
    release("grown", grown)
    weights = home.store.view(linked) / "adapter_model.safetensors"
    weights.parent.chmod(0o755)
    weights.unlink()
    weights.symlink_to(drivers_world.adapters["blue"].folder / "adapter_model.safetensors")
    outside = tmp_path / "outside"
    shutil.copytree(drivers_world.adapters["green"].folder, outside)
    view = home.store.view(grown)
    view.parent.chmod(0o755)
    view.chmod(0o755)
    shutil.rmtree(view)
    view.symlink_to(outside)
    (outside / "adapter_model.safetensors").write_bytes(
        (drivers_world.adapters["blue"].folder / "adapter_model.safetensors").read_bytes()
    )

    async def test() -> None:
        async with watched(home, drivers_world) as (control, engine):
            refused = {
                name: why or await propose(control, name)
                for name, why in made.items()
            }  # fmt: skip
            healed = {name for name, why in refused.items() if not why}
            assert healed <= {"linked", "grown"}, refused
            # A view that was meddled with is made again from the store, or refused; what it led to is never loaded.
            for name in healed:
                artifact, colour = (linked, "blue") if name == "linked" else (grown, "green")
                served = f"tone@{artifact.digest.removeprefix('sha256:')[:12]}"
                said = await asyncio.to_thread(ask, engine.url, served, QUESTIONS[0])
                assert said == drivers_world.texts[colour][QUESTIONS[0]]
            assert (outside / "adapter_model.safetensors").exists(), "what is not the store's was removed"
            assert len(engine.models) == 1 + len(healed)
            for reference in REFERENCES:
                assert await propose(control, reference), reference
            for adapter in ("../red", "red\0", "r\u0435d", "/", 7, ["red"]):
                assert await propose(control, "red", adapter=adapter), adapter
            assert len(engine.models) == 1 + len(healed)
            admin = AdminClient(control.folder)
            for path in PATHS:
                with pytest.raises(ServingError, match=r"no rollout|there is no"):
                    await asyncio.to_thread(admin.call, "GET", path)
            assert await propose(control, "red") == ""
            assert len(engine.models) == 2 + len(healed)

    run(test, 120)


def test_an_adapter_that_is_a_folder_in_the_release_itself_is_served_and_pickles_are_not(
    drivers_world: World, tmp_path: Path
) -> None:
    home = make_home(tmp_path, drivers_world, ())
    base = keep(home, "model", drivers_world.model.folder).digest
    folder = tmp_path / "own" / "lora"
    shutil.copytree(drivers_world.adapters["red"].folder, folder)

    def spec(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "model": base,
            "adapters": [{"name": "tone", "piece": {"file": str(folder)}}],
        }

    create_release(home, spec("own"))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weight": [1.0]}))
    with pytest.raises(PosttrainError, match="pickle"):
        create_release(home, spec("pickled"))

    async def test() -> None:
        async with watched(home, drivers_world) as (control, engine):
            assert await propose(control, "own") == ""
            (served,) = [name for name in engine.models if name != "base"]
            said = await asyncio.to_thread(ask, engine.url, served, QUESTIONS[0])
            assert said == drivers_world.texts["red"][QUESTIONS[0]]
            assert "pickled" in await propose(control, "pickled")
            assert len(engine.models) == 2

    run(test, 120)


def test_a_rollback_to_an_adapter_that_is_not_loaded_loads_it_first_and_fails_no_request(
    drivers_world: World, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    home = make_home(tmp_path, drivers_world)
    config = serve_config({"tiny": "red"})

    def serving(control: Control, release: str) -> Any:
        """The snapshot with another release in production, as a rollout leaves it."""

        async def move() -> None:
            target, held = await control.deployer.deploy("tiny", TargetConfig(release=release))
            known = {upstream.name: upstream for upstream in held}

            def change(snapshot: Snapshot) -> Snapshot:
                route = snapshot.routes[0].model_copy(update={"production": target})
                return snapshot.model_copy(update={"routes": (route,), "upstreams": tuple(known.values())})

            await control.swapper.swap(change, f"to {release}")

        return move()

    async def test() -> None:
        async with gateway(home, config) as control:
            await serving(control, "blue")
        async with gateway(home, config) as control:  # only what serves is loaded again
            engine = control.deployer.status()[0]
            assert [name.partition("@")[0] for name in engine["adapters"]] == ["blue"]
            question, stop, said, failed = QUESTIONS[0], asyncio.Event(), [], []

            async def keep_asking() -> None:
                while not stop.is_set():
                    try:
                        said.append(await asyncio.to_thread(ask, control.url(), "tiny", question))
                    except AssertionError as error:
                        failed.append(error)

            asking = [asyncio.create_task(keep_asking()) for _ in range(2)]
            while not said:
                await asyncio.sleep(0.01)
            admin = AdminClient(control.folder)
            report = await asyncio.to_thread(admin.call, "POST", "/v1/rollback", {"by": "ann"})
            record_property("milliseconds", report["milliseconds"])  # from the order on; in `--junit-xml`
            before = len(said)
            while len(said) < before + 3:
                await asyncio.sleep(0.01)
            stop.set()
            await asyncio.gather(*asking)
            assert (report["before"], report["after"], report["late"]) == ("blue", "red", [])
            assert not failed
            assert said[0] == drivers_world.texts["blue"][question]
            assert said[-1] == drivers_world.texts["red"][question]

    run(test, 300)
