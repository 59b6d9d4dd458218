"""HTTP/1.1 out: calls to upstreams over kept-alive connections.

Here: ``Call`` (what wants an answer), connections, one pool per upstream. Not here: which upstream, and what to do when
it fails (``exchange``, ``shadow``). A call is told what happens by its ``upstream_…`` methods, which run inside the
arrival of the bytes: nothing is scheduled per request.

A kept-alive connection that the upstream closed just as it was used again is not the upstream's failure: the call goes
out once more on a fresh connection, if nothing of an answer had come.

Covered: chunked answers, counted ones, and those that end with the connection; informational answers are skipped.
Not covered: compressed answers (none is asked for), proxies, HTTP/2.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import deque
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

import httptools

from posttrain.routing.records import Upstream
from posttrain.serving.gateway.breaker import Breaker
from posttrain.serving.gateway.config import BreakerConfig
from posttrain.serving.gateway.wire import Wire, never

_monotonic: Final = time.monotonic

Failure: TypeAlias = Literal["connect", "slow", "cut", "garbage"]
"""``connect``: no connection. ``slow``: a time-out. ``cut``: the connection ended before the answer did. ``garbage``:
what came is not HTTP."""
_IDLE_SECONDS = 60.0


class Call:
    """A request to an upstream and whoever waits for its answer."""

    __slots__ = ("call_deadline", "carrier", "connection", "is_repeat", "payload")

    def __init__(self) -> None:
        self.payload = b""
        """The whole request as bytes."""
        self.connection: UpstreamConnection | None = None
        """Where it is under way."""
        self.carrier: UpstreamConnection | None = None
        """Where its answer came from; it may carry another call by now."""
        self.call_deadline = never
        """When the answer must have begun."""
        self.is_repeat = False
        """Whether a stale connection has already cost it one."""

    def upstream_begins(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The answer's head is there; names are in small letters."""
        raise NotImplementedError

    def upstream_sends(self, data: bytes) -> None:
        """A part of the answer's body is there."""
        raise NotImplementedError

    def upstream_ends(self) -> None:
        """The answer is whole. The connection has been given back."""
        raise NotImplementedError

    def upstream_fails(self, failure: Failure) -> None:
        """There will be no more of an answer."""
        raise NotImplementedError

    def upstream_faults(self) -> None:
        """One of these methods raised, which is a fault of ours; called while that is handled."""
        raise NotImplementedError


