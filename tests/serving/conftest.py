"""Fixtures of the gateway's tests; each name begins with its topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from posttrain.serving.drivers.server_driver import ServerDriver
    from tests.serving.drivers_world import World


@pytest.fixture(scope="session")
def drivers_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny random model with strong adapters, and what they should say."""
    for package in ("torch", "transformers", "peft", "httptools"):
        pytest.importorskip(package)
    from tests.serving.drivers_world import make_world

    return make_world(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="session")
def drivers_transformers(
    drivers_world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerDriver]:
    """A running transformers engine without adapters; a test takes off what it loads."""
    from posttrain.serving.drivers.records import TransformersConfig
    from posttrain.serving.drivers.transformers import TransformersDriver

    config = TransformersConfig(model="tiny", context_tokens=256, max_adapters=2)
    driver = TransformersDriver(config, drivers_world.model, workdir=tmp_path_factory.mktemp("transformers"))
    driver.start()
    yield driver
    driver.stop()


@pytest.fixture(scope="session")
def drivers_llama(drivers_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerDriver]:
    """A running llama.cpp engine without adapters; a test takes off what it loads."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    from posttrain.serving.drivers.llama_cpp import LlamaCppDriver
    from posttrain.serving.drivers.records import LlamaCppConfig

    config = LlamaCppConfig(
        model="tiny",
        context_tokens=256,
        max_adapters=2,
        threads=1,
        dtype="float32",
        parallel=1,
        deterministic=True,
    )
    place = tmp_path_factory.mktemp("llama_cpp")
    driver = LlamaCppDriver(config, drivers_world.model, workdir=place, cache=place / "cache")
    driver.start()
    yield driver
    driver.stop()
