"""A whole gateway as processes of its own, clients that keep books, and what kills what.

The mock upstream and the clients live in the test's process, so that what a client was told survives every kill.
Linux only: processes are found in ``/proc``, by the serving folder that their commands name.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from posttrain.serving.control.admin import AdminClient
from posttrain.serving.control.links import socket_path
from posttrain.traffic.audit import OwnerCount, reconcile
from posttrain.traffic.follow import Follower
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.indexer import index_once
from tests.serving.gateway_world import Client, Reply, chat
from tests.serving.upstreams import Upstream

Kill = Literal["worker", "indexer", "control", "respawning", "everything"]
"""What gets SIGKILL; ``respawning`` is a worker and, while control starts it again, control."""


@dataclass
class Books:
    """What clients asked and were told."""

    answers: dict[str, str] = field(default_factory=dict)
    """Text of every answer that came whole, by request id."""
    others: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Whole answers that were errors, by status and code."""
    named: set[str] = field(default_factory=set)
    """Every request id that a client was told with a good answer, whole or cut."""
    asked: int = 0
    told: set[str] = field(default_factory=set)
    """Feedback that was sent."""
    thanked: set[str] = field(default_factory=set)
    """Feedback that was acknowledged."""

    @property
    def cut(self) -> int:
        """Requests whose connection ended before a whole answer."""
        return self.asked - len(self.answers) - sum(self.others.values())


class Load:
    """Clients that ask for whole answers and streams, and say what they think of some."""

    def __init__(self, port: int, seed: int) -> None:
        self.books = Books()
        self._port = port
        self._random = random.Random(seed)
        self._count = 0
        self._over = False

    @asynccontextmanager
    async def running(self, clients: int = 6) -> AsyncIterator[Books]:
        """Ask meanwhile; what was asked is waited for."""
        self._over = False
        tasks = [asyncio.create_task(self._client()) for _ in range(clients)]
        try:
            yield self.books
        finally:
            self._over = True
            await asyncio.gather(*tasks)

    async def progress(self, answers: int = 10, seconds: float = 60.0) -> None:
        """Wait until so many more came whole."""
        wanted = len(self.books.answers) + answers
        await until(lambda: len(self.books.answers) >= wanted, seconds)

    async def _client(self) -> None:
        while not self._over:
            try:
                client = Client(*await asyncio.open_connection("127.0.0.1", self._port))
            except OSError:
                await asyncio.sleep(0.02)
                continue
            with suppress(OSError, EOFError):
                while not self._over:
                    await self._talk(client)
            client.close()

    async def _talk(self, client: Client) -> None:
        draw = self._random
        self._count += 1
        number = self._count
        text = f"answer {number} " + "x" * draw.randrange(2000)
        how = {"text": text, "delay": draw.uniform(0, 0.02), "chunks": 5, "gap": draw.uniform(0, 0.004)}
        stream = draw.random() < 0.5
        self.books.asked += 1
        reply = await client.ask(chat(f"question {number}", stream=stream, user=f"u{number % 50}", mock=how))
        self._note(reply, text)
        if reply.status == 200 and draw.random() < 0.3:
            name = f"fb-{number}"
            self.books.told.add(name)
            said = {"id": name, "request_id": reply.id, "type": "thumbs", "value": draw.choice((-1, 1))}
            if (await client.ask(said, "/v1/feedback")).status == 200:
                self.books.thanked.add(name)
        await asyncio.sleep(draw.uniform(0, 0.01))

    def _note(self, reply: Reply, text: str) -> None:
        books = self.books
        if reply.status == 200:
            books.named.add(reply.id)
        if not reply.whole:
            raise EOFError
        if reply.status != 200:
            books.others[reply.status, str(reply.code)] += 1
            raise EOFError  # a new connection, perhaps to another worker
        assert said_in(reply) == text
        books.answers[reply.id] = text


