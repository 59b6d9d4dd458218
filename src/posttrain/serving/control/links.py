"""The socket between control and its workers.

Here: the Unix socket, one JSON object a line, and what each worker last said. Not here: what to send (``swap``),
starting workers (``pool``). A worker that lost control goes on serving and says hello again to the next one, with the
epoch that it serves.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import ServingError

_SOCKET_PATH_BYTES = 100
_LINE_BYTES = 64 << 20
"""A snapshot of a large installation is one line."""


@dataclass(slots=True)
class WorkerLink:
    """One worker that is connected."""

    name: str
    pid: int
    writer: asyncio.StreamWriter
    port: int = 0
    """Where it listens; 0 before it does."""
    compiled: bool = False
    """Whether it runs the compiled hot path."""
    epoch: int = 0
    """What it said last: every request from then on is answered under it."""
    drained: int = 0
    """No request of an epoch below is in flight any more."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Its counters since its start, at its last word."""
    error: str | None = None


Hello = Callable[[WorkerLink], Mapping[str, Any] | None]
"""What to answer to a worker that says hello: the message to send, or nothing."""


class WorkerLinks:
    """The listening end."""

    def __init__(self, path: Path, on_hello: Hello) -> None:
        """``path`` is the socket; a stale one is replaced (one control per folder is the caller's lock)."""
        self.path = path
        self.by_name: dict[str, WorkerLink] = {}
        self.is_stray: Callable[[WorkerLink], bool] = lambda link: False
        """Whether a worker that says hello is one too many; such a one is told to stop, and is no link."""
        self._on_hello = on_hello
        self._server: asyncio.Server | None = None
        self._waiting: set[asyncio.Event] = set()

    async def start(self) -> None:
        """Listen."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=_LINE_BYTES)
        self.path.chmod(0o600)

    async def stop(self) -> None:
        """Close every link; the workers go on."""
        if self._server is not None:
            self._server.close()
        for link in list(self.by_name.values()):
            link.writer.close()
        self.path.unlink(missing_ok=True)

    def send(self, link: WorkerLink, message: Mapping[str, Any]) -> None:
        """Send one message; a link that is gone is noticed by its reader."""
        if not link.writer.is_closing():
            link.writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def broadcast(self, message: Mapping[str, Any]) -> None:
        """Send one message to every worker that is connected."""
        for link in list(self.by_name.values()):
            self.send(link, message)

    async def wait_until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until something that workers said makes ``holds`` true; False where it does not in time."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return holds()
        finally:
            self._waiting.discard(changed)
        return True

    def notify(self) -> None:
        """Look again at what is waited for."""
        for event in self._waiting:
            event.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: WorkerLink | None = None
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if link is None:
                    link = self._hello(message, writer)
                else:
                    self._take(link, message)
                self.notify()
        except (
            ValueError,
            KeyError,
            TypeError,
            OSError,
        ):  # not a worker, or one that died in the middle of a line
            pass
        finally:
            writer.close()
            if link is not None and self.by_name.get(link.name) is link:
                del self.by_name[link.name]
            self.notify()

    def _hello(self, message: Mapping[str, Any], writer: asyncio.StreamWriter) -> WorkerLink:
        if message["op"] != "hello":
            raise ValueError("the first word is hello")
        link = WorkerLink(
            str(message["worker"]),
            int(message["pid"]),
            writer,
            port=int(message.get("port", 0)),
            epoch=int(message.get("epoch", 0)),
            compiled=bool(message.get("compiled", False)),
        )
        if self.is_stray(link):
            self.send(link, {"op": "stop"})
            return link
        previous = self.by_name.get(link.name)
        if previous is not None:
            previous.writer.close()
        self.by_name[link.name] = link
        answer = self._on_hello(link)
        if answer is not None:
            self.send(link, answer)
        return link

    def _take(self, link: WorkerLink, message: Mapping[str, Any]) -> None:
        match message["op"]:
            case "ready":
                link.port = int(message["port"])
            case "epoch":
                link.epoch = int(message["epoch"])
            case "drained":
                link.drained = int(message["epoch"])
            case "stats":
                link.stats = {key: value for key, value in message.items() if key != "op"}
            case "failed":
                link.error = str(message["error"])
            case _:  # a later worker knows more words
                pass


def socket_path(folder: Path) -> Path:
    """Where control listens: in the serving folder, or in a private folder of this user where that path is too long for
    a Unix socket. Derived from the folder, so that workers find the next control."""
    path = folder.absolute() / "control.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    private = Path(tempfile.gettempdir()) / f"posttrain-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise ServingError(f"{private} belongs to somebody else", hint="set POSTTRAIN_HOME to a shorter path")
    return private / f"{digest_bytes(os.fsencode(path)).removeprefix('sha256:')[:24]}.sock"
