"""The driver of SGLang, in an environment of its own.

Here: its command line and how it is asked. *Covered*: the rendering, by tests; SGLang itself was not run here (on a CPU
it needs a build from source). *Not covered*: installing it; how many requests one adapter has (SGLang waits for them
itself when it unloads one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from posttrain.engines.drivers.processes import free_port
from posttrain.engines.drivers.records import Determinism, ServedFolder, SglangConfig
from posttrain.engines.drivers.server_driver import Launch, Limits, ServerDriver, key_from


class SglangDriver(ServerDriver):
    """SGLang in child processes; see :class:`~posttrain.engines.drivers.protocol.EngineDriver`."""

    load_path: ClassVar[str] = "/load_lora_adapter"
    unload_path: ClassVar[str] = "/unload_lora_adapter"

    def __init__(self, config: SglangConfig, model: ServedFolder, *, workdir: Path) -> None:
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
        """It does not say; unloading waits for what is in flight."""
        return dict.fromkeys(names, 0)

    def determinism(self) -> Determinism:
        """Which promises hold."""
        exact = self._config.deterministic
        return Determinism(
            same_request_same_text=exact,
            batch_invariant=exact,
            prefix_cache_exact=exact,
            flags={"--enable-deterministic-inference": "set"} if exact else {},
            limits="as SGLang promises it, with its fa3, fa4 or triton backend; not run here",
        )

    def command(self, port: int) -> tuple[str, ...]:
        """The command line for a server on ``port``."""
        config = self._config
        words = [
            config.python, "-m", "sglang.launch_server",
            "--model-path", str(self._model.folder),
            "--served-model-name", self._base,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--context-length", str(config.context_tokens),
            "--max-running-requests", str(config.parallel),
            "--dtype", config.dtype,
            "--enable-metrics",
        ]  # fmt: skip
        if config.max_adapters:
            words += [
                "--enable-lora",
                "--max-lora-rank", str(config.max_lora_rank),
                "--lora-target-modules", *config.lora_target_modules,
                "--max-loras-per-batch", str(config.max_adapters),
                "--max-loaded-loras", str(config.max_adapters),
                # Which adapter goes is the manager's to say: evicting one that is routed would fail requests.
                "--lora-eviction-policy", "lru",
            ]  # fmt: skip
        if config.deterministic:
            words.append("--enable-deterministic-inference")
        if self._key:
            words += ["--api-key", self._key]
        return (*words, *config.extra_arguments)

    def environment(self) -> dict[str, str]:
        """What is added to the environment."""
        return {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", **self._config.environment}

    def _launch(self) -> Launch:
        port = free_port()
        return Launch(self.command(port), port, self.environment())
