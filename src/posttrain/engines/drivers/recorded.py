"""The driver of recorded answers: what people said, served like a model.

Here: how ``recorded_server`` is launched. Not here: serving. It is the production of a route on which no model serves
yet, so that a candidate can be compared in shadow with the people whose work it is to take over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from posttrain.core.atomic import make_folder, write_atomic
from posttrain.engines.drivers.http_server import require_httptools
from posttrain.engines.drivers.processes import listening_socket
from posttrain.engines.drivers.records import Determinism, RecordedConfig
from posttrain.engines.drivers.server_driver import Launch, Limits, ServerDriver


class RecordedDriver(ServerDriver):
    """Recorded answers in a child process; see :class:`~posttrain.engines.drivers.protocol.EngineDriver`."""

    def __init__(self, config: RecordedConfig, *, workdir: Path) -> None:
        """``workdir`` is this engine's own."""
        super().__init__(config.name, workdir, max_adapters=0, limits=Limits(config.start_seconds, 5.0))
        self._config = config

    def determinism(self) -> Determinism:
        """A question has one answer."""
        return Determinism(same_request_same_text=True, batch_invariant=True, prefix_cache_exact=True)

    def _launch(self) -> Launch:
        require_httptools()
        make_folder(self._workdir)
        listener = listening_socket()
        spec = {
            "name": self._config.name,
            "answers": str(self._config.answers),
            "descriptor": listener.fileno(),
        }
        file = self._workdir / "engine.json"
        write_atomic(file, json.dumps(spec, indent=1).encode())
        command = (sys.executable, "-m", "posttrain.engines.drivers.recorded_server", str(file))
        return Launch(command, listener.getsockname()[1], {}, (listener,))
