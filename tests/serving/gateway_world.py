"""A gateway worker with mock upstreams, in a test's own event loop."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.routing.records import Canary, Route, Shadow, Snapshot, Target, Upstream
from posttrain.serving.gateway.config import WorkerConfig
from posttrain.serving.gateway.worker import Worker
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.segments import list_segments, read_segment
from tests.serving.upstreams import Upstream as MockUpstream

MODEL = "m"


def run(test: Callable[[], Awaitable[None]], seconds: float = 60.0) -> None:
    """Run a test in a uvloop loop; a hang is a failure."""
    import uvloop

    async def limited() -> None:
        await asyncio.wait_for(test(), seconds)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(limited())


@dataclass
class Reply:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True
    """Whether the answer ended as it said it would."""

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.headers["x-request-id"]

    @property
    def events(self) -> list[Any]:
        """Events of a stream; ``[DONE]`` as text."""
        lines = [line[6:] for line in self.body.decode().split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    @property
    def code(self) -> Any:
        """Of an error."""
        return self.json()["error"]["code"]


class Client:
    """One raw connection: it sends exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> Reply:
        """A request and its answer."""
        await self.send(request_bytes(body, path, **options))
        return await self.reply()

    async def reply(self) -> Reply:
        """Read one answer."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])
        }
        if status == 100:
            return Reply(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return await self._chunked(status, headers)
        if "content-length" in headers:
            return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        return Reply(status, headers, await self.reader.read())

    async def _chunked(self, status: int, headers: dict[str, str]) -> Reply:
        body = b""
        try:
            while True:
                size = int(await self.reader.readline(), 16)
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
                if not size:
                    return Reply(status, headers, body)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            return Reply(status, headers, body, whole=False)

    async def at_end(self) -> bool:
        """Whether the gateway closed the connection."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        """Leave."""
        self.writer.transport.abort()


def request_bytes(
    body: Any,
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> bytes:
    """A request."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = {"host": "test", "content-length": str(len(data)), **(headers or {})}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode() + data


def chat(text: str = "hello", model: str = MODEL, **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def target(name: str, *upstreams: str, **fields: Any) -> Target:
    """What answers."""
    return Target(name=name, upstreams=upstreams or ("a",), model=fields.pop("model", f"{name}@1"), **fields)


@dataclass
class World:
    """A worker and what stands behind it."""

    folder: Path
    worker: Worker
    config: WorkerConfig
    ups: dict[str, MockUpstream]
    options: dict[str, Any]
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        """Another connection."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.worker.port, limit=1 << 26))
        self.clients.append(client)
        return client

    async def ask(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> Reply:
        """One request on a connection of its own."""
        client = await self.client()
        reply = await client.ask(body, path, **options)
        client.close()
        return reply

    async def get(self, path: str) -> Reply:
        """A page."""
        return await self.ask(None, path, method="GET")

    def snapshot(self, epoch: int, **routing: Any) -> Snapshot:
        """Another snapshot over the same upstreams."""
        return make_snapshot(self.ups, epoch, **self.options, **routing)

    def rows(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What is in the log by now."""
        return [row for row in read_rows(self.folder) if kind is None or row["kind"] == kind]

    async def until(self, test: Callable[[], Any]) -> Any:
        """Wait for something to become true."""
        while not (found := test()):
            await asyncio.sleep(0.005)
        return found


def make_snapshot(
    ups: dict[str, MockUpstream],
    epoch: int,
    *,
    production: Target | None = None,
    canary: Canary | None = None,
    shadow: Shadow | None = None,
    upstream: dict[str, Any] | None = None,
    **route: Any,
) -> Snapshot:
    """A snapshot with one route."""
    return Snapshot(
        epoch=epoch,
        at="2026-11-25T00:00:00Z",
        reason="test",
        upstreams=tuple(Upstream(name=name, url=up.url, **(upstream or {})) for name, up in ups.items()),
        routes=(
            Route(
                model=MODEL,
                production=production or target("v1", *ups),
                canary=canary,
                shadow=shadow,
                **route,
            ),
        ),
    )


@asynccontextmanager
async def world(
    folder: Path,
    *names: str,
    routing: dict[str, Any] | None = None,
    upstream: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[World]:
    """Upstreams of these names (default one, ``a``) and a worker in front of them."""
    ups = {name: await MockUpstream(name).start() for name in names or ("a",)}
    options = {"upstream": upstream}
    config.setdefault("traffic", TrafficConfig())
    settings = WorkerConfig(name="w1", port=0, traffic_folder=str(folder), grace_seconds=5, **config)
    worker = Worker()
    await worker.start(settings, make_snapshot(ups, 1, **options, **(routing or {})))
    place = World(folder, worker, settings, ups, options)
    try:
        yield place
    finally:
        for client in place.clients:
            client.close()
        await worker.stop()
        for up in ups.values():
            await up.stop()


@contextmanager
def threaded_world(folder: Path, **options: Any) -> Iterator[World]:
    """A world in a thread of its own, for tests that speak to it from plain code."""
    ready: queue.Queue[World | BaseException] = queue.Queue()
    done = threading.Event()

    async def serve() -> None:
        async with world(folder, **options) as place:
            ready.put(place)
            while not done.is_set():
                await asyncio.sleep(0.01)

    def work() -> None:
        try:
            run(serve, seconds=600)
        except BaseException as error:
            ready.put(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    try:
        place = ready.get(timeout=30)
        if isinstance(place, BaseException):
            raise place
        yield place
    finally:
        done.set()
        thread.join()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Every row of a traffic folder, as written."""
    return [
        json.loads(row.payload) for name in list_segments(folder) for row in read_segment(folder / str(name))
    ]