def said_in(reply: Reply) -> str:
    """The text of an answer or a stream."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return str(reply.json()["choices"][0]["message"]["content"])
    events = reply.events
    assert events[-1] == "[DONE]"
    parts = [choice["delta"].get("content") or "" for event in events[:-1] for choice in event["choices"]]
    return "".join(parts)


class GatewayProcesses:
    """``posttrain serve CONFIG`` and everything that it starts."""

    def __init__(
        self, folder: Path, upstream: Upstream, environment: Mapping[str, str], **config: Any
    ) -> None:
        """``config`` is laid over a small configuration with two workers."""
        self.home = folder / "home"
        self.folder = self.home / "serving" / "default"
        self.traffic = self.folder / "traffic"
        # Held for the test's whole life: while the gateway is down, no client's own socket may take its port.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = int(self._reserved.getsockname()[1])
        self._config = folder / "serve.yaml"
        self._errors = folder / "serve.err"
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None
        written = {
            "listen": f"127.0.0.1:{self.port}",
            "workers": 2,
            "grace_seconds": 10,
            "upstreams": [{"name": "up", "url": upstream.url}],
            "routes": [{"model": "m", "production": {"upstream": "up", "model": "up"}}],
            **config,
        }
        self._config.write_text(yaml.safe_dump(written), encoding="utf-8")

    async def start(self) -> dict[str, Any]:
        """Start it, or start it again; what it says once every worker listens."""
        command = [sys.executable, "-m", "posttrain", "serve", str(self._config), "--json"]
        with self._errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                "--home",
                str(self.home),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
            )
        assert self._process.stdout is not None
        said = b""
        async with asyncio.timeout(90):
            while not said.endswith(b"\n}\n"):
                line = await self._process.stdout.readline()
                assert line, f"the gateway did not start: {self.errors()}"
                said += line
        found: dict[str, Any] = json.loads(said)
        return found

    def errors(self) -> str:
        """What it wrote to stderr, and the logs of what it started."""
        files = [self._errors, *sorted((self.folder / "workers").glob("*.log"))]
        return "\n".join(f"{file.name}: {file.read_text('utf-8', 'replace')}" for file in files)

    async def stop(self) -> None:
        """Stop it in good order; nothing that it started is left, in this life or an earlier one."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            code = await self._process.wait()
        assert code == 0, self.errors()
        await until(lambda: not self.processes(), 20)

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        kill(pid for pids in self.processes().values() for pid in pids)
        self._reserved.close()

    def processes(self) -> dict[str, list[int]]:
        """The processes of this gateway that live now: ``control``, ``worker``, ``guard``, ``indexer``."""
        marks = {os.fsencode(path) for path in (self._config, self.traffic, socket_path(self.folder))}
        found: dict[str, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if marks.intersection(words):  # a zombie has no words
                    found.setdefault(_role(words), []).append(int(entry.name))
        return found

    async def kill(self, what: Kill, draw: random.Random) -> None:
        """SIGKILL it. Control is started again by nobody but :meth:`start`."""
        found = self.processes()
        match what:
            case "worker":
                kill(draw.sample(found.get("worker", []), k=min(1, len(found.get("worker", [])))))
            case "indexer":
                kill(found.get(draw.choice(("indexer", "guard")), []))
            case "control":
                await self._kill_control(found)
            case "respawning":
                kill(found.get("worker", [])[:1])
                await asyncio.sleep(draw.uniform(0.05, 0.35))
                await self._kill_control(found)
            case "everything":
                pids = [pid for group in found.values() for pid in group]
                draw.shuffle(pids)
                kill(pids)
                await self._gone()
                await until(lambda: _killed(self), 20)

    async def _kill_control(self, found: dict[str, list[int]]) -> None:
        kill(found["control"])
        await self._gone()

    async def _gone(self) -> None:
        assert self._process is not None
        await self._process.wait()

    async def status(self) -> dict[str, Any]:
        """The admin surface's word."""
        found: dict[str, Any] = await asyncio.to_thread(
            lambda: AdminClient(self.folder).call("GET", "/v1/status")
        )
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Every row of the log, in the order of each owner's segments."""
        return Follower(self.traffic).poll(100_000_000)


def _role(words: list[bytes]) -> str:
    text = b" ".join(words)
    if b"guard.py" in text:
        return "guard"
    if b"posttrain.serving.gateway" in words:
        return "worker"
    return "indexer" if b"posttrain.traffic" in words else "control"


def _killed(gateway: GatewayProcesses) -> bool:
    """Kill what control started between the look and its own death; whether nothing is left."""
    left = [pid for group in gateway.processes().values() for pid in group]
    kill(left)
    return not left


def kill(pids: Iterable[int]) -> None:
    """SIGKILL, by number; one that is gone is gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def until(holds: Callable[[], Any], seconds: float) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def processes(
    folder: Path, *, environment: Mapping[str, str] | None = None, **config: Any
) -> AsyncIterator[GatewayProcesses]:
    """A running gateway; it is stopped by the block itself."""
    upstream = await Upstream("up").start()
    gateway = GatewayProcesses(folder, upstream, environment or {}, **config)
    try:
        await gateway.start()
        yield gateway
    finally:
        gateway.close()
        await upstream.stop()


@dataclass(frozen=True)
class Reconciled:
    """The log and the index, once everything has stopped."""

    counts: list[OwnerCount]
    ends: Counter[str]
    """How many ``end`` rows each request has in the segments."""
    requests: dict[str, tuple[str, Any]]
    """Of every row in the index: how it ended, and the text that was answered."""
    feedback: set[str]

    @property
    def accepted(self) -> int:
        """``begin`` rows."""
        return sum(count.accepted for count in self.counts)

    @property
    def lost(self) -> set[str]:
        """Requests that the index calls lost."""
        return {name for name, (finish, _) in self.requests.items() if finish == "lost"}


def look(traffic: Path) -> Reconciled:
    """Index what is left and count."""
    index = TrafficIndex.open(traffic)
    index_once(traffic, index)
    with index.database.reading() as connection:
        rows = connection.exec_driver_sql("SELECT id, finish, response FROM requests").all()
        feedback = {row[0] for row in connection.exec_driver_sql("SELECT id FROM feedback").all()}
    index.database.engine.dispose()
    ends = Counter(row["id"] for row in Follower(traffic).poll(100_000_000) if row["kind"] == "end")
    return Reconciled(
        reconcile(traffic, index), ends, {row[0]: (row[1], _text(row[2])) for row in rows}, feedback
    )


def _text(response: str | None) -> Any:
    return None if response is None else (json.loads(response) or {}).get("content")


def check(books: Books, found: Reconciled) -> None:
    """Nothing that was acknowledged is lost, and nothing is counted that was not."""
    assert all(count.agrees for count in found.counts), found.counts
    assert set(found.ends.values()) <= {1}
    # Whoever has an answer whole, has a row that says so, with that answer.
    for name, text in books.answers.items():
        assert found.ends[name] == 1, name
        finish, said = found.requests[name]
        assert (finish, said) == ("stop", text), name
    # Whoever was told an id, finds it.
    assert books.named <= found.requests.keys()
    # Every accepted request is a row, and those without an end are no more than those that clients had no answer to.
    assert found.accepted == len(found.requests) <= books.asked
    assert len(found.lost) <= books.cut + sum(books.others.values())
    assert found.lost.isdisjoint(books.answers)
    assert books.thanked <= found.feedback <= books.told
