"""A small HTTP/1.1 server for the processes that engines run in, on asyncio and httptools.

Here: one request after the other on a connection, answers whole, in pieces, or as another server's bytes; the handler
is cancelled when its client is gone, so that nobody computes for nobody. Not here: TLS, access (the socket is on
loopback, and clients of the gateway never reach it), the gateway's own server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import signal
import socket
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

from posttrain.core.errors import MissingDependencyError

T = TypeVar("T")

_MOST_BODY_BYTES = 32 << 20
_MOST_HEAD_BYTES = 64 << 10
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
            409: "Conflict", 413: "Content Too Large", 500: "Internal Server Error", 502: "Bad Gateway",
            503: "Service Unavailable"}  # fmt: skip


class RequestError(Exception):
    """What a client asked for cannot be done; it is told so in OpenAI's form."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", code: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code


@dataclass(slots=True)
class Request:
    """One request, whole."""

    method: str
    path: str
    """Without the query."""
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """The body, a JSON object. Raises RequestError."""
        try:
            found = json.loads(self.body)
        except ValueError as error:
            raise RequestError(400, f"the body is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise RequestError(400, "the body is not a JSON object")
        return found

    def require_key(self, key: str) -> None:
        """Raises RequestError unless the request carries ``key``; an empty one lets nobody in."""
        given = self.headers.get("authorization", "").removeprefix("Bearer ")
        if not key or not hmac.compare_digest(given.encode(), key.encode()):
            raise RequestError(401, "this needs the engine's own key", code="invalid_api_key")


class Reply:
    """How a handler answers."""

    def __init__(self, transport: asyncio.Transport, writable: asyncio.Event) -> None:
        self._transport = transport
        self._writable = writable
        self.begun = False

    def json(self, status: int, body: Any) -> None:
        """A whole answer."""
        self.whole(status, json.dumps(body, ensure_ascii=False).encode(), "application/json")

    def whole(self, status: int, body: bytes, content_type: str) -> None:
        """A whole answer of any type."""
        self.begun = True
        head = _head(status, content_type, f"content-length: {len(body)}")
        self._transport.write(head + body)

    def begin_events(self) -> None:
        """The head of a stream of server-sent events."""
        self.begun = True
        self._transport.write(_head(200, "text/event-stream", "transfer-encoding: chunked"))

    async def event(self, data: str) -> None:
        """One event; waits while the client is slow."""
        payload = f"data: {data}\n\n".encode()
        self._transport.write(b"%x\r\n%s\r\n" % (len(payload), payload))
        await self._writable.wait()

    def end_events(self) -> None:
        """The end of the stream."""
        self._transport.write(b"0\r\n\r\n")

    async def raw(self, data: bytes) -> None:
        """Bytes of HTTP that another server wrote; waits while the client is slow."""
        self.begun = True
        self._transport.write(data)
        await self._writable.wait()

    def abort(self) -> None:
        """Close the connection at once: the client must not take a part for the whole."""
        self._transport.abort()


Handler: TypeAlias = Callable[[Request, Reply], Awaitable[None]]


def _head(status: int, content_type: str, length: str) -> bytes:
    reason = _REASONS.get(status, "")
    return f"HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\n{length}\r\n\r\n".encode()


class _Connection(asyncio.Protocol):
    """Parses requests and answers them one by one, in order."""

    def __init__(self, handler: Handler) -> None:
        import httptools

        self._handler = handler
        self._parser = httptools.HttpRequestParser(self)
        self._httptools = httptools
        self._waiting: deque[Request] = deque()
        self._running: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._keep_alive = True

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, error: Exception | None) -> None:
        self._waiting.clear()
        self._writable.set()
        if self._running is not None:
            self._running.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except self._httptools.HttpParserUpgrade:
            self._refuse(400, "no other protocol is spoken here")
        except self._httptools.HttpParserError as error:
            # What a callback raised is the cause.
            cause = error.__context__
            if isinstance(cause, RequestError):
                self._refuse(cause.status, str(cause))
            else:
                self._refuse(400, "this is not HTTP")

    # httptools' side

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body, self._size = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._grow(len(url), _MOST_HEAD_BYTES)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._grow(len(name) + len(value), _MOST_HEAD_BYTES)

    def on_headers_complete(self) -> None:
        self._size = 0

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._grow(len(body), _MOST_BODY_BYTES)

    def on_message_complete(self) -> None:
        path = self._url.split(b"?", 1)[0].decode("latin-1")
        method = self._parser.get_method().decode("latin-1")
        self._keep_alive = self._parser.should_keep_alive()
        self._waiting.append(Request(method, path, self._headers, b"".join(self._body)))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._answer())

    def _grow(self, size: int, most: int) -> None:
        self._size += size
        if self._size > most:
            raise RequestError(413, "the request is too large")

    def _refuse(self, status: int, message: str) -> None:
        if self._running is None:
            Reply(self._transport, self._writable).json(status, error_body(message))
        self._transport.close()

    async def _answer(self) -> None:
        try:
            while self._waiting:
                await self._one(self._waiting.popleft())
        finally:
            self._running = None
        if not self._keep_alive:
            self._transport.close()

    async def _one(self, request: Request) -> None:
        reply = Reply(self._transport, self._writable)
        try:
            await self._handler(request, reply)
        except RequestError as error:
            if reply.begun:
                reply.abort()
            else:
                reply.json(error.status, error_body(str(error), error.kind, error.code))
        except Exception:  # a boundary: one request that fails is an answer, and a trace in the log
            traceback.print_exc()
            if reply.begun:
                reply.abort()
            else:
                reply.json(500, error_body("the engine failed; its log says why", "server_error"))


def error_body(message: str, kind: str = "invalid_request_error", code: str = "") -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}


async def serve(handler: Handler, listener: socket.socket, until: asyncio.Event) -> None:
    """Answer on ``listener`` until ``until`` is set or the process is told to end (SIGTERM)."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):
        loop.add_signal_handler(signal.SIGTERM, until.set)
    server = await loop.create_server(lambda: _Connection(handler), sock=listener)
    try:
        await until.wait()
    finally:
        server.close()


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, on uvloop where it is installed: half the time for each request."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    found: T = uvloop.run(main)
    return found


def require_httptools() -> None:
    """Raises MissingDependencyError where the server's parser is not installed."""
    try:
        import httptools  # noqa: F401 - whether it is there
    except ImportError as error:
        raise MissingDependencyError(
            "engines that posttrain starts need the package httptools", hint="pip install 'posttrain[serve]'"
        ) from error
