"""HTTP/1.1 in: one protocol object per client connection.

Here: reading requests within limits, answering them in order, time-outs, closing. Not here: what a request means
(``routes``). Requests that are pipelined wait for the one before them. Everything that is wrong with what came is
answered in its place in that order, and then the connection is closed, so that no byte is ever taken for two things.

Covered: slow and endless headers and bodies, both framings at once, unfinished messages, clients that do not read.
Not covered: HTTP/2 and trailers, which are read and dropped; a request to upgrade is answered as if it had not asked.

Time-outs are looked at by ``ServerDoor.sweep``, so that no timer is made per request.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, Final, Protocol

import httptools

from posttrain.serving.access.records import Principal
from posttrain.serving.gateway import replies
from posttrain.serving.gateway.config import LimitsConfig
from posttrain.serving.gateway.replies import ApiError
from posttrain.serving.gateway.wire import Wire, never

_monotonic: Final = time.monotonic

_log = logging.getLogger(__name__)
_KEEP_READING = 16
"""Pipelined requests that are taken in while one is being answered; more wait in the socket."""
_LINGER_SECONDS = 2.0
_ONCE: Final = frozenset({b"host", b"authorization", b"content-type", b"x-request-id"})


class Request:
    """One request as it came."""

    __slots__ = (
        "body",
        "headers",
        "id",
        "keep_alive",
        "method",
        "old",
        "path",
        "principal",
        "refusal",
    )

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        """Without the query."""
        self.headers: dict[bytes, bytes] = {}
        """Names in small letters; of a repeated one the last."""
        self.body = b""
        self.keep_alive = True
        self.old = False
        """HTTP/1.0: no chunks."""
        self.refusal: ApiError | None = None
        """What is wrong with it, found before its body was read."""
        self.principal: Principal | None = None
        """Who asks, where access is checked."""
        self.id = b""
        """What the client is told as ``x-request-id``."""


class Active(Protocol):
    """Whatever is answering a request over time."""

    def client_gone(self) -> None:
        """The connection is lost: nobody waits for this any more."""

    def client_slow(self, slow: bool) -> None:
        """The client does not take what was sent, or does again."""

    def fault(self) -> None:
        """Answering raised, which is a fault of ours: end it. Called while that is handled."""


class Application(Protocol):
    """What stands behind the connections."""

    def identify(self, request: Request) -> None:
        """Give it its id, from what headers are there."""

    def examine(self, request: Request) -> ApiError | None:
        """Look at a request whose headers are there, before its body is read."""

    def handle(self, connection: ServerConnection, request: Request) -> None:
        """Answer a whole request, now or later."""


class ServerDoor:
    """What the connections of one worker share."""

    def __init__(self, application: Application, limits: LimitsConfig) -> None:
        self.application = application
        self.limits = limits
        # Read for every request, and a field of a pydantic model takes ten times as long to read.
        self.header_seconds = limits.header_seconds
        self.body_seconds = limits.body_seconds
        self.keep_alive_seconds = limits.keep_alive_seconds
        self.max_headers = limits.max_headers
        self.max_header_bytes = limits.max_header_bytes
        self.max_body_bytes = limits.max_body_bytes
        self.connections: set[ServerConnection] = set()
        self.draining = False
        """Every answer from now on closes its connection."""
        self.refused = 0
        """Connections closed at once, because there were too many."""

    @property
    def is_done(self) -> bool:
        """Whether every answer is sent."""
        return all(connection.is_done for connection in self.connections)

    def connect(self) -> ServerConnection:
        """A protocol for the next connection."""
        return ServerConnection(self)

    def sweep(self, now: float) -> None:
        """Act on time-outs; called several times a second."""
        late = [item for item in self.connections if item.deadline < now or item.write_deadline < now]
        for connection in late:
            connection.expire(now)

    def drain(self) -> None:
        """Close idle connections; the others close after their answer."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()


