"""Both ends of the gateway benchmark, each a process of its own: a mock model server and a load generator.

Here: ``python -m benchmarks._gateway_ends serve`` and ``… load PORT CONNECTIONS SECONDS STREAM``. Both are raw
protocols that do as little as they can: what is measured stands between them. The mock answers every GET with 200
(routers ask for the health of what they route to); a streamed answer is 50 events 2 ms apart. Not here: requests at a
fixed rate (``_gateway_pace``), which asks the same question.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

CHUNKS = 50
GAP_SECONDS = 0.002
_TEXT = "The answer is a text of about a thousand characters, as many are. " * 15
_ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": _TEXT}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 250, "completion_tokens": 220, "total_tokens": 470},
}  # fmt: skip
_QUESTION = {
    "model": "bench", "temperature": 0.7, "user": "user-1",
    "messages": [
        {"role": "system", "content": "You are helpful. " * 20}, {"role": "user", "content": "Please tell me. " * 45},
    ],
}  # fmt: skip


def _reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def _event(value: Any) -> bytes:
    data = b"data: %b\n\n" % (value if isinstance(value, bytes) else json.dumps(value).encode())
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunk(delta: dict[str, Any], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "bench",
            "choices": [choice],
        }
    )


_WHOLE = _reply(json.dumps(_ANSWER).encode())
_FINE = _reply(b'{"status": "ok", "object": "list", "data": [{"id": "bench", "object": "model"}]}')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PARTS = [_chunk({"content": "token "}, None)] * (CHUNKS - 1) + [_chunk({}, "stop")]
_USAGE = _event({"object": "chat.completion.chunk", "choices": [], "usage": _ANSWER["usage"]})
_END = _event(b"[DONE]") + b"0\r\n\r\n"


def question(stream: bool) -> bytes:
    """What every load generator sends, whole."""
    body = json.dumps({**_QUESTION, "stream": True} if stream else _QUESTION).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\naccept: */*\r\n"
        b"authorization: Bearer key\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )


def answer_size(data: bytes) -> int:
    """Of head and counted body together; 0 while the head is not whole."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = data[:end].lower()
    return end + 4 + int(head[head.find(b"content-length:") + 15 :].split(b"\r\n", 1)[0])


def percentile(ascending: Sequence[float], share: float) -> float:
    """The value that ``share`` of the others are below; 0 of nothing."""
    return ascending[min(int(len(ascending) * share), len(ascending) - 1)] if ascending else 0.0


class _Server(asyncio.Protocol):
    """Answers whole requests; a request is whole when its counted body is there."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._data) < end + 4 + size:
                return
            body, self._data = self._data[end + 4 : end + 4 + size], self._data[end + 4 + size :]
            if head.startswith(b"get"):
                self._transport.write(_FINE)
            elif b'"stream":true' in body or b'"stream": true' in body:
                self._transport.write(_HEAD)
                self._usage = b"include_usage" in body
                self._next(0)
            else:
                self._transport.write(_WHOLE)

    def _next(self, number: int) -> None:
        if number < CHUNKS:
            self._transport.write(_PARTS[number])
            asyncio.get_running_loop().call_later(GAP_SECONDS, self._next, number + 1)
        else:
            self._transport.write((_USAGE if self._usage else b"") + _END)


class _Client(asyncio.Protocol):
    """Asks again as soon as it is answered."""

    def __init__(self, request: bytes, stream: bool, load: _Load) -> None:
        self._request = request
        self._stream = stream
        self._load = load
        self._data = b""
        self._size = 0
        self._began = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.gone(self)

    def _ask(self) -> None:
        self._data = b""
        self._size = 0
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data = data if not self._data else self._data + data
        if self._stream:
            whole = self._data.endswith(b"0\r\n\r\n")
        else:
            if not self._size:
                self._size = answer_size(self._data)
            whole = 0 < self._size <= len(self._data)
        if whole:
            self._load.answered(time.perf_counter() - self._began, self._data.startswith(b"HTTP/1.1 200"))
            if self._load.is_over:
                self._transport.abort()
            else:
                self._ask()


class _Load:
    def __init__(self, seconds: float) -> None:
        self._until = time.perf_counter() + seconds
        self.times: list[float] = []
        self.failed = 0
        self.lost = 0
        self.is_over = False
        self.open = 0
        self.done = asyncio.Event()

    def answered(self, seconds: float, well: bool) -> None:
        self.times.append(seconds)
        self.failed += not well
        self.is_over = time.perf_counter() >= self._until

    def gone(self, client: _Client) -> None:
        self.lost += not self.is_over
        self.open -= 1
        if not self.open:
            self.done.set()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _load(port: int, connections: int, seconds: float, stream: bool) -> None:
    request = question(stream)
    loop = asyncio.get_running_loop()
    load = _Load(seconds)
    load.open = connections
    began = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: _Client(request, stream, load), "127.0.0.1", port)
    await load.done.wait()
    wall = time.perf_counter() - began
    times = sorted(load.times)
    values = {
        "requests": len(times),
        "seconds": wall,
        "p50_ms": percentile(times, 0.5) * 1000,
        "p99_ms": percentile(times, 0.99) * 1000,
        "failed": load.failed + load.lost,
    }
    print(json.dumps(values), flush=True)


def main() -> None:
    """Run one of the ends."""
    import uvloop

    what, *rest = sys.argv[1:]
    if what == "serve":
        uvloop.run(_serve())
    else:
        port, connections, seconds, stream = rest
        uvloop.run(_load(int(port), int(connections), float(seconds), stream == "1"))


if __name__ == "__main__":
    main()