class UpstreamConnection(Wire):
    """One connection to an upstream."""

    __slots__ = (
        "_begun",
        "_complete",
        "_dirty",
        "_fields",
        "_framed",
        "_parser",
        "_paused",
        "_skip",
        "_stays",
        "_used",
        "call",
        "deadline",
        "idle_since",
        "pool",
    )

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.call: Call | None = None
        self.deadline = never
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._fields: dict[bytes, bytes] = {}
        self._begun = False
        """Whether bytes of the current answer have come."""
        self._complete = False
        """Whether all of it has."""
        self._dirty = False
        """Whether more than it has: what comes next here would be taken for the answer to another request."""
        self._used = False
        """Whether it has carried an answer before."""
        self._framed = False
        self._skip = False
        self._stays = False
        self._paused = False

    def send(self, call: Call) -> None:
        """Begin a call here."""
        self.call = call
        call.connection = call.carrier = self
        self._begun = self._complete = False
        self.deadline = call.call_deadline
        self.transport.write(call.payload)

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on: the client of the answer is slow."""
        if paused == self._paused or self.transport.is_closing():
            return
        self._paused = paused
        if paused:
            self.deadline = never
            self.transport.pause_reading()
        else:
            self.deadline = _monotonic() + self.pool.idle_seconds
            self.transport.resume_reading()

    def drop(self) -> None:
        """Close without telling the call."""
        self.call = None
        self.transport.abort()

    def distrust(self) -> None:
        """What came here was no answer, so what comes next may not be the next call's either."""
        if self.call is not None:
            self.fail("cut")
        else:
            self.transport.abort()

    # -- the transport's side ---------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of the protocol."""
        call, self.call = self.call, None
        self.pool.lost(self)
        if call is None:
            return
        call.connection = None
        if self._begun and not self._framed and exc is None:
            call.upstream_ends()
        elif self._used and not self._begun and not call.is_repeat:
            call.is_repeat = True
            self.pool.submit(call, fresh=True)
        else:
            call.upstream_fails("cut")

    def data_received(self, data: bytes) -> None:
        """Part of the protocol."""
        if self.call is None:
            self.transport.abort()  # an answer that nobody asked for
            return
        self._begun = True
        if not self._paused:
            self.deadline = _monotonic() + self.pool.idle_seconds
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            call = self.call
            self.drop()
            if call is not None:
                call.connection = None
                call.upstream_faults()
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._dirty = True
        if self._complete:
            self._finish()
        elif self._dirty:
            self.fail("garbage")

    def fail(self, failure: Failure) -> None:
        """Close and tell the call."""
        call = self.call
        self.drop()
        if call is not None:
            call.connection = None
            call.upstream_fails(failure)

    # -- the parser's side ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins."""
        self._fields = {}
        self._dirty = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The answer's head is whole."""
        status, fields = self._parser.get_status_code(), self._fields
        self._skip = status < 200
        if not self._skip and self.call is not None and not self._complete:
            self._framed = (
                b"content-length" in fields or b"transfer-encoding" in fields or status in (204, 304)
            )
            self.call.upstream_begins(status, fields)

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if self.call is not None and not self._complete:
            self.call.upstream_sends(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if not self._skip and not self._complete:
            self._complete = True
            # Asked here: the parser forgets it when the callback is over.
            self._stays = self._parser.should_keep_alive()

    def _finish(self) -> None:
        # Only now, when all that was read has been looked at, may another call have this connection.
        call, self.call = self.call, None
        self._used = True
        self.deadline = never
        self.pool.give_back(self, stays=self._stays and self._framed and not self._dirty and not self._paused)
        if call is not None:
            call.connection = None
            try:
                call.upstream_ends()
            except Exception:  # whoever waits for this answer must not wait for ever
                call.upstream_faults()


class Pool:
    """The connections to one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        # Read for every call, and a field of a pydantic model takes ten times as long to read.
        self.first_byte_seconds = upstream.first_byte_seconds
        self.idle_seconds = upstream.idle_seconds
        parts = urlsplit(upstream.url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self.idle: list[UpstreamConnection] = []
        """The one used last comes first, so that few stay warm."""
        self.busy: set[UpstreamConnection] = set()
        self.connecting: set[asyncio.Task[None]] = set()
        self.waiting: deque[Call] = deque()
        self.retired = False
        """Out of the snapshot: what is under way ends, nothing is kept."""

    @property
    def count(self) -> int:
        """Connections there are or will be."""
        return len(self.idle) + len(self.busy) + len(self.connecting)

    def submit(self, call: Call, *, fresh: bool = False) -> None:
        """Send a call on an idle connection, or as soon as one is there."""
        if call.call_deadline == never:
            call.call_deadline = _monotonic() + self.first_byte_seconds
        while self.idle and not fresh:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                self.busy.add(connection)
                connection.send(call)
                return
        if fresh:
            if self.idle and self.count >= self.upstream.max_connections:
                self.idle.pop(0).transport.close()
            self.waiting.appendleft(call)
        else:
            self.waiting.append(call)
        self._connect_if_needed()

    def withdraw(self, call: Call) -> None:
        """Nobody waits for this call any more."""
        if call.connection is not None:
            call.connection.drop()
            call.connection = None
        elif call in self.waiting:
            self.waiting.remove(call)

    def give_back(self, connection: UpstreamConnection, *, stays: bool) -> None:
        """An answer is whole."""
        self.busy.discard(connection)
        if not stays:
            connection.transport.close()
            self._connect_if_needed()
        elif self.waiting:
            self._start(connection)
        elif self.retired:
            connection.transport.close()
        else:
            connection.idle_since = _monotonic()
            self.idle.append(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is gone."""
        self.busy.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self._connect_if_needed()

    def retire(self) -> None:
        """Close what is idle and keep nothing from now on."""
        self.retired = True
        for connection in self.idle:
            connection.transport.close()
        self.idle = []

    def close(self) -> None:
        """Close everything at once; calls are not told."""
        self.retire()
        self.waiting.clear()
        for task in self.connecting:
            task.cancel()
        for connection in list(self.busy):
            connection.drop()

    def sweep(self, now: float) -> None:
        """Act on time-outs."""
        for connection in [item for item in self.busy if item.deadline < now]:
            connection.fail("slow")
        while self.waiting and self.waiting[0].call_deadline < now:
            self.waiting.popleft().upstream_fails("slow")
        while self.idle and self.idle[0].idle_since < now - _IDLE_SECONDS:
            self.idle.pop(0).transport.close()

    def _connect_if_needed(self) -> None:
        while len(self.waiting) > len(self.connecting) and self.count < self.upstream.max_connections:
            task = asyncio.get_running_loop().create_task(self._connect())
            self.connecting.add(task)

    async def _connect(self) -> None:
        task = asyncio.current_task()
        connection = UpstreamConnection(self)
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self.upstream.connect_seconds):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection.protocol, self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            failure = "slow"
        except (OSError, ValueError):  # ValueError: a name that cannot be one
            failure = "connect"
        finally:
            if task is not None:
                self.connecting.discard(task)
        if failure is None:
            self.busy.add(connection)
            self.give_back(connection, stays=not connection.transport.is_closing())
        elif self.waiting:
            self.waiting.popleft().upstream_fails(failure)
            self._connect_if_needed()

    def _start(self, connection: UpstreamConnection) -> None:
        self.busy.add(connection)
        connection.send(self.waiting.popleft())


class UpstreamHandle:
    """One upstream of a snapshot, with what lives longer than the snapshot: its connections and its breaker."""

    def __init__(self, upstream: Upstream, breaker: BreakerConfig) -> None:
        self.upstream = upstream
        self.name = upstream.name
        self.pool = Pool(upstream)
        self.breaker = Breaker(breaker)
        self.errors = 0
        """Calls that failed."""
        parts = urlsplit(upstream.url)
        self._base = parts.path.rstrip("/").encode()
        self._heads: dict[bytes, bytes] = {}
        self._host = parts.netloc.rpartition("@")[2].encode()
        key = os.environ.get(upstream.key_variable, "") if upstream.key_variable else ""
        self._key = f"authorization: Bearer {key}\r\n".encode() if key else b""

    def payload(self, endpoint: bytes, request_id: bytes, body: bytes, extra: bytes = b"") -> bytes:
        """The bytes of a call to ``/chat/completions`` and the like."""
        start = self._heads.get(endpoint)
        if start is None:
            start = self._heads[endpoint] = (
                b"POST %b%b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\naccept: */*\r\n%b"
                % (self._base, endpoint, self._host, self._key)
            )
        return b"%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            start,
            extra,
            request_id,
            len(body),
            body,
        )
