"""The life of adapters: only what is in the store and unchanged, never one name for two weights, and who goes first."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.records import Artifact, FileEntry
from posttrain.core.canonical import digest_file
from posttrain.engines.drivers.adapter_files import folder_digest, stage
from posttrain.engines.drivers.adapters import AdapterManager
from posttrain.engines.drivers.http_client import call
from posttrain.engines.drivers.openai import OpenAIDriver
from posttrain.engines.drivers.probe import Equals, Probe
from posttrain.engines.drivers.records import AdapterRef, OpenAIConfig
from posttrain.engines.drivers.server_driver import ServerDriver
from posttrain.engines.errors import EngineError, ReleaseRefused
from tests.engines.drivers_stale_engine import StaleEngine
from tests.engines.drivers_world import NEW_TOKENS, QUESTIONS, World, ask

pytestmark = pytest.mark.xdist_group("drivers")
LONG_QUESTION = " ".join(QUESTIONS)


@pytest.fixture
def manager(
    drivers_transformers: ServerDriver, drivers_world: World, tmp_path: Path
) -> Iterator[AdapterManager]:
    """Room for two adapters on a running engine; taken off at the end."""
    url = drivers_transformers.start()
    manager = AdapterManager(drivers_transformers, url=url, store=drivers_world.store, staging=tmp_path)
    yield manager
    for name in manager.loaded():
        manager.unroute(name)
        manager.unload(name)
    assert [model.adapter for model in drivers_transformers.models()] == [False]
    assert list(tmp_path.iterdir()) == []


# What is loaded


@pytest.fixture
def store(drivers_world: World, tmp_path: Path) -> Path:
    """A store of this test's own, with one adapter in it."""
    place = tmp_path / "store"
    shutil.copytree(drivers_world.adapters["red"].folder, place / "red")
    return place


def refused(adapter: AdapterRef, store: Path, why: str) -> None:
    staging = store.parent / "staging"
    with pytest.raises(ReleaseRefused, match=why):
        stage(adapter, store=store, staging=staging)
    assert list(staging.glob("*")) == [], "something was left"


def ref(folder: Path, digest: str | None = None) -> AdapterRef:
    return AdapterRef(name="red", digest=digest or folder_digest(folder), folder=folder)


def test_what_an_engine_is_given_is_a_copy_under_the_whole_digest(store: Path, tmp_path: Path) -> None:
    adapter = ref(store / "red")
    folder = stage(adapter, store=store, staging=tmp_path / "staging")
    assert folder.name == adapter.digest.removeprefix("sha256:")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    # A relative path is one below the store; a copy of another day is replaced.
    (folder / "adapter_config.json").write_text("{}")
    assert stage(ref(Path("red"), adapter.digest), store=store, staging=tmp_path / "staging") == folder
    assert digest_file(folder / "adapter_config.json") == digest_file(store / "red" / "adapter_config.json")


def test_an_artifact_is_checked_by_its_manifest(store: Path, tmp_path: Path) -> None:
    folder = store / "red"
    entries = [
        FileEntry(path.name, digest_file(path), path.stat().st_size) for path in sorted(folder.iterdir())
    ]
    adapter = AdapterRef.of("red", Artifact("adapter", tuple(entries)), folder)
    assert stage(adapter, store=store, staging=tmp_path / "staging").is_dir()
    (folder / "README.md").write_text("changed")
    with pytest.raises(ReleaseRefused, match=r"README.md is sha256:"):
        stage(adapter, store=store, staging=tmp_path / "other")


@pytest.mark.parametrize(
    "path",
    ["../outside", "red/../../outside", "/etc", "/", ".", "", "nowhere", "red/adapter_config.json",
     "red\0", "../store/red/../../outside"],
)  # fmt: skip
def test_a_path_that_leads_out_or_nowhere_is_refused(store: Path, path: str) -> None:
    shutil.copytree(store / "red", store.parent / "outside")
    refused(ref(Path(path), folder_digest(store / "red")), store, "is not loaded")


