"""Both ends of a replay: clients that send when it is time, and a model server that takes its time.

Here: ``Clients`` (open loop: a request is sent at its time whether or not earlier ones have ended), and a mock server,
``python -m benchmarks._replay_ends``: a process of its own that says at its end how long each answer took it, so that
its tardiness on a busy machine is not taken for the gateway's. Not here: what is sent when (``_replay_trace``).

An answer takes ``first + tokens * each`` seconds. A stream sends the tokens that are due at most every 10 ms, so a
replay at a hundred times the speed has as many events a second as one at its own speed, of more tokens each.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httptools
import orjson
import uvloop

from benchmarks._replay_trace import CHARACTERS_PER_TOKEN, Asked

TICK_SECONDS = 0.01
TOKEN = " tok"
_FILLER = b"word " * 16_384


# -- clients ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sent:
    """One request, as its client saw it."""

    number: int
    late_seconds: float
    """How long after its time it was sent: the generator's own fault."""
    status: int = 0
    """0 while there is no answer; of a broken connection it stays so."""
    id: str = ""
    whole: bool = False
    seconds: float = 0.0
    """From sending to the answer's last byte."""
    tokens: int = 0
    """Of the text that came, counted by its length."""


class Clients:
    """As many connections as it takes."""

    def __init__(self, port: int, *, first_seconds: float, each_seconds: float) -> None:
        self._port = port
        self._first = first_seconds
        self._each = each_seconds
        self._idle: deque[_Connection] = deque()
        self._left = 0
        self._done = asyncio.Event()
        self.connections = 0
        """Ever opened."""
        self.sent: list[Sent] = []

    async def replay(self, trace: list[Asked], speed: float) -> None:
        """Send all of it; returns when every answer came or broke."""
        begun = time.perf_counter()  # the loop's own time stands still while it works
        self._left = len(trace)
        tasks = []
        for number, asked in enumerate(trace):
            due = begun + asked.at_seconds / speed
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(self._send(number, asked, due)))
        await asyncio.gather(*tasks)
        await self._done.wait()
        for connection in self._idle:
            connection.close()

    async def _send(self, number: int, asked: Asked, due: float) -> None:
        loop = asyncio.get_running_loop()
        data = self._request(number, asked)
        sent = Sent(number, 0.0)
        self.sent.append(sent)
        while self._idle:
            connection = self._idle.pop()
            if connection.send(sent, data, due):
                return
        try:
            self.connections += 1
            _, connection = await loop.create_connection(
                lambda: _Connection(self._over), "127.0.0.1", self._port
            )
        except OSError:
            self._over(None)
            return
        if not connection.send(sent, data, due):
            self._over(None)

    def _over(self, connection: _Connection | None) -> None:
        if connection is not None:
            self._idle.append(connection)
        self._left -= 1
        if not self._left:
            self._done.set()

    def _request(self, number: int, asked: Asked) -> bytes:
        prompt = _FILLER[: asked.prompt_tokens * CHARACTERS_PER_TOKEN]
        stream = b"true" if number % 2 else b"false"
        mock = b'"number":%d,"tokens":%d,"prompt":%d,"first":%.6f,"each":%.6f' % (
            number,
            asked.answer_tokens,
            asked.prompt_tokens,
            self._first,
            self._each,
        )
        body = (
            b'{"model":"m","stream":%b,"user":"u%d","mock":{%b},"messages":[{"role":"user","content":"%b"}]}'
            % (
                stream,
                number % 500,
                mock,
                prompt,
            )
        )
        return b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )


class _Connection(asyncio.Protocol):
    """One at a time, again and again."""

    def __init__(self, over: Any) -> None:
        self._over = over
        self._sent: Sent | None = None
        self._at = 0.0
        self._parts: list[bytes] = []
        self._stream = False
        self._transport: Any = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, sent: Sent, data: bytes, due: float) -> bool:
        """Whether it could be sent here."""
        if self._transport.is_closing():
            return False
        self._sent = sent
        self._at = time.perf_counter()
        sent.late_seconds = self._at - due
        self._parts = []
        self._transport.write(data)
        return True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._sent is not None and name.lower() == b"x-request-id":
            self._sent.id = value.decode()
        elif name.lower() == b"content-type":
            self._stream = value.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        sent, self._sent = self._sent, None
        if sent is None:
            return
        sent.seconds = time.perf_counter() - self._at
        sent.status = self._parser.get_status_code()
        sent.whole = True
        if sent.status == 200:
            sent.tokens, sent.whole = _tokens(b"".join(self._parts), stream=self._stream)
        keeps = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if not keeps:
            self._transport.close()
        self._over(self if keeps else None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._sent is not None:
            self._sent = None
            self._over(None)

    def close(self) -> None:
        """Leave."""
        self._transport.abort()


def _tokens(body: bytes, *, stream: bool) -> tuple[int, bool]:
    """How many tokens an answer has, and whether it is all there."""
    if not stream:
        text = orjson.loads(body)["choices"][0]["message"]["content"]
        return len(text) // len(TOKEN), True
    events = [line[6:] for line in body.split(b"\n\n") if line]
    choices = [orjson.loads(event)["choices"] for event in events[:-1]]
    text = "".join(choice["delta"].get("content") or "" for found in choices for choice in found)
    return len(text) // len(TOKEN), events[-1] == b"[DONE]"


# -- the model server ------------------------------------------------------------------------------


class _Server(asyncio.Protocol):
    """Answers after the time that the request itself asks for."""

    def __init__(self, took: dict[int, float]) -> None:
        self._took = took
        self._transport: Any = None
        self._parser = httptools.HttpRequestParser(self)
        self._parts: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._at = time.perf_counter()
        body = orjson.loads(b"".join(self._parts))
        self._parts = []
        self._parser = httptools.HttpRequestParser(self)
        self._mock: Mapping[str, Any] = body["mock"]
        self._done = 0
        loop = asyncio.get_running_loop()
        if body.get("stream"):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            self._transport.write(head)
            self._timer = loop.call_later(self._mock["first"], self._tick)
        else:
            seconds = self._mock["first"] + self._mock["tokens"] * self._mock["each"]
            self._timer = loop.call_later(seconds, self._whole)

    def _whole(self) -> None:
        message = {"role": "assistant", "content": TOKEN * self._mock["tokens"]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        data = orjson.dumps({**self._base("chat.completion"), "choices": [choice], "usage": self._usage()})
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
        self._transport.write(head + data)
        self._took[self._mock["number"]] = time.perf_counter() - self._at

    def _tick(self) -> None:
        mock = self._mock
        passed = time.perf_counter() - self._at - mock["first"]
        due = mock["tokens"] if mock["each"] <= 0 else min(mock["tokens"], 1 + int(passed / mock["each"]))
        if due > self._done:
            self._event(
                [{"index": 0, "delta": {"content": TOKEN * (due - self._done)}, "finish_reason": None}]
            )
            self._done = due
        if due < mock["tokens"]:
            pause = max(TICK_SECONDS, mock["each"])
            self._timer = asyncio.get_running_loop().call_later(pause, self._tick)
            return
        self._event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self._event([], usage=self._usage())
        self._chunk(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")
        self._took[mock["number"]] = time.perf_counter() - self._at

    def _event(self, choices: list[Any], **more: Any) -> None:
        data = orjson.dumps({**self._base("chat.completion.chunk"), "choices": choices, **more})
        self._chunk(b"data: %b\n\n" % data)

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": "x", "object": kind, "created": 1, "model": "m"}

    def _usage(self) -> dict[str, int]:
        prompt, answer = self._mock["prompt"], self._mock["tokens"]
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


async def _serve() -> None:
    took: dict[int, float] = {}
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: _Server(took), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    json.dump(took, sys.stdout)


if __name__ == "__main__":
    uvloop.run(_serve())
