"""The door of a llama.cpp engine: model names on the outside, lists of adapters on the inside.

llama.cpp loads no adapter into a running server, and picks adapters by number: ``"lora": [{"id": 0, "scale": 1}]``.
This process keeps the port and the names. A request's body is parsed once, to turn ``model`` into ``lora``; the
answer's bytes are passed on as they come, unparsed, over a connection that llama.cpp closes at the end, so a streamed
token costs one read and one write. A new adapter is loaded by an engine process beside the old one (the base file is
mapped, so its pages are shared); once it answers, new requests go there, and the old one ends with its last request.

Run as ``python -m posttrain.engines.drivers.llama_cpp_server SPEC`` with a listening socket. Not here: which adapters
may be loaded (``adapters``); what clients send as ``lora`` is thrown away, so a name is the only way to one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.engines.drivers.http_server import Reply, Request, RequestError, error_body, run, serve

_ANSWERED = frozenset({"/v1/chat/completions", "/v1/completions"})
_INNER_FIELDS = ("lora", "id_slot")
"""Fields by which a client could reach another's adapter or cache."""
_LOAD_SECONDS = 300.0
_HEALTH_SECONDS = 3.0
_MOST_HEAD_BYTES = 64 << 10


@dataclass(slots=True, eq=False)
class _Engine:
    """One engine process and what it holds."""

    process: asyncio.subprocess.Process
    host: str
    port: int
    adapters: tuple[str, ...]
    """Names; the position is llama.cpp's number."""
    in_flight: Counter[str] = field(default_factory=Counter)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Door:
    """Requests by name, on whichever engine process is current."""

    def __init__(self, spec: Mapping[str, Any], *, admin_key: str) -> None:
        self._spec = dict(spec)
        self._key = secrets.token_hex(16)
        self._admin_key = admin_key
        self._files: dict[str, str] = {}
        """Adapters that are answered to: name to file."""
        self._current: _Engine | None = None
        self._old: set[_Engine] = set()
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        """Set when the engine has died: this process has nothing left to do."""

    async def open(self) -> None:
        """Start the first engine."""
        self._current = await self._start({})

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        if request.path == "/health":
            well = await self._is_well()
            reply.json(200 if well else 503, {"status": "ok" if well else "llama.cpp does not answer"})
        elif request.path == "/v1/models":
            reply.json(200, self._models())
        elif request.path == "/metrics":
            reply.whole(200, await self._metrics(), "text/plain; version=0.0.4")
        elif request.method != "POST":
            raise RequestError(405, f"{request.path} takes POST")
        elif request.path in _ANSWERED:
            await self._complete(request, reply)
        elif request.path == "/v1/load_lora_adapter":
            request.require_key(self._admin_key)
            await self._load(request.json())
            reply.json(200, {"status": "ok"})
        elif request.path == "/v1/unload_lora_adapter":
            request.require_key(self._admin_key)
            # Its weights go with the process, at the next load; from now on nothing leads to them.
            self._files.pop(str(request.json().get("lora_name")), None)
            reply.json(200, {"status": "ok"})
        else:
            raise RequestError(404, f"there is no {request.path} here")

    async def _load(self, body: Mapping[str, Any]) -> None:
        name, path = str(body.get("lora_name")), str(body.get("lora_path"))
        async with self._changing:
            if name in self._files or name == self._spec["base"]:
                raise RequestError(409, f"{name!r} is loaded already; other weights need another name")
            if len(self._files) >= self._spec["max_adapters"]:
                raise RequestError(409, f"{len(self._files)} adapters are loaded, the most there may be")
            files = {**self._files, name: path}
            engine = await self._start(files)
            old, self._current = self._current, engine
            # An adapter that was unloaded meanwhile stays unloaded.
            self._files = {one: file for one, file in files.items() if one in self._files or one == name}
            if old is not None:
                self._old.add(old)
                self._keep(self._drain(old))

    async def _start(self, files: Mapping[str, str]) -> _Engine:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "posttrain.engines.drivers.llama_cpp_engine",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        spec = {**self._spec, "adapters": list(files.values()), "key": self._key}
        try:
            process.stdin.write(json.dumps(spec).encode() + b"\n")
            line = await asyncio.wait_for(process.stdout.readline(), _LOAD_SECONDS)
        except (OSError, TimeoutError):
            line = b""
        if not line:
            await _end(process)
            raise RequestError(500, "llama.cpp could not load it; the engine's log says why", "server_error")
        host, port = json.loads(line)["address"].removeprefix("http://").rsplit(":", 1)
        engine = _Engine(process, host, int(port), tuple(files))
        self._keep(self._watch(engine))
        return engine

    async def _watch(self, engine: _Engine) -> None:
        await engine.process.wait()
        if engine is self._current:
            print("the llama.cpp process ended by itself", file=sys.stderr, flush=True)  # noqa: T201 - the log
            self.ended.set()

    async def _drain(self, engine: _Engine) -> None:
        while engine.in_flight.total():
            engine.idle.clear()
            await engine.idle.wait()
        await _end(engine.process)
        self._old.discard(engine)

    async def _complete(self, request: Request, reply: Reply) -> None:
        body = request.json()
        model = body.get("model")
        engine = self._current
        if engine is None:
            raise RequestError(503, "the engine is not there yet", "server_error")
        if model != self._spec["base"] and model not in self._files:
            raise RequestError(404, f"the model {model!r} is not here", code="model_not_found")
        for name in _INNER_FIELDS:
            body.pop(name, None)
        # All of them, each time: an empty list is llama.cpp's word for "as it was started".
        body["lora"] = [
            {"id": number, "scale": float(name == model)} for number, name in enumerate(engine.adapters)
        ]
        if self._spec["deterministic"]:
            body["cache_prompt"] = False
        engine.in_flight[model] += 1
        try:
            await self._pass_on(engine, request.path, body, reply)
        finally:
            engine.in_flight[model] -= 1
            engine.idle.set()

    async def _pass_on(self, engine: _Engine, path: str, body: Mapping[str, Any], reply: Reply) -> None:
        try:
            reader, writer = await self._ask(engine, "POST", path, json.dumps(body).encode())
        except OSError as error:
            raise RequestError(502, f"llama.cpp does not answer: {error}", "server_error") from error
        try:
            head, length = await _read_head(reader)
            await reply.raw(head)
            left, last = length, b""
            while left is None or left > 0:
                if not (piece := await reader.read(65_536)):
                    break
                await reply.raw(piece)
                left = None if left is None else left - len(piece)
                last = (last + piece)[-5:]
            if left or (left is None and last != b"0\r\n\r\n"):
                reply.abort()  # the engine died over it
        finally:
            # Closing is how llama.cpp learns that nobody waits any longer.
            writer.close()

    async def _ask(
        self, engine: _Engine, method: str, path: str, body: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(engine.host, engine.port, limit=_MOST_HEAD_BYTES)
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: {engine.host}\r\nconnection: close\r\n"
            f"authorization: Bearer {self._key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        return reader, writer

    async def _is_well(self) -> bool:
        if self._current is None:
            return False
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                reader, writer = await self._ask(self._current, "GET", "/health")
                with contextlib.closing(writer):
                    head, _ = await _read_head(reader)
        except (OSError, RequestError):
            return False
        return head.startswith(b"HTTP/1.1 200")

    async def _metrics(self) -> bytes:
        flights: Counter[str] = Counter()
        engines = [*self._old, *([self._current] if self._current else [])]
        for engine in engines:
            flights.update(engine.in_flight)
        text = "".join(
            f'posttrain_engine_in_flight{{model="{name}"}} {flights[name]}\n'
            for name in {self._spec["base"], *self._files, *flights}
        )
        text += f"posttrain_engine_processes {len(engines)}\n"
        if self._current is not None:
            with contextlib.suppress(OSError, RequestError):
                reader, writer = await self._ask(self._current, "GET", "/metrics")
                with contextlib.closing(writer):
                    _, length = await _read_head(reader)
                    text += (await reader.read(-1 if length is None else length)).decode(errors="replace")
        return text.encode()

    def _models(self) -> dict[str, Any]:
        base = self._spec["base"]
        rows = [{"id": base, "object": "model", "owned_by": "posttrain", "parent": None}]
        rows += [{"id": n, "object": "model", "owned_by": "posttrain", "parent": base} for n in self._files]
        return {"object": "list", "data": rows}

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _read_head(reader: asyncio.StreamReader) -> tuple[bytes, int | None]:
    """The head of an answer without its ``connection`` line, and the body's length; None where it is chunked."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
        raise RequestError(502, "llama.cpp gave no answer", "server_error") from error
    lines = head[:-4].split(b"\r\n")
    names = [line.split(b":", 1)[0].strip().lower() for line in lines]
    length = next(
        (int(line.split(b":", 1)[1]) for line, name in zip(lines, names, strict=True)
         if name == b"content-length"), None
    )  # fmt: skip
    hidden = (b"connection", b"keep-alive", b"server") + ((b"content-length",) if length is None else ())
    kept = [line for line, name in zip(lines, names, strict=True) if name not in hidden]
    return b"\r\n".join(kept) + b"\r\n\r\n", length


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), 5.0)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _main(spec: Mapping[str, Any], listener: socket.socket) -> int:
    door = Door(spec, admin_key=os.environ.get("POSTTRAIN_ENGINE_KEY", ""))
    try:
        await door.open()
    except RequestError as error:
        print(error_body(str(error)), file=sys.stderr)  # noqa: T201 - the log
        return 1
    await serve(door.handle, listener, door.ended)
    return 0


if __name__ == "__main__":
    with Path(sys.argv[1]).open() as stream:
        given = json.load(stream)
    sys.exit(run(_main(given, socket.socket(fileno=given["descriptor"]))))