def test_links_that_lead_out_are_refused(store: Path) -> None:
    outside = store.parent / "outside"
    shutil.copytree(store / "red", outside)
    (store / "link").symlink_to(outside)
    refused(ref(Path("link"), folder_digest(outside)), store, "not inside the store")
    file = store / "red" / "adapter_model.safetensors"
    digest = folder_digest(store / "red")
    file.unlink()
    file.symlink_to(outside / "adapter_model.safetensors")
    refused(ref(store / "red", digest), store, "is a link")


def test_a_changed_byte_an_added_or_a_missing_file_is_refused(store: Path) -> None:
    folder = store / "red"
    adapter = ref(folder)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(adapter, store, "its files are sha256:")
    weights.write_bytes(whole)
    (folder / "more.py").write_text("print('hello')")
    refused(adapter, store, "its files are sha256:")
    (folder / "more.py").unlink()
    weights.unlink()
    refused(adapter, store, r"no adapter_model.safetensors; only safetensors")


def test_pickles_pipes_and_more_than_plain_lora_are_refused(store: Path) -> None:
    folder = store / "red"
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    settings = json.loads(config.read_text())
    for change in (
        {"use_dora": True},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"modules_to_save": ["lm_head"]},
        {"lora_alpha": "8"},
    ):
        config.write_text(json.dumps({**settings, **change}))
        refused(ref(folder), store, "is not loaded")
    config.write_text(json.dumps(settings))
    whole = weights.read_bytes()
    for broken in (pickle.dumps({"a": 1}), whole[:100], b""):
        weights.write_bytes(broken)
        refused(ref(folder), store, "cannot be read")
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))
    refused(ref(folder), store, "no adapter_model.safetensors")
    digest = folder_digest(folder)
    os.mkfifo(weights)
    refused(ref(folder, digest), store, "is no file")


# Who stays


