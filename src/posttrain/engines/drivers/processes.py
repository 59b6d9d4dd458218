"""Child processes of ours: started under a guard, logging to a file, ended by their id.

Here: one process, its log, free ports. Not here: what it is asked (``server_driver``), how it dies with us (``guard``).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.core.atomic import make_folder
from posttrain.engines.errors import EngineError

_GUARD = Path(__file__).with_name("guard.py")
_TAIL_BYTES = 16_384


class EngineProcess:
    """A running command. It ends when :meth:`stop` is called or this process is gone."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        sockets: Sequence[socket.socket] = (),
        grace_seconds: float = 10.0,
    ) -> None:
        """Start it. ``sockets`` are open in it under the same numbers. Raises EngineError where it cannot start."""
        make_folder(log.parent)
        self.log = log
        self._grace_seconds = grace_seconds
        numbers = [one.fileno() for one in sockets]
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(grace_seconds)]
        with log.open("ab") as stream:
            self._start_of_log = stream.tell()
            try:
                self._process = subprocess.Popen(
                    [*guard, ",".join(map(str, numbers)), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    pass_fds=numbers,
                )
            except OSError as error:
                raise EngineError(f"the engine could not be started: {error}") from error

    @property
    def pid(self) -> int:
        """Of the guard: end it, and the engine ends."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """What it returned; None while it runs."""
        return self._process.poll()

    def log_tail(self, lines: int = 12) -> str:
        """The last lines that it wrote since its start."""
        try:
            with self.log.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(self._start_of_log, size - _TAIL_BYTES))
                text = stream.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])

    def stop(self) -> None:
        """End it and wait for that; twice is fine."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._grace_seconds + 5)
            return
        self._process.kill()
        self._process.wait()


def listening_socket() -> socket.socket:
    """A socket on a free loopback port that already listens: no other process can take the port meanwhile."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def free_port() -> int:
    """A port that is free now, for servers that must open it themselves. Another process may take it first."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
