"""Configs, command lines and promises of the engines; servers that others run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from posttrain.core.canonical import digest_bytes
from posttrain.engines.drivers.llama_cpp import LlamaCppDriver
from posttrain.engines.drivers.openai import OpenAIDriver, vllm_busy
from posttrain.engines.drivers.records import (
    AdapterRef,
    EngineConfig,
    LlamaCppConfig,
    OpenAIConfig,
    ServedFolder,
    ServedModel,
    SglangConfig,
    TransformersConfig,
    VllmConfig,
    default_threads,
)
from posttrain.engines.drivers.registry import create_driver
from posttrain.engines.drivers.server_driver import ServerDriver, samples
from posttrain.engines.drivers.sglang import SglangDriver
from posttrain.engines.drivers.transformers import TransformersDriver
from posttrain.engines.drivers.vllm import VllmDriver
from posttrain.engines.errors import EngineError

MODEL = ServedFolder(folder=Path("/models/m"), digest=digest_bytes(b"m"), name="m")
CONFIGS: TypeAdapter[Any] = TypeAdapter(EngineConfig)


def options(command: tuple[str, ...]) -> dict[str, str]:
    """The words after each ``--option``."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in command:
        if word.startswith("--"):
            name = word
            found[name] = []
        elif name:
            found[name].append(word)
    return {name: " ".join(words) for name, words in found.items()}


def test_a_config_names_its_engine_and_comes_back_from_json(tmp_path: Path) -> None:
    for data, kind in (
        ({"engine": "llama_cpp", "model": "m"}, LlamaCppDriver),
        ({"engine": "transformers", "model": "m"}, TransformersDriver),
        ({"engine": "vllm", "model": "m", "python": "/v/bin/python"}, VllmDriver),
        ({"engine": "sglang", "model": "m", "python": "/s/bin/python"}, SglangDriver),
        ({"engine": "openai", "url": "http://127.0.0.1:1/v1"}, OpenAIDriver),
    ):
        config = CONFIGS.validate_python(data)
        assert CONFIGS.validate_json(config.model_dump_json()) == config
        driver = create_driver(config, MODEL, workdir=tmp_path, cache=tmp_path)
        assert type(driver) is kind
        assert not driver.health().ok
        driver.stop()
    with pytest.raises(EngineError, match="needs its model"):
        create_driver(LlamaCppConfig(model="m"), None, workdir=tmp_path, cache=tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        {"engine": "llama_cpp"},
        {"engine": "llama_cpp", "model": "m", "thread": 2},
        {"engine": "llama_cpp", "model": "m", "deterministic": True},
        {"engine": "llama_cpp", "model": "m", "threads": 0},
        {"engine": "vllm", "model": "m"},
        {"engine": "openai", "url": "file:///etc/passwd"},
        {"engine": "ollama", "model": "m"},
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CONFIGS.validate_python(data)


def test_llama_cpp_never_gets_a_thread_on_every_core() -> None:
    usable = len(os.sched_getaffinity(0))
    assert LlamaCppConfig(model="m").threads == default_threads() == max(1, usable - 1)
    assert TransformersConfig(model="m").threads == 1


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "a b", "x@y", "ä", "a" * 64, "a\n"])
def test_an_adapters_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(ValidationError):
        AdapterRef(name=name, digest=digest_bytes(b"x"), folder=Path("x"))