def test_one_digest_is_loaded_once_from_however_many_threads(
    manager: AdapterManager, drivers_transformers: ServerDriver, drivers_world: World
) -> None:
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda: names.append(manager.load(drivers_world.adapters["red"])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    adapter = drivers_world.adapters["red"]
    assert names == [f"red@{adapter.digest.removeprefix('sha256:')[:12]}"] * 6
    assert [model.name for model in drivers_transformers.models() if model.adapter] == names[:1]


def test_the_least_recently_used_goes_and_never_one_that_is_routed_or_busy(
    manager: AdapterManager, drivers_world: World
) -> None:
    red, blue = (manager.load(drivers_world.adapters[name]) for name in ("red", "blue"))
    with manager.use(red):
        pass
    green = manager.load(drivers_world.adapters["green"])
    assert set(manager.loaded()) == {red, green}  # blue was used longest ago
    manager.route(red)
    assert manager.load(drivers_world.adapters["blue"]) == blue
    assert set(manager.loaded()) == {red, blue}  # red is older, and routed
    with (
        manager.use(blue),
        pytest.raises(EngineError, match="all 2 adapters of the engine are routed or have"),
    ):
        manager.load(drivers_world.adapters["green"])
    assert set(manager.loaded()) == {red, blue}
    with pytest.raises(EngineError, match="is routed, and stays"):
        manager.unload(red)
    manager.unroute(red)
    with manager.use(red), pytest.raises(EngineError, match="still has requests"):
        manager.unload(red, drain_seconds=0.1)
    assert manager.loaded()[red].state == "ready"
    with pytest.raises(EngineError, match="not loaded"):
        manager.route(green)


def test_requests_that_the_engine_has_keep_their_adapter(
    manager: AdapterManager, drivers_transformers: ServerDriver, drivers_world: World
) -> None:
    url = drivers_transformers.start()
    red = manager.load(drivers_world.adapters["red"])
    whole = ask(url, red, QUESTIONS[0], max_tokens=150)
    answers: list[str] = []
    asking = threading.Thread(
        target=lambda: answers.extend(ask(url, red, QUESTIONS[0], max_tokens=150) for _ in range(3))
    )
    asking.start()
    while not drivers_transformers.busy([red])[red]:
        pass
    with pytest.raises(EngineError, match="still has requests"):
        manager.unload(red, drain_seconds=0.0)
    asking.join()
    manager.unload(red)
    assert answers == [whole] * 3


def test_an_adapter_is_probed_before_it_is_used_and_goes_where_it_fails(
    manager: AdapterManager, drivers_transformers: ServerDriver, drivers_world: World
) -> None:
    def known(text: str) -> Probe:
        return Probe(
            id="known",
            messages=({"role": "user", "content": QUESTIONS[0]},),
            max_tokens=NEW_TOKENS,
            expect=Equals(text=text),
        )

    red = drivers_world.adapters["red"]
    with pytest.raises(EngineError, match="failed the probe known: answered"):
        manager.load(red, probes=[known(drivers_world.texts["blue"][QUESTIONS[0]])])
    assert manager.loaded() == {}
    assert not any(model.adapter for model in drivers_transformers.models())
    assert manager.load(red, probes=[known(drivers_world.texts["red"][QUESTIONS[0]])]) in manager.loaded()


def test_one_name_never_stands_for_two_digests(manager: AdapterManager, drivers_world: World) -> None:
    """Not even where the twelve digits that a name carries are the same."""
    red = drivers_world.adapters["red"]
    name = manager.load(red)
    twin = red.model_copy(update={"digest": red.digest[:-1] + ("0" if red.digest[-1] != "0" else "1")})
    assert twin.served_name == name
    with pytest.raises(ReleaseRefused, match="has stood for other weights"):
        manager.load(twin)
    manager.unload(name)
    with pytest.raises(ReleaseRefused, match="has stood for other weights"):
        manager.load(twin)


# The stale cache


@pytest.fixture
def stale(drivers_world: World) -> Iterator[StaleEngine]:
    engine = StaleEngine(drivers_world.model.folder)
    yield engine
    engine.close()


def test_a_name_that_is_used_again_answers_from_old_weights(
    stale: StaleEngine, drivers_world: World, tmp_path: Path
) -> None:
    """The trap itself: without it, the next test would prove nothing."""
    place = tmp_path / "adapter"
    fresh = {}
    for name in ("red", "blue"):
        folder = str(drivers_world.adapters[name].folder)
        _load(stale, f"fresh-{name}", folder)
        fresh[name] = ask(stale.url, f"fresh-{name}", LONG_QUESTION)
    assert fresh["red"] != fresh["blue"]
    for way in ("in place", "unloaded"):
        shutil.copytree(drivers_world.adapters["red"].folder, place, dirs_exist_ok=True)
        _load(stale, f"tone {way}", str(place))
        assert ask(stale.url, f"tone {way}", LONG_QUESTION) == fresh["red"]
        shutil.copytree(drivers_world.adapters["blue"].folder, place, dirs_exist_ok=True)
        if way == "unloaded":
            call("POST", f"{stale.url}/unload_lora_adapter", seconds=30, body={"lora_name": f"tone {way}"})
        _load(stale, f"tone {way}", str(place), load_inplace=way == "in place")
        hits = stale.hits
        answer = ask(stale.url, f"tone {way}", LONG_QUESTION)
        assert stale.hits == hits + 1
        assert answer != fresh["blue"], "the cache of the old weights was not used"


def test_the_manager_makes_stale_answers_impossible(
    stale: StaleEngine, drivers_world: World, tmp_path: Path
) -> None:
    """Same name, same path, same engine: other weights have another name there, and answer as themselves."""
    driver = OpenAIDriver(OpenAIConfig(url=stale.url, adapter_api="vllm"))
    store = tmp_path / "store"
    manager = AdapterManager(driver, url=driver.start(), store=store, staging=tmp_path / "staging")
    place = store / "tone"
    names = []
    for round_ in range(2):
        for kind in ("red", "blue", "green"):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(drivers_world.adapters[kind].folder, place)
            adapter = AdapterRef(name="tone", digest=folder_digest(place), folder=place)
            name = manager.load(adapter)
            names.append(name)
            hits = stale.hits
            for question in QUESTIONS:
                assert ask(stale.url, name, question) == drivers_world.texts[kind][question]
            # The cache is at work in the second round; it holds what these very weights computed.
            assert (stale.hits > hits) is (round_ == 1)
            manager.unload(name)
    assert len(set(names)) == 3
    assert all(name.startswith("tone@") for name in names)


def _load(engine: StaleEngine, name: str, folder: str, **more: Any) -> None:
    body = {"lora_name": name, "lora_path": folder, **more}
    assert call("POST", f"{engine.url}/load_lora_adapter", seconds=30, body=body).status == 200
