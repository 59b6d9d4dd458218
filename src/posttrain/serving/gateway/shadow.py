"""Copies of requests for a candidate whose answers nobody sees.

Here: their queue and their calls. Not here: who is copied (``assignment``), who compares (``control``). A copy is taken
when the user's answer has ended, so that it can neither delay nor alter it; connections, breakers and places are its
own. What does not fit is dropped and counted.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, NamedTuple

import orjson

from posttrain.serving.gateway.context import Context
from posttrain.serving.gateway.events import UPSTREAM_PATHS, Answer, BadAnswer, Endpoint
from posttrain.serving.gateway.metrics import milliseconds
from posttrain.serving.gateway.plan import Plan, Seat, sampling_digest
from posttrain.serving.gateway.upstream import Call, Failure, UpstreamHandle

_log = logging.getLogger(__name__)


class Original(NamedTuple):
    """What a copy is made from."""

    of: str
    """Id of the user's request."""
    endpoint: Endpoint
    body: bytes
    """As it came."""
    shared: dict[str, Any]
    """Members of the row that both have: who asked, slices."""
    content: str
    plan: Plan
    seat: Seat


class ShadowQueue:
    """The copies of one worker."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._config = context.config.shadow
        self._queue: deque[Original] = deque()
        self._bytes = 0
        self._active: set[_Copy] = set()
        self._starting = False

    @property
    def waiting(self) -> int:
        """Copies in the queue."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Copies under way."""
        return len(self._active)

    def offer(self, original: Original) -> None:
        """Take a copy, or drop it."""
        metrics = self._context.metrics
        size = len(original.body)
        if len(self._queue) >= self._config.queue or self._bytes + size > self._config.queue_bytes:
            metrics.shadow_dropped += 1
            return
        metrics.shadow_queued += 1
        self._context.enter_epoch(original.plan.epoch)
        self._queue.append(original)
        self._bytes += size
        self._start()

    def swapped(self, plan: Plan) -> None:
        """Another snapshot is in use: copies for a candidate that is no shadow there any more are dropped."""
        keep: deque[Original] = deque()
        dropped: list[Original] = []
        for original in self._queue:
            route = plan.routes.get(original.seat.cell.key.route)
            shadow = route.route.shadow if route is not None else None
            same = shadow is not None and shadow.target == original.seat.target
            (keep if same else dropped).append(original)
        self._queue = keep
        self._drop(dropped)

    def stop(self) -> None:
        """Drop what waits; what is under way goes on."""
        dropped, self._queue = list(self._queue), deque()
        self._drop(dropped)

    def abort(self) -> None:
        """End what is under way."""
        for copy in list(self._active):
            copy.expire()

    def sweep(self, now: float) -> None:
        """Act on time-outs."""
        for copy in [item for item in self._active if item.until < now]:
            copy.expire()

    def ended(self, copy: _Copy) -> None:
        """A copy is done."""
        self._active.discard(copy)
        self._context.leave_epoch(copy.original.plan.epoch)
        self._start()

    def _drop(self, dropped: list[Original]) -> None:
        for original in dropped:
            self._bytes -= len(original.body)
            self._context.metrics.shadow_dropped += 1
            self._context.leave_epoch(original.plan.epoch)

    def _start(self) -> None:
        if self._starting:
            return  # one that fails at once leads on to the next in the loop below, not by recursion
        self._starting = True
        while self._queue and len(self._active) < self._config.concurrency:
            original = self._queue.popleft()
            self._bytes -= len(original.body)
            copy = _Copy(self, self._context, original)
            self._active.add(copy)
            copy.start()
        self._starting = False


