"""One request from acceptance to its row.

Here: the life of a request: a place, a ``begin`` row, upstreams in order, the answer, an ``end`` row, and only then the
answer's last byte. Not here: reading requests (``routes``), connections (``server``, ``upstream``), what answers say
(``events``). It runs inside the arrival of bytes, and goes on when rows are written (``rowlog``), without a task of its
own.

Nothing is sent to another upstream once a byte of an answer has gone out to the client.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any, Final

import orjson

from posttrain.guardrails import GuardrailPlan
from posttrain.serving.gateway import replies
from posttrain.serving.gateway.context import Context
from posttrain.serving.gateway.events import (
    DONE,
    UPSTREAM_PATHS,
    Answer,
    BadAnswer,
    Endpoint,
    EventReader,
    error_event,
)
from posttrain.serving.gateway.guard import FILTERED
from posttrain.serving.gateway.identity import SLICES_HEADER, Asker, read_slices
from posttrain.serving.gateway.metrics import milliseconds
from posttrain.serving.gateway.plan import Seat, Seating, sampling_digest
from posttrain.serving.gateway.replies import ApiError
from posttrain.serving.gateway.rowlog import as_it_came
from posttrain.serving.gateway.server import Request, ServerConnection
from posttrain.serving.gateway.shadow import Original
from posttrain.serving.gateway.upstream import Call, Failure, UpstreamHandle

_monotonic: Final = time.monotonic
_dumps: Final = orjson.dumps
_loads: Final = orjson.loads

FAILURES: Final[dict[Failure, ApiError]] = {
    "connect": replies.bad_upstream("it cannot be reached"),
    "slow": replies.slow_upstream(),
    "cut": replies.bad_upstream("it ended the connection"),
    "garbage": replies.bad_upstream("it does not speak HTTP"),
}
_log = logging.getLogger(__name__)
NOTHING_YET: Final = Answer("chat", 0)
"""Of a request that no upstream was asked; never written to."""
_ANSWERED: Final = frozenset({"stop", "length", "tool_calls", "content_filter"})


class Exchange(Call):
    """A request that was accepted."""

    __slots__ = (
        "_accepted",
        "_answer",
        "_asked",
        "_asker",
        "_at_ms",
        "_begun",
        "_blocked",
        "_body",
        "_bytes",
        "_client",
        "_content",
        "_context",
        "_core",
        "_ended",
        "_endpoint",
        "_error",
        "_failure",
        "_finish",
        "_first",
        "_handle",
        "_is_gone",
        "_is_over",
        "_is_written",
        "_last",
        "_next",
        "_parts",
        "_place",
        "_plan",
        "_reader",
        "_reply_headers",
        "_reply_type",
        "_request",
        "_sampling",
        "_seat",
        "_sent",
        "_shadow",
        "_shared",
        "_size",
        "_started",
        "_status",
        "_stream",
        "_streams",
        "_tag",
        "_timer",
        "_tries",
        "_usage_asked",
    )

    def __init__(
        self, context: Context, client: ServerConnection, request: Request, endpoint: Endpoint
    ) -> None:
        super().__init__()
        self._context = context
        self._client = client
        self._request = request
        self._endpoint: Endpoint = endpoint
        self._plan = context.plan
        self._accepted = self._started = _monotonic()
        self._at_ms = context.clock.now_ms()
        self._place = False
        """Whether it has a place."""
        self._is_written = False
        """Whether its begin row is: no upstream hears of it before."""
        self._sampling: str | None = None
        self._answer = NOTHING_YET
        self._asked: dict[str, Any] | None = None
        """What guardrails say of the request."""
        self._handle: UpstreamHandle | None = None
        """Who was called last."""
        self._next = 0
        """The first upstream that was not tried."""
        self._tries = 0
        self._sent = self._first = self._ended = 0.0
        """When it was last sent to an upstream, when an answer began, when it was whole; 0: not yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._failure: ApiError | None = None
        """How the last try failed, unless the upstream itself said so."""
        self._begun = False
        """Whether a byte of the answer has gone out."""
        self._is_over = False
        """Whether its end row is written: nothing more is heard of upstreams."""
        self._is_gone = False
        """Whether nobody waits for the answer."""
        self._status = 0
        self._reply_type = replies.JSON
        self._reply_headers = b""
        self._streams = False
        """Whether the upstream answers with events."""
        self._parts: list[bytes] = []
        """Of an answer that is not passed on as it comes."""
        self._error: ApiError | None = None
        self._finish = ""
        self._last = b""

    # -- acceptance -------------------------------------------------------------------------------

    def start(self, body: dict[str, Any], asker: Asker, seating: Seating) -> None:
        """Take a place, or wait for one, or be refused."""
        context, request = self._context, self._request
        self._body = body
        self._asker = asker
        self._seat, self._shadow, self._tag, _ = seating
        self._stream = body.get("stream") is True
        self._client.active = self
        self._blocked = context.guardrails is not None and self._ask_guardrails(context.guardrails)
        context.budget.earn()
        context.enter_epoch(self._plan.epoch)
        self._core = self._members()
        entry = context.admission.enter(self, self._accepted)
        if entry == "full":
            self._content = "off"  # a flood is no time to write down what it says
            self._end("shed", replies.shed(context.limits.retry_after_seconds))
            return
        self._place = entry == "in"
        self._content = context.log.content_of(asker.unit("user", request.id.decode()))
        context.log.put(b'{"v":1,"kind":"begin",%b}' % self._core, self._go_on, on_disk=False)

    def _go_on(self, kept: bool) -> None:
        """The begin row is, or cannot be and must."""
        self._is_written = True
        if self._is_over:  # the client went away meanwhile
            return
        context = self._context
        try:
            if kept and not self._blocked:
                if self._place:
                    self._prepare()
                return
            if not self._place:
                context.admission.give_up(self)
            if kept:
                self._end(FILTERED, replies.filtered())
            else:
                context.metrics.refused[503, "log_unavailable"] += 1
                self._is_over = True
                self._error = replies.log_full()
                self._deliver(True)
        except Exception:
            self.fault()

    def _ask_guardrails(self, plan: GuardrailPlan) -> bool:
        """Scan the request; whether it is blocked. What is redacted is so for everybody: upstreams, copies, the log."""
        body, request = self._body, self._request
        name = "messages" if self._endpoint == "chat" else "prompt"
        found = plan.request(body[name])
        self._asked = found.audit
        if found.prompt is not body[name] and found.audit is not None:
            body[name] = found.prompt
            request.body = _dumps(body)
        return found.action == "block"

    def admitted(self) -> None:
        """See :class:`~posttrain.serving.gateway.admission.Guest`."""
        self._place = True
        self._started = _monotonic()
        if not self._is_written:
            return
        try:
            self._prepare()
        except Exception:  # it is another request's end that led here
            self.fault()

    def turned_away(self) -> None:
        """See :class:`~posttrain.serving.gateway.admission.Guest`."""
        self._end("shed", replies.shed(self._context.limits.retry_after_seconds))

    def _members(self) -> bytes:
        """What both rows say."""
        request, asker = self._request, self._asker
        shared = self._shared = asker.says(self._seat.unit, request.id.decode())
        slices = read_slices(request.headers.get(SLICES_HEADER))
        if self._tag:
            slices.append(self._tag)
        if slices:
            shared["slices"] = slices
        says = {
            "id": request.id.decode(),
            "at_ms": self._at_ms,
            "endpoint": self._endpoint,
            "stream": self._stream,
            **shared,
        }
        return b"%b,%b" % (self._seat.fixed, _dumps(says)[1:-1])

    def fault(self) -> None:
        """See :class:`~posttrain.serving.gateway.server.Active`."""
        _log.exception("gateway: request %s met a fault of ours", self._request.id.decode())
        if not self._is_over:
            if self._handle is not None:
                self._handle.pool.withdraw(self)
            self._end("error", replies.internal())

    # -- the client's side ------------------------------------------------------------------------

    def client_gone(self) -> None:
        """See :class:`~posttrain.serving.gateway.server.Active`."""
        self._is_gone = True
        if self._is_over:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._handle is not None:
            self._handle.pool.withdraw(self)
        if not self._place:
            self._context.admission.give_up(self)
        self._end("cancelled")

    def client_slow(self, slow: bool) -> None:
        """See :class:`~posttrain.serving.gateway.server.Active`."""
        if self.connection is not None:
            self.connection.pause(slow)

    # -- towards upstreams ------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the client's body the upstream's."""
        body = self._body
        self._seat.fill(body)
        self._sampling = sampling_digest(body)
        self._usage_asked = False
        if self._stream:
            options = body.get("stream_options")
            options = options if isinstance(options, dict) else {}
            self._usage_asked = options.get("include_usage") is True
            if not self._usage_asked:
                body["stream_options"] = {**options, "include_usage": True}
        try:
            self._bytes = _dumps(body)
        except TypeError:  # deeper than what can be written again
            self._end("error", replies.invalid("The request body is nested too deeply.", code="invalid_json"))
            return
        self._call_next()

    def _call_next(self) -> None:
        """Call the next upstream that was not tried; after the last, perhaps one of them again."""
        handles, now = self._seat.handles, _monotonic()
        while self._next < len(handles):
            handle = handles[self._next]
            self._next += 1
            if handle.breaker.allows(now):
                self._call(handle, now)
                return
        context = self._context
        if not self._tries:
            self._end("error", replies.no_upstream())
        elif self._tries < context.retries.tries and context.budget.spend():
            seconds = context.retries.backoff_seconds * 2 ** (self._tries - 1) * random.uniform(0.5, 1.0)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._call_again)
        else:
            self._give_up()

    def _call_again(self) -> None:
        self._timer = None
        now = _monotonic()
        handle = next((item for item in self._seat.handles if item.breaker.allows(now)), None)
        if handle is None:
            self._give_up()
        else:
            self._call(handle, now)

    def _call(self, handle: UpstreamHandle, now: float) -> None:
        self._handle = handle
        self._tries += 1
        if self._tries > 1:
            self._context.metrics.retries += 1
        self._answer = self._context.answer(self._endpoint, self._body, stream=self._stream)
        self._streams = False
        self._parts = []
        self._size = 0
        self._failure = None
        self._sent = now
        self.is_repeat = False
        self.call_deadline = now + handle.pool.first_byte_seconds
        request = self._request
        traced = request.headers.get(b"traceparent")
        extra = b"traceparent: %b\r\n" % traced if traced else b""
        self.payload = handle.payload(UPSTREAM_PATHS[self._endpoint], request.id, self._bytes, extra)
        handle.pool.submit(self)

    def _try_failed(self, failure: ApiError | None) -> None:
        """Nothing has gone out yet: perhaps another try will do."""
        self._failure = failure
        handle = self._handle
        if handle is not None:
            handle.errors += 1
        if self._tries < self._context.retries.tries:
            self._call_next()
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self._failure is None:
            self._pass_error()
        else:
            self._end("error", self._failure)

    # -- from upstreams ---------------------------------------------------------------------------

    def upstream_faults(self) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        self.fault()

    def upstream_begins(self, status: int, headers: dict[bytes, bytes]) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        self._status = status
        self._reply_type = headers.get(b"content-type", replies.JSON)
        if status == 200 and self._stream and self._reply_type.startswith(b"text/event-stream"):
            self._streams = True
            self._reader = EventReader(self._answer, usage_asked=self._usage_asked)
        elif b"retry-after" in headers:
            self._reply_headers = b"retry-after: %b\r\n" % headers[b"retry-after"]

    def upstream_sends(self, data: bytes) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        if self._is_over:
            return
        if not self._first:
            self._first = _monotonic()
        if not self._streams:
            self._size += len(data)
            if self._size > self._context.limits.max_answer_bytes:
                self._bad(BadAnswer("its answer is too long"))
            else:
                self._parts.append(data)
            return
        try:
            data = self._reader.feed(data)
        except BadAnswer as error:
            self._bad(error)
            return
        if data:
            if not self._begun:
                self._begun = True
                self._client.begin(self._request, 200, replies.EVENTS)
            self._client.send(self._request, data)
        guard = self._answer.guard
        if guard is not None and guard.blocked:
            self._block()

    def upstream_ends(self) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        if self._is_over or self._handle is None:
            return
        self._ended = _monotonic()
        status = self._status
        try:
            if self._streams:
                self._end_stream()
                return
            if status == 200:
                answer = _parsed(self._parts)
                if self._answer.take_whole(answer):
                    self._parts = [_dumps(answer)]
        except BadAnswer as error:
            self._bad(error)
            return
        if status >= 500:
            self._handle.breaker.failed(self._ended)
        else:
            self._handle.breaker.succeeded()
        if status == 200:
            self._end(self._answer.finish or "stop")
        elif status in self._context.retries.statuses:
            self._try_failed(None)
        else:
            self._pass_error()

    def upstream_fails(self, failure: Failure) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        if self._is_over or self._handle is None:
            return
        self._handle.breaker.failed(_monotonic())
        self._failed(FAILURES[failure])

    def _block(self) -> None:
        """A guardrail ended the answer; what the upstream would still say is not waited for."""
        if self._handle is not None:
            self._handle.pool.withdraw(self)
            self._handle.breaker.succeeded()
        self._last = DONE
        self._end(FILTERED)

    def _bad(self, error: BadAnswer) -> None:
        """What the upstream says is no answer."""
        if self._handle is not None:
            self._handle.pool.withdraw(self)
            self._handle.breaker.failed(_monotonic())
        if self.carrier is not None:
            self.carrier.distrust()
        self._failed(replies.bad_upstream(str(error)))

    def _failed(self, error: ApiError) -> None:
        if self._begun:
            if self._handle is not None:
                self._handle.errors += 1
            self._end("error", error)
        else:
            self._try_failed(error)

    def _end_stream(self) -> None:
        answer, reader = self._answer, self._reader
        rest = reader.end()
        if not (reader.is_done or answer.finish or answer.error):
            raise BadAnswer("it ended its answer early")
        if self._handle is not None:
            self._handle.breaker.succeeded()
        if not self._begun:
            self._begun = True
            self._client.begin(self._request, 200, replies.EVENTS)
        self._last = rest + DONE if reader.is_done else rest
        self._end("error" if answer.error else answer.finish or "stop")

    def _pass_error(self) -> None:
        """The upstream's own error is the answer, in its own words where they are JSON."""
        try:
            fine = isinstance(_parsed(self._parts), dict)
        except BadAnswer:
            fine = False
        if not fine or not 400 <= self._status <= 599:
            said = self._status
            self._end("error", replies.bad_upstream(f"it answered with status {said}"))
        else:
            self._end("error")

    # -- the end ----------------------------------------------------------------------------------

    def _end(self, finish: str, error: ApiError | None = None) -> None:
        """Write the end row; what is left of the answer goes out when that is safe."""
        self._is_over = True
        self._finish = finish
        self._error = error
        if error is not None and not self._begun:
            self._status = error.status
        elif self._begun:
            self._status = 200
        elif finish == "cancelled":
            self._status = 0
        now = _monotonic()
        self._seat.cell.count(self._status, finish, now - self._accepted)
        try:
            row = self._end_row(now)
        except Exception:  # a row that cannot be made must not be the end of the request without one
            _log.exception("gateway: the row of request %s cannot be made", self._request.id.decode())
            row = b'{"v":1,"kind":"end",%b,"status":%d,"finish":"error","error":"no row"}' % (
                self._core,
                self._status,
            )
        self._context.log.put(row, self._deliver)

    def _end_row(self, now: float) -> bytes:
        answer, usage = self._answer, self._answer.usage
        accepted = self._accepted
        says: dict[str, Any] = {
            "tries": self._tries,
            "status": self._status,
            "finish": self._finish,
            "queue_ms": milliseconds(self._started - accepted),
            "latency_ms": milliseconds(now - accepted),
            "content": self._content,
        }
        if self._handle is not None:
            says["upstream"] = self._handle.name
            says["sampling"] = self._sampling
        if self._first:
            says["first_ms"] = milliseconds(self._first - accepted)
        if self._ended and self._tries == 1:
            says["gateway_ms"] = milliseconds(self._sent - self._started + now - self._ended)
        if self._error is not None:
            says["error"] = self._error.message
        elif self._finish == "error":
            says["error"] = answer.error or f"the model server answered with status {self._status}"
        if usage.prompt is not None:
            says["prompt_tokens"] = usage.prompt
            says["completion_tokens"] = usage.completion
            says["cached_tokens"] = usage.cached
            says["cost_usd"] = self._spend()
        audit = [] if self._asked is None else [self._asked]
        if answer.guard is not None:
            audit += answer.guard.audit
        if audit:
            says["guardrails"] = audit
        if self._content == "full":
            says["request"] = as_it_came(self._request.body)
            says["response"] = answer.response()
        return b'{"v":1,"kind":"end",%b,%b' % (self._core, _dumps(says)[1:])

    def _spend(self) -> float:
        """Count what the answer took; its price."""
        return self._seat.spend(self._answer.usage)

    def _deliver(self, kept: bool) -> None:
        """The row is as safe as it will be: end the answer."""
        try:
            if not self._is_gone:
                self._answer_client(self._error if kept else replies.log_full())
        finally:
            self._leave()

    def _answer_client(self, error: ApiError | None) -> None:
        client, request = self._client, self._request
        if error is not None:
            if self._begun:
                client.cut(error_event(error.body()))
            else:
                client.refuse(request, error)
        elif self._begun:
            client.end(request, self._last)
        else:
            parts = self._parts
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            client.reply(
                request, self._status, body, content_type=self._reply_type, extra=self._reply_headers
            )

    def _leave(self) -> None:
        context = self._context
        principal = self._request.principal
        usage = self._answer.usage
        if principal is not None and context.access is not None and usage.prompt is not None:
            context.access.charge(principal, usage.prompt + (usage.completion or 0))
        if self._shadow is not None and self._finish in _ANSWERED:
            context.shadow.offer(self._original(self._shadow))
        if self._place:
            context.admission.leave()
        context.leave_epoch(self._plan.epoch)

    def _original(self, seat: Seat) -> Original:
        request = self._request
        return Original(
            of=request.id.decode(),
            endpoint=self._endpoint,
            body=request.body,
            shared=self._shared,
            content=self._content,
            plan=self._plan,
            seat=seat,
        )


def _parsed(parts: list[bytes]) -> Any:
    try:
        return _loads(parts[0] if len(parts) == 1 else b"".join(parts))
    except ValueError as error:
        raise BadAnswer("its answer is not JSON") from error
