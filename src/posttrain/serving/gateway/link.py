"""The tie between a worker process and control: JSON lines over a Unix socket.

Here: saying hello, doing what control says, telling what happened; and finding control again when it is gone, with the
worker going on. Not here: the worker.

Worker to control: ``hello``, ``ready``, ``epoch``, ``drained``, ``stats`` (every second), ``failed``.
Control to worker: ``start``, ``snapshot``, ``access``, ``stop``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from typing import Any

import orjson

from posttrain.core.errors import DataError, PosttrainError
from posttrain.routing.records import Snapshot
from posttrain.serving.gateway.compiled import is_compiled
from posttrain.serving.gateway.config import WorkerConfig
from posttrain.serving.gateway.worker import Worker

_log = logging.getLogger(__name__)
_RECONNECT_SECONDS = 0.2
_STATS_SECONDS = 1.0
_LONELY_SECONDS = 5.0
"""How long a worker that was never told what to serve looks for control: the one that started it may have been killed,
and the next one, which knows nothing of it, may be gone, too."""
_MAX_LINE = 64 << 20


class ControlLink:
    """A worker under a control process."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._name = name
        self._worker = Worker()
        self._worker.on_drained = lambda epoch: self._say("drained", epoch=epoch)
        self._writer: asyncio.StreamWriter | None = None
        self._grace: float | None = None
        self._stopping = asyncio.Event()
        self._started = False

    async def run(self) -> None:
        """Until control or SIGTERM says stop; returns when everything is drained."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stopping.set)
        tasks = [loop.create_task(self._follow()), loop.create_task(self._report())]
        try:
            await self._stopping.wait()
            if self._started:
                await self._worker.stop(self._grace)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._writer is not None:
                self._writer.close()

    async def _follow(self) -> None:
        heard_at = time.monotonic()
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._path, limit=_MAX_LINE)
                heard_at = time.monotonic()
                self._say(
                    "hello",
                    worker=self._name,
                    pid=os.getpid(),
                    epoch=self._epoch,
                    port=self._worker.port,
                    compiled=is_compiled(),
                )
                while line := await reader.readline():
                    await self._hear(line)
            except (OSError, ValueError) as error:  # ValueError: a line beyond the limit
                _log.debug("gateway: no control at %s: %s", self._path, error)
            finally:
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
            if not self._started and time.monotonic() - heard_at > _LONELY_SECONDS:
                self._stopping.set()
                return
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_STATS_SECONDS)
            if self._started:
                self._say("stats", **self._worker.stats())

    @property
    def _epoch(self) -> int:
        return self._worker.epoch if self._started else 0

    async def _hear(self, line: bytes) -> None:
        try:
            message = orjson.loads(line)
            await self._do(message["op"], message)
        except PosttrainError as error:
            self._failed(str(error))
        except (ValueError, KeyError, TypeError) as error:
            self._failed(f"not a message: {error!r}")

    async def _do(self, op: str, message: dict[str, Any]) -> None:
        if op == "start":
            if not self._started:
                config = WorkerConfig.from_json(message["config"])
                await self._worker.start(config, Snapshot.from_json(message["snapshot"]))
                self._started = True
                # What is loaded by now stays: the collector need not walk through it again and again.
                gc.collect()
                gc.freeze()
                gc.set_threshold(20_000, 50, 100)
            self._say("ready", port=self._worker.port)
            self._say("epoch", epoch=self._worker.epoch)
        elif op == "snapshot":
            self._worker.swap(Snapshot.from_json(message["snapshot"]))
            self._say("epoch", epoch=self._worker.epoch)
        elif op == "access":
            self._worker.reload_access()
        elif op == "stop":
            self._grace = message.get("grace_seconds")
            self._stopping.set()
        else:
            raise DataError(f"unknown op {op!r}")

    def _failed(self, error: str) -> None:
        _log.error("gateway: %s", error)
        self._say("failed", error=error)

    def _say(self, op: str, **fields: Any) -> None:
        # Control that is away hears it all in the next hello and stats.
        if self._writer is not None and not self._writer.is_closing():
            with contextlib.suppress(OSError):
                self._writer.write(orjson.dumps({"op": op, **fields}) + b"\n")
