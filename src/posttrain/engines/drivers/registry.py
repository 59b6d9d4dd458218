"""From an engine's config to its driver.

Here: one function. To add an engine: a case.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.engines.drivers.llama_cpp import LlamaCppDriver
from posttrain.engines.drivers.openai import OpenAIDriver
from posttrain.engines.drivers.protocol import EngineDriver
from posttrain.engines.drivers.records import (
    EngineConfig,
    LlamaCppConfig,
    OpenAIConfig,
    ServedFolder,
    SglangConfig,
    TransformersConfig,
    VllmConfig,
)
from posttrain.engines.drivers.sglang import SglangDriver
from posttrain.engines.drivers.transformers import TransformersDriver
from posttrain.engines.drivers.vllm import VllmDriver
from posttrain.engines.errors import EngineError


def create_driver(
    config: EngineConfig, model: ServedFolder | None, *, workdir: Path, cache: Path
) -> EngineDriver:
    """The driver of ``config``, not started.

    ``model`` is what ``config.model`` names, verified; a server of others needs none. ``workdir`` is this engine's own
    folder (log, spec), ``cache`` keeps what is made from models, by digest, for all engines.
    """
    if isinstance(config, OpenAIConfig):
        return OpenAIDriver(config)
    if model is None:
        raise EngineError(f"the engine {config.engine} needs its model", hint="set `model`")
    match config:
        case LlamaCppConfig():
            return LlamaCppDriver(config, model, workdir=workdir, cache=cache)
        case TransformersConfig():
            return TransformersDriver(config, model, workdir=workdir)
        case VllmConfig():
            return VllmDriver(config, model, workdir=workdir)
        case SglangConfig():
            return SglangDriver(config, model, workdir=workdir)
