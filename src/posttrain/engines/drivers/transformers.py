"""The driver of transformers: for tiny models, for tests, and where repeatability counts more than speed.

Here: how ``transformers_server`` is launched and what it promises. *Covered*: any number of adapters and the base at
once, loaded in milliseconds; every row is decoded by itself, so an answer depends on its request alone. *Not covered*:
batching.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

from posttrain.core.atomic import make_folder, write_atomic
from posttrain.engines.drivers.http_server import require_httptools
from posttrain.engines.drivers.processes import listening_socket
from posttrain.engines.drivers.records import Determinism, ServedFolder, TransformersConfig
from posttrain.engines.drivers.server_driver import Launch, Limits, ServerDriver


class TransformersDriver(ServerDriver):
    """transformers in a child process; see :class:`~posttrain.engines.drivers.protocol.EngineDriver`."""

    def __init__(self, config: TransformersConfig, model: ServedFolder, *, workdir: Path) -> None:
        """``workdir`` is this engine's own."""
        super().__init__(
            config.served_name or model.served_name,
            workdir,
            max_adapters=config.max_adapters,
            limits=Limits(config.start_seconds, config.stop_seconds),
        )
        self._config = config
        self._model = model
        self._key = secrets.token_hex(16)

    def determinism(self) -> Determinism:
        """Which promises hold."""
        config = self._config
        # The order in which several threads, or a GPU's blocks, add up is not always the same.
        repeatable = config.threads == 1 and config.device == "cpu"
        return Determinism(
            same_request_same_text=repeatable,
            batch_invariant=True,
            prefix_cache_exact=True,
            flags={"threads": str(config.threads), "device": config.device, "rows_per_pass": "1"},
            limits="on one machine; a request without a seed is drawn anew",
        )

    def _launch(self) -> Launch:
        require_httptools()
        make_folder(self._workdir)
        listener = listening_socket()
        config = self._config
        spec = {
            "folder": str(self._model.folder),
            "base": self._base,
            "threads": config.threads,
            "parallel": config.parallel,
            "context_tokens": config.context_tokens,
            "max_adapters": config.max_adapters,
            "dtype": config.dtype,
            "device": config.device,
            "descriptor": listener.fileno(),
        }
        file = self._workdir / "engine.json"
        write_atomic(file, json.dumps(spec, indent=1).encode())
        threads = str(config.threads)
        return Launch(
            (sys.executable, "-m", "posttrain.engines.drivers.transformers_server", str(file)),
            listener.getsockname()[1],
            {
                "OMP_NUM_THREADS": threads,
                "OMP_WAIT_POLICY": "PASSIVE",
                **config.environment,
                "POSTTRAIN_ENGINE_KEY": self._key,
            },
            (listener,),
        )