class ServerConnection(Wire):
    """One client connection."""

    __slots__ = (
        "_body_bytes",
        "_chunks",
        "_current",
        "_head_bytes",
        "_in_head",
        "_in_message",
        "_is_lost",
        "_lingering",
        "_names",
        "_no_input",
        "_now",
        "_parser",
        "_paused",
        "_pumping",
        "_queue",
        "_reading",
        "_url",
        "_wants_continue",
        "active",
        "deadline",
        "door",
        "write_deadline",
    )

    def __init__(self, door: ServerDoor) -> None:
        super().__init__()
        self.door = door
        self.active: Active | None = None
        """Who answers the current request."""
        self.deadline = never
        """When what is being read, or the next request, must be there."""
        self.write_deadline = never
        """When the client must have taken something."""
        self._now = 0.0
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        """The request that is being answered."""
        self._reading = Request()
        """The request that is being read."""
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._names = 0
        self._url = b""
        self._in_message = False
        self._in_head = False
        self._no_input = False
        """Something was wrong, or the end was asked for: nothing more is read."""
        self._wants_continue = False
        self._pumping = False
        self._paused = False
        self._is_lost = False
        self._lingering = False

    # -- the transport's side ---------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Part of the protocol."""
        self.transport = transport
        if len(self.door.connections) >= self.door.limits.max_connections:
            self.door.refused += 1
            transport.abort()
            return
        self.door.connections.add(self)
        self.deadline = _monotonic() + self.door.header_seconds

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of the protocol."""
        self.door.connections.discard(self)
        self._no_input = self._is_lost = True
        self._queue.clear()
        active, self.active = self.active, None
        if active is not None:
            active.client_gone()

    def pause_writing(self) -> None:
        """Part of the protocol."""
        self.write_deadline = _monotonic() + self.door.limits.write_seconds
        if self.active is not None:
            self.active.client_slow(True)

    def resume_writing(self) -> None:
        """Part of the protocol."""
        self.write_deadline = never
        if self.active is not None:
            self.active.client_slow(False)

    def data_received(self, data: bytes) -> None:
        """Part of the protocol."""
        if self._no_input:
            return
        self._now = _monotonic()
        if self._in_head or not self._in_message:
            # Counted before the parser has it: it hands over a header only when that is whole.
            self._head_bytes += len(data)
        self._feed(data)
        if self._in_head and self._head_bytes > self.door.max_header_bytes:
            self._fault(replies.headers_too_large())
        if self._queue and self._current is None:
            self._pump()
        if len(self._queue) >= _KEEP_READING and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._fault(replies.bad_request_line(str(error)[:100]))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read a request that would like another protocol as if it had not asked: the parser stops before its body."""
        request = self._reading
        if request.method == b"CONNECT":
            self._fault(replies.bad_request_line("CONNECT is not spoken here"))
            return
        last = (
            b"connection: close\r\n" if b"close" in request.headers.get(b"connection", b"").lower() else b""
        )
        kept = b"".join(
            b"%b: %b\r\n" % item
            for item in request.headers.items()
            if item[0] not in (b"connection", b"upgrade")
        )
        head = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (request.method, self._url, kept, last)
        self._parser = httptools.HttpRequestParser(self)
        self._reading = Request()
        self._feed(head + rest)

    # -- the parser's side ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_message = self._in_head = True
        self._url = b""
        self._names = 0
        self.deadline = self._now + self.door.header_seconds

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer."""
        if not self._in_head:
            return
        headers = self._reading.headers
        key, known = name.lower(), len(headers)
        headers[key] = value
        self._names += 1
        if len(headers) == known and key in _ONCE:
            self._fault(replies.bad_request_line(f"more than one {key.decode()} header"))

    def on_headers_complete(self) -> None:
        """Everything but the body is there."""
        self._in_head = False
        if self._no_input:
            return
        request, parser, door = self._reading, self._parser, self.door
        request.method = parser.get_method()
        if parser.should_upgrade():
            return
        request.path = self._url.partition(b"?")[0]
        request.keep_alive = parser.should_keep_alive()
        version = parser.get_http_version()
        headers = request.headers
        if version != "1.1":
            request.old = True
            if version != "1.0":
                self._fault(
                    replies.bad_request_line(f"HTTP/{version} is not spoken here")._replace(status=505)
                )
                return
        elif b"host" not in headers:
            self._fault(replies.bad_request_line("no host header"))
            return
        too_long = self._head_bytes > door.max_header_bytes and self._head_size() > door.max_header_bytes
        if too_long or self._names > door.max_headers:
            self._fault(replies.headers_too_large())
            return
        if b"transfer-encoding" in headers and headers[b"transfer-encoding"].lower() != b"chunked":
            self._fault(replies.bad_request_line("only the transfer coding chunked is read"))
            return
        if b"content-length" in headers and int(headers[b"content-length"]) > door.max_body_bytes:
            self._fault(replies.too_large(door.max_body_bytes))
            return
        self.deadline = self._now + door.body_seconds
        door.application.identify(request)
        request.refusal = door.application.examine(request)
        if b"expect" in headers and not request.old:
            if headers[b"expect"].lower() != b"100-continue":
                self._fault(
                    replies.invalid(
                        "Only 100-continue can be expected.", code="expectation_failed", status=417
                    )
                )
            elif request.refusal is not None:
                # The body may come or not: after the answer nobody knows where the next request begins.
                self._fault(request.refusal)
            else:
                self._wants_continue = True
                self._continue()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._no_input:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self.door.max_body_bytes:
            self._fault(replies.too_large(self.door.max_body_bytes))
        elif self._reading.refusal is None:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._no_input or self._parser.should_upgrade():
            return
        request, chunks = self._reading, self._chunks
        if chunks:
            request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
        self._queue.append(request)
        self._reading = Request()
        self._in_message = False
        self._wants_continue = False
        self._body_bytes = self._head_bytes = 0
        self.deadline = never
        if not request.keep_alive:
            self._no_input = True

    # -- answers ----------------------------------------------------------------------------------

    def reply(
        self,
        request: Request,
        status: int,
        body: bytes,
        *,
        content_type: bytes = replies.JSON,
        extra: bytes = b"",
    ) -> None:
        """Answer the current request whole."""
        ending = b"connection: close\r\n" if not self._stays(request) else b""
        start = replies.head(status, content_type, request.id, extra)
        shown = b"" if request.method == b"HEAD" else body
        self.transport.write(b"%b%bcontent-length: %d\r\n\r\n%b" % (start, ending, len(body), shown))
        self._answered(request)

    def refuse(self, request: Request, error: ApiError) -> None:
        """Answer the current request with an error."""
        self.reply(request, error.status, error.body(), extra=error.headers())

    def begin(self, request: Request, status: int, content_type: bytes) -> None:
        """Begin an answer that comes in parts."""
        start = replies.head(status, content_type, request.id, b"cache-control: no-cache\r\n")
        if request.old:
            request.keep_alive = False
        framing = b"" if request.old else b"transfer-encoding: chunked\r\n"
        ending = b"connection: close\r\n" if not self._stays(request) else b""
        self.transport.write(b"%b%b%b\r\n" % (start, framing, ending))

    def send(self, request: Request, data: bytes) -> None:
        """The next part."""
        self.transport.write(data if request.old else b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, request: Request, data: bytes) -> None:
        """The last part, and the end of the answer."""
        if request.old:
            if data:
                self.transport.write(data)
        elif data:
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        else:
            self.transport.write(b"0\r\n\r\n")
        self._answered(request)

    @property
    def is_done(self) -> bool:
        """Everything is answered and sent; only the client has not closed yet."""
        return self._lingering and not self.transport.get_write_buffer_size()

    def is_answering(self, request: Request) -> bool:
        """Whether this request still waits for its answer."""
        return self._current is request and not self._is_lost

    def cut(self, data: bytes = b"") -> None:
        """Close without ending the answer, so that the client sees that it is not whole."""
        self.active = None
        if data and self._current is not None:
            self.send(self._current, data)
        self._no_input = True
        self.transport.close()

    # -- the order of answers ---------------------------------------------------------------------

    def close_if_idle(self) -> None:
        """For draining: nothing is being read or answered here."""
        if self._current is None and not self._queue and not self._in_message:
            self._no_input = True
            self.transport.close()

    def expire(self, now: float) -> None:
        """A deadline is over."""
        if self._in_message and self.write_deadline >= now:
            self._fault(replies.too_slow())
            if self._current is None:
                self._pump()
        else:
            self._no_input = True
            self.deadline = self.write_deadline = never
            self.transport.abort()

    def _stays(self, request: Request) -> bool:
        return request.keep_alive and not self.door.draining

    def _head_size(self) -> int:
        # What was counted while reading also holds bytes of the body behind it.
        return len(self._url) + sum(
            len(name) + len(value) + 4 for name, value in self._reading.headers.items()
        )

    def _fault(self, error: ApiError) -> None:
        """Answer what is being read with an error, in its turn, and read nothing more."""
        if self._no_input:
            return
        self._no_input = True
        request = self._reading
        request.refusal = error
        request.keep_alive = False
        request.headers.pop(b"expect", None)
        self._in_head = self._in_message = False
        self._chunks = []
        self.deadline = never
        self._queue.append(request)

    def _continue(self) -> None:
        if self._wants_continue and self._current is None and not self._queue:
            self._wants_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _pump(self) -> None:
        """Answer what waits; an answer given at once leads on to the next here, not by recursion."""
        if self._pumping:
            return
        self._pumping = True
        while self._queue and self._current is None:
            request = self._current = self._queue.popleft()
            if request.refusal is not None:
                if not request.id:
                    self.door.application.identify(request)
                self.refuse(request, request.refusal)
            else:
                self._handle(request)
        self._pumping = False
        if self._current is None and not self._no_input:
            self._rest()

    def _handle(self, request: Request) -> None:
        try:
            self.door.application.handle(self, request)
        except Exception:  # a client must not wait for ever for what a fault of ours has ended
            if self.active is not None:
                self.active.fault()
            elif self.is_answering(request):
                _log.exception("gateway: a fault of ours at %s", request.path)
                request.keep_alive = False
                self.refuse(request, replies.internal())

    def _rest(self) -> None:
        """Everything that came is answered."""
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        if not self._in_message:
            self.deadline = _monotonic() + self.door.keep_alive_seconds
        self._continue()

    def _answered(self, request: Request) -> None:
        self._current = None
        self.active = None
        if self._stays(request):
            self._pump()
        else:
            self._close()

    def _close(self) -> None:
        """Close so that the client can still read the answer: what it goes on sending would reset the connection."""
        self._no_input = True
        self._queue.clear()
        transport = self.transport
        if transport.is_closing():
            return
        if transport.can_write_eof():
            self._lingering = True
            self.deadline = _monotonic() + _LINGER_SECONDS
            if self._paused:
                self._paused = False
                transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()