def test_vllm_is_launched_by_its_module_with_adapters_and_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_TEST_KEY", "sesame")
    config = VllmConfig(
        model="m",
        python="/v/bin/python",
        max_adapters=3,
        max_lora_rank=32,
        context_tokens=4096,
        parallel=8,
        batch_invariant=True,
        key_variable="VLLM_TEST_KEY",
        extra_arguments=("--tensor-parallel-size", "2"),
        environment={"CUDA_VISIBLE_DEVICES": "1"},
    )
    driver = VllmDriver(config, MODEL, workdir=tmp_path)
    command = driver.command(8123)
    assert command[:3] == ("/v/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert options(command) == {
        "--model": "/models/m",
        "--served-model-name": MODEL.served_name,
        "--host": "127.0.0.1",
        "--port": "8123",
        "--max-model-len": "4096",
        "--max-num-seqs": "8",
        "--dtype": "auto",
        "--enable-lora": "",
        "--max-loras": "4",
        "--max-lora-rank": "32",
        "--tensor-parallel-size": "2",
    }
    environment = driver.environment()
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environment["VLLM_BATCH_INVARIANT"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["VLLM_API_KEY"] == "sesame"
    assert "sesame" not in " ".join(command)
    assert driver.determinism().batch_invariant
    assert driver.determinism().flags == {"VLLM_BATCH_INVARIANT": "1"}
    plain = VllmDriver(VllmConfig(model="m", python="/v/bin/python", max_adapters=0), MODEL, workdir=tmp_path)
    assert "--enable-lora" not in plain.command(1)
    assert not {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_BATCH_INVARIANT"} & set(plain.environment())
    assert not plain.determinism().same_request_same_text


def test_sglang_is_launched_with_adapters_and_promises(tmp_path: Path) -> None:
    config = SglangConfig(
        model="m", python="/s/bin/python", max_adapters=3, deterministic=True, served_name="base"
    )
    driver = SglangDriver(config, MODEL, workdir=tmp_path)
    command = driver.command(8124)
    assert command[:3] == ("/s/bin/python", "-m", "sglang.launch_server")
    assert options(command) == {
        "--model-path": "/models/m",
        "--served-model-name": "base",
        "--host": "127.0.0.1",
        "--port": "8124",
        "--context-length": "2048",
        "--max-running-requests": "4",
        "--dtype": "auto",
        "--enable-metrics": "",
        "--enable-lora": "",
        "--max-lora-rank": "16",
        "--lora-target-modules": "all",
        "--max-loras-per-batch": "3",
        "--max-loaded-loras": "3",
        "--lora-eviction-policy": "lru",
        "--enable-deterministic-inference": "",
    }
    assert (driver.load_path, driver.unload_path) == ("/load_lora_adapter", "/unload_lora_adapter")
    assert driver.determinism().same_request_same_text
    plain = SglangDriver(
        SglangConfig(model="m", python="/s/bin/python", max_adapters=0), MODEL, workdir=tmp_path
    )
    assert not any("lora" in word or "determin" in word for word in plain.command(1))


def test_a_key_that_is_not_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="POSTTRAIN_NO_SUCH_KEY is not set"):
        OpenAIDriver(OpenAIConfig(url="http://127.0.0.1:1/v1", key_variable="POSTTRAIN_NO_SUCH_KEY"))


@pytest.mark.xdist_group("drivers")
def test_a_server_of_others_is_an_engine(drivers_transformers: ServerDriver, tmp_path: Path) -> None:
    driver = OpenAIDriver(OpenAIConfig(url=drivers_transformers.start()))
    assert driver.base == ""
    assert driver.start() == drivers_transformers.start()
    assert driver.base == drivers_transformers.base
    assert driver.health().ok
    assert driver.health().pid is None
    assert driver.models() == [ServedModel(name=drivers_transformers.base)]
    assert "posttrain_engine_tokens_total" in driver.metrics()
    assert driver.max_adapters == 0
    with pytest.raises(EngineError, match="loads no adapters"):
        driver.load_adapter("x@1", tmp_path)
    assert not driver.determinism().same_request_same_text
    driver.stop()
    assert drivers_transformers.health().ok


def test_a_server_that_is_down_is_not_usable() -> None:
    driver = OpenAIDriver(OpenAIConfig(url="http://127.0.0.1:1/v1"))
    assert not driver.health().ok
    with pytest.raises(EngineError, match="does not answer"):
        driver.start()


def test_prometheus_pages_are_read() -> None:
    page = """# HELP x what it is
# TYPE x gauge
x 1
x_total{model="a b",le="0.5"} 2.5e3
y{z="}"} NaN 1700000000
not a sample
"""
    found = samples(page)
    assert found["x"] == 1
    assert found['x_total{model="a b",le="0.5"}'] == 2500
    assert len(found) == 3


def test_vllm_says_which_adapters_have_requests() -> None:
    def page(running: float) -> dict[str, float]:
        return samples(
            f"""
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0
vllm:lora_requests_info{{max_lora="2",running_lora_adapters="a@1,b@2",waiting_lora_adapters=""}} 100.5
vllm:lora_requests_info{{max_lora="2",running_lora_adapters="b@2",waiting_lora_adapters="c@3"}} 101.5
"""
        )

    assert vllm_busy(page(2.0), ["a@1", "b@2", "c@3"]) == {"a@1": 0, "b@2": 1, "c@3": 1}
    assert vllm_busy(page(0.0), ["a@1", "b@2"]) == {"a@1": 0, "b@2": 0}