class _Copy(Call):
    """One call whose answer goes to the log alone."""

    __slots__ = ("_answer", "_at_ms", "_context", "_handle", "_parts", "_queue", "_sampling", "_size", "_started",
                 "_status", "original", "until")  # fmt: skip

    def __init__(self, queue: ShadowQueue, context: Context, original: Original) -> None:
        super().__init__()
        self.original = original
        self._queue = queue
        self._context = context
        self._answer = Answer(original.endpoint, context.limits.max_answer_bytes)
        self._started = time.monotonic()
        self._at_ms = context.clock.now_ms()
        self.until = self._started + context.config.shadow.seconds
        self._handle: UpstreamHandle | None = None
        self._sampling: str | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._status = 0

    def start(self) -> None:
        """Send it."""
        original = self.original
        body = orjson.loads(original.body)
        body.pop("stream", None)
        body.pop("stream_options", None)
        original.seat.fill(body)
        self._answer = self._context.answer(original.endpoint, body, stream=False)
        self._sampling = sampling_digest(body)
        now = time.monotonic()
        handle = next((item for item in original.seat.handles if item.breaker.allows(now)), None)
        if handle is None:
            self._end("the model is not available")
            return
        self._handle = handle
        self.call_deadline = min(self.until, now + handle.pool.first_byte_seconds)
        name = b"shadow-%b" % original.of.encode()
        self.payload = handle.payload(UPSTREAM_PATHS[original.endpoint], name, orjson.dumps(body))
        handle.pool.submit(self)

    def expire(self) -> None:
        """It took too long."""
        if self._handle is not None:
            self._handle.pool.withdraw(self)
        self.upstream_fails("slow")

    def upstream_faults(self) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        _log.exception("gateway: a copy of request %s met a fault of ours", self.original.of)
        self._end("a fault of the gateway")

    def upstream_begins(self, status: int, headers: dict[bytes, bytes]) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        self._status = status

    def upstream_sends(self, data: bytes) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        self._size += len(data)
        if self._size <= self._answer.limit:
            self._parts.append(data)

    def upstream_ends(self) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        error = None
        if self._status != 200:
            error = f"the model server answered with status {self._status}"
        elif self._size > self._answer.limit:
            error = "its answer is too long"
        else:
            try:
                self._answer.take_whole(orjson.loads(b"".join(self._parts)))
            except ValueError:
                error = "its answer is not JSON"
            except BadAnswer as bad:
                error = str(bad)
        if self._handle is not None:
            if error is not None and (self._status in (0, 200) or 500 <= self._status < 600):
                self._handle.breaker.failed(time.monotonic())
            else:
                self._handle.breaker.succeeded()
        self._end(error)

    def upstream_fails(self, failure: Failure) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        if self._handle is not None:
            self._handle.breaker.failed(time.monotonic())
        self._end(
            {"connect": "cannot be reached", "slow": "too slow", "cut": "cut off"}.get(failure, failure)
        )

    def _end(self, error: str | None) -> None:
        original, usage, context = self.original, self._answer.usage, self._context
        seconds = time.monotonic() - self._started
        finish = "error" if error is not None else self._answer.finish or "stop"
        if error is not None:
            context.metrics.shadow_failed += 1
        original.seat.cell.count(self._status, finish, seconds)
        says: dict[str, Any] = {
            "id": context.ids.make().decode(),
            "of": original.of,
            "at_ms": self._at_ms,
            "endpoint": original.endpoint,
            **original.shared,
            "tries": 0 if self._handle is None else 1,
            "upstream": "" if self._handle is None else self._handle.name,
            "sampling": self._sampling,
            "status": self._status,
            "finish": finish,
            "error": error,
            "latency_ms": milliseconds(seconds),
            "content": original.content,
        }
        if usage.prompt is not None:
            says["prompt_tokens"] = usage.prompt
            says["completion_tokens"] = usage.completion
            says["cached_tokens"] = usage.cached
            says["cost_usd"] = original.seat.cost_usd(usage.prompt, usage.completion or 0)
        if self._answer.guard is not None:
            says["guardrails"] = self._answer.guard.audit
        if original.content == "full":
            says["response"] = self._answer.response()
        row = b'{"v":1,"kind":"shadow",%b,%b' % (original.seat.fixed, orjson.dumps(says)[1:])
        context.log.put(row, _ignore, on_disk=False)
        self._queue.ended(self)


def _ignore(kept: bool) -> None:
    """Nobody waits for a copy's row."""
