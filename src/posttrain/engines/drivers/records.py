"""What an engine is configured with, and what it says of itself.

Here: frozen, torch-free records. Not here: any engine. A model is a reference that the caller resolves to a folder
whose digests are verified (:class:`ServedFolder`); a driver trusts that folder and nothing else. To add an engine: a
config with its own ``engine`` literal, a place in :data:`EngineConfig`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.core.canonical import short
from posttrain.core.documents import Digest, Record

AdapterApi: TypeAlias = Literal["none", "vllm", "sglang"]
"""How adapters are loaded over HTTP: ``/v1/load_lora_adapter`` of vLLM, ``/load_lora_adapter`` of SGLang."""


def default_threads() -> int:
    """One core fewer than there are: with a thread on each core, one neighbour makes llama.cpp 100 times slower."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, usable - 1)


class _Started(Record):
    """What every engine that we start has."""

    model: str = Field(min_length=1)
    """Reference of the model artifact, or a model folder; the caller resolves and verifies it."""
    served_name: str | None = None
    """What the engine calls the base model; default: the model's name with the first digits of its digest."""
    context_tokens: int = Field(2048, ge=16)
    """The most that one prompt and its answer may have together."""
    parallel: int = Field(4, ge=1, le=1024)
    """Requests decoded at once; more wait."""
    max_adapters: int = Field(4, ge=0, le=256)
    """LoRA adapters held at once."""
    start_seconds: float = Field(120.0, gt=0)
    """How long it may take until it answers."""
    stop_seconds: float = Field(10.0, gt=0)
    """How long it may take to end when asked; then it is killed."""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """Further environment variables of the process."""


class LlamaCppConfig(_Started):
    """llama.cpp's own server from the package xllamacpp: the default on a CPU."""

    engine: Literal["llama_cpp"] = "llama_cpp"
    threads: int = Field(default_factory=default_threads, ge=1)
    """Threads that compute; never one on every core."""
    dtype: Literal["float32", "float16"] = "float16"
    """Type of the matrices where the GGUF is made from a model folder."""
    cache_dtype: Literal["float32", "float16"] = "float16"
    """Type of the cached keys and values; float16 may give a close token another neighbour's place."""
    deterministic: bool = False
    """One sequence at a time, float32 cache, no cached prefixes: the same request has the same answer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.deterministic and self.parallel != 1:
            raise ValueError(
                "deterministic: sequences that share a batch change each other's last bits; set `parallel: 1`"
            )
        return self


class TransformersConfig(_Started):
    """transformers and PEFT in a process of ours: every adapter of every request, one forward pass at a time."""

    engine: Literal["transformers"] = "transformers"
    threads: int = Field(1, ge=1)
    """Torch threads; one is repeatable, and best for tiny models."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"


class VllmConfig(_Started):
    """vLLM in an environment of its own."""

    engine: Literal["vllm"] = "vllm"
    python: str = Field(min_length=1)
    """Path of the Python that has vLLM; its packages are not ours."""
    max_lora_rank: int = Field(16, ge=1)
    batch_invariant: bool = False
    """``VLLM_BATCH_INVARIANT=1``: answers do not depend on their neighbours in the batch; GPUs only."""
    dtype: str = "auto"
    key_variable: str | None = None
    """Environment variable that holds the key that the server asks for."""
    extra_arguments: tuple[str, ...] = ()
    """Handed on as they are: ``--tensor-parallel-size 2``."""


class SglangConfig(_Started):
    """SGLang in an environment of its own."""

    engine: Literal["sglang"] = "sglang"
    python: str = Field(min_length=1)
    """Path of the Python that has SGLang; its packages are not ours."""
    max_lora_rank: int = Field(16, ge=1)
    lora_target_modules: tuple[str, ...] = ("all",)
    deterministic: bool = False
    """``--enable-deterministic-inference``."""
    dtype: str = "auto"
    key_variable: str | None = None
    """Environment variable that holds the key that the server asks for."""
    extra_arguments: tuple[str, ...] = ()


class OpenAIConfig(Record):
    """A server that somebody else runs."""

    engine: Literal["openai"] = "openai"
    url: str = Field(pattern=r"^https?://")
    """Up to and including the version: ``http://127.0.0.1:8001/v1``."""
    key_variable: str | None = None
    """Environment variable that holds the bearer key, if it wants one."""
    adapter_api: AdapterApi = "none"
    """Whether adapters can be loaded, and how."""
    max_adapters: int = Field(4, ge=0, le=256)
    health_seconds: float = Field(5.0, gt=0)


class RecordedConfig(Record):
    """Answers that people gave, served like a model: the production of a route where no model serves yet."""

    engine: Literal["recorded"] = "recorded"
    name: str = Field("people", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Of the upstream and of its one model."""
    answers: Path
    """JSON lines with ``question`` and ``answer``; compared without case, width and white space."""
    start_seconds: float = Field(30.0, gt=0)


EngineConfig: TypeAlias = Annotated[
    LlamaCppConfig | TransformersConfig | VllmConfig | SglangConfig | OpenAIConfig,
    Field(discriminator="engine"),
]


class ServedFolder(Record):
    """A model on this machine whose bytes the caller has verified."""

    folder: Path
    """A Hugging Face folder, or one with ``model.gguf``."""
    digest: Digest
    """Of the model artifact."""
    name: str = "model"
    """For people."""

    @property
    def served_name(self) -> str:
        """A name that no other weights have: ``r1-tiny@1f2e3d4c5b6a``."""
        return f"{self.name}@{short(self.digest)}"


class AdapterRef(Record):
    """A LoRA adapter: which, and where its files are."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """For people: ``support-tone``."""
    digest: Digest
    """Of the adapter artifact; where ``files`` is absent, of the folder (``adapter_files.folder_digest``)."""
    folder: Path
    """With ``adapter_config.json`` and ``adapter_model.safetensors``, inside the store's folder."""
    files: Mapping[str, Digest] | None = None
    """Path to digest of every file, as the artifact's manifest has them."""

    @classmethod
    def of(cls, name: str, artifact: Artifact, folder: Path) -> AdapterRef:
        """The adapter that ``artifact`` is, read at ``folder`` (a view of the store)."""
        files = {entry.path: entry.digest for entry in artifact.files}
        return cls(name=name, digest=artifact.digest, folder=folder, files=files)

    @property
    def served_name(self) -> str:
        """What the engine calls it. Other weights have another name, so nothing cached under it can be stale."""
        return f"{self.name}@{short(self.digest)}"


class Health(Record):
    """Whether an engine answers."""

    ok: bool
    detail: str = ""
    """One line on what is wrong."""
    pid: int | None = None
    """Of the process that we started."""


class ServedModel(Record):
    """A name that the engine answers to."""

    name: str
    adapter: bool = False
    """Whether it is an adapter on the base model."""


class Determinism(Record):
    """Which promises of repeatability hold for an engine as it was started. False means "not promised"."""

    same_request_same_text: bool
    """A request with a seed, or greedy, has the same answer each time on this machine."""
    batch_invariant: bool
    """An answer does not depend on what else is answered at that moment."""
    prefix_cache_exact: bool
    """A prompt whose beginning was seen before has the answer of one that was not."""
    flags: Mapping[str, str] = Field(default_factory=dict)
    """What was set to that end."""
    limits: str = ""
    """What is not covered."""
