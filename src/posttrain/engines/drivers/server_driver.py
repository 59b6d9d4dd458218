"""What drivers of engines behind HTTP have in common: start, wait, ask, stop.

Here: the base class of every driver. Not here: how an engine is launched (its own file), which adapters are loaded and
when (``adapters``). To add an engine: subclass :class:`ServerDriver`, say how it is launched and what it promises.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from posttrain.engines.drivers.http_client import Answer, call
from posttrain.engines.drivers.processes import EngineProcess
from posttrain.engines.drivers.records import Determinism, Health, ServedModel
from posttrain.engines.errors import EngineError

_ASK_SECONDS = 5.0
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*(?:\{.*\})?)\s+(\S+)(?:\s+\d+)?$")


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine is started."""

    command: tuple[str, ...]
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    sockets: tuple[socket.socket, ...] = ()
    """Handed to it, and closed here once it runs."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a driver is."""

    start_seconds: float = 120.0
    stop_seconds: float = 10.0
    load_seconds: float = 120.0
    """For loading an adapter."""


class ServerDriver:
    """An engine that we start and ask over HTTP; see :class:`~posttrain.engines.drivers.protocol.EngineDriver`."""

    load_path: ClassVar[str] = "/v1/load_lora_adapter"
    unload_path: ClassVar[str] = "/v1/unload_lora_adapter"

    def __init__(self, base: str, workdir: Path, *, max_adapters: int, limits: Limits) -> None:
        self._base = base
        self._workdir = workdir
        self._max_adapters = max_adapters
        self._limits = limits
        self._process: EngineProcess | None = None
        self._root = ""
        self._changing = threading.RLock()
        self._key = ""
        """What the engine asks for where adapters are changed."""

    @property
    def base(self) -> str:
        """The base model's name on the engine."""
        return self._base

    @property
    def max_adapters(self) -> int:
        """How many adapters it holds at once."""
        return self._max_adapters

    @property
    def log(self) -> Path:
        """Where the engine writes what it says."""
        return self._workdir / "engine.log"

    def start(self) -> str:
        """Start it and wait until it answers; the base URL. Raises EngineError with the end of its log."""
        with self._changing:
            if self._process is not None and self._process.exit_code() is None:
                return f"{self._root}/v1"
            launch = self._launch()
            try:
                self._process = EngineProcess(
                    launch.command,
                    log=self.log,
                    environment=launch.environment,
                    sockets=launch.sockets,
                    grace_seconds=self._limits.stop_seconds,
                )
            finally:
                for one in launch.sockets:
                    one.close()
            self._root = f"http://127.0.0.1:{launch.port}"
            try:
                self._wait(self._process)
            except BaseException:
                self.stop()
                raise
            return f"{self._root}/v1"

    def health(self) -> Health:
        """Whether it answers now."""
        process = self._process
        if process is None:
            return Health(ok=False, detail="it was not started")
        if (code := process.exit_code()) is not None:
            last = (process.log_tail(1) or "its log is empty").strip()
            return Health(ok=False, detail=f"it ended with status {code}: {last}", pid=process.pid)
        try:
            answer = self._ask("GET", "/health")
        except OSError as error:
            return Health(ok=False, detail=f"it does not answer: {error}", pid=process.pid)
        if answer.status != 200:
            return Health(ok=False, detail=answer.message(), pid=process.pid)
        return Health(ok=True, pid=process.pid)

    def models(self) -> list[ServedModel]:
        """What it answers to now."""
        answer = self._checked("GET", "/v1/models")
        rows = (answer.json() or {}).get("data", [])
        return [ServedModel(name=row["id"], adapter=self._is_adapter(row)) for row in rows]

    def load_adapter(self, name: str, folder: Path) -> str:
        """Load an adapter under ``name``."""
        body = {"lora_name": name, "lora_path": str(folder)}
        with self._changing:
            self._checked("POST", self.load_path, body, seconds=self._limits.load_seconds)
        return name

    def unload_adapter(self, name: str) -> None:
        """Answer to ``name`` no more."""
        with self._changing:
            if any(model.name == name for model in self.models()):
                body = {"lora_name": name}
                self._checked("POST", self.unload_path, body, seconds=self._limits.load_seconds)

    def busy(self, names: Sequence[str]) -> Mapping[str, int]:
        """Requests in flight by name."""
        found = self.metrics()
        return {name: int(found.get(f'posttrain_engine_in_flight{{model="{name}"}}', 0)) for name in names}

    def metrics(self) -> Mapping[str, float]:
        """The engine's own numbers."""
        return samples(self._checked("GET", "/metrics").body.decode(errors="replace"))

    def determinism(self) -> Determinism:
        """Which promises hold."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it."""
        with self._changing:
            if self._process is not None:
                self._process.stop()
                self._process = None

    def _launch(self) -> Launch:
        raise NotImplementedError

    def _is_adapter(self, row: Mapping[str, Any]) -> bool:
        return row.get("parent") is not None

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = _ASK_SECONDS
    ) -> Answer:
        return call(method, self._root + path, seconds=seconds, body=body, key=self._key)

    def _checked(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = _ASK_SECONDS
    ) -> Answer:
        """The answer, whose status is 200. Raises EngineError."""
        if not self._root:
            raise EngineError("the engine was not started")
        try:
            answer = self._ask(method, path, body, seconds=seconds)
        except OSError as error:
            raise EngineError(
                f"the engine did not answer {method} {path}: {error}", hint=f"read {self.log}"
            ) from error
        if answer.status != 200:
            raise EngineError(f"the engine refused {method} {path}: {answer.message()}")
        return answer

    def _wait(self, process: EngineProcess) -> None:
        until = time.monotonic() + self._limits.start_seconds
        while True:
            if (code := process.exit_code()) is not None:
                what = f"the engine ended with status {code} before it answered"
                raise EngineError(_with_log(what, process), hint=f"read {process.log}")
            if time.monotonic() > until:
                what = f"the engine did not answer in {self._limits.start_seconds:g} s"
                raise EngineError(
                    _with_log(what, process), hint=f"raise `start_seconds`, or read {process.log}"
                )
            # A socket that listens before the engine accepts answers late rather than never: ask patiently.
            with contextlib.suppress(OSError):
                if self._ask("GET", "/health", seconds=1.0).status == 200:
                    return
            time.sleep(0.02)


def samples(text: str) -> dict[str, float]:
    """The samples of a Prometheus page: name with labels, as written, to value."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            with contextlib.suppress(ValueError):
                found[match[1]] = float(match[2])
    return found


def key_from(variable: str | None) -> str:
    """The key that an environment variable holds. Raises EngineError where it is named and not set."""
    if variable is None:
        return ""
    if key := os.environ.get(variable, ""):
        return key
    raise EngineError(
        f"the environment variable {variable} is not set",
        hint="set it to the server's key, or drop `key_variable`",
    )


def _with_log(what: str, process: EngineProcess) -> str:
    tail = process.log_tail()
    return f"{what}; its log ends:\n{tail}" if tail else f"{what}; its log is empty"
