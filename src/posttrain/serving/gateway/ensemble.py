"""A request that several targets answer together.

Here: asking them all at once, and handing the one answer made of theirs to the life of every other request. Not here:
how answers become one (``router.aggregate``). The answer enters ``Exchange`` where an upstream's would, so that the
scan, the row and the order of last bytes are those of every answer. A client that streams gets it in one piece, when
it is made.

One request takes one place and writes one row, however many are called: the row's target is whose text it is, its
tokens and cost are those of all calls, as are those that budgets are charged with. The ``usage`` that the client is
told is that of the text alone.

A call goes to a target's upstreams in their order, each at most once, through their pools and breakers; there is no
second round, since the other targets' answers are there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import orjson

from posttrain.core.errors import ServingError
from posttrain.routing.aggregate import Aggregated, aggregate
from posttrain.serving.gateway import replies
from posttrain.serving.gateway.context import Context
from posttrain.serving.gateway.events import (
    DONE,
    UPSTREAM_PATHS,
    Answer,
    BadAnswer,
    Endpoint,
    EventReader,
    Usage,
)
from posttrain.serving.gateway.exchange import NOTHING_YET, Exchange
from posttrain.serving.gateway.identity import Asker
from posttrain.serving.gateway.plan import Seat, Seating, Team, sampling_digest
from posttrain.serving.gateway.replies import ApiError
from posttrain.serving.gateway.server import Request, ServerConnection
from posttrain.serving.gateway.upstream import Call, Failure, UpstreamHandle

_log = logging.getLogger(__name__)
_OURS = frozenset({"stream", "stream_options"})
"""Members of a body that are about how the client gets the answer."""


class Ensemble(Exchange):
    """A request that was accepted, for several targets."""

    __slots__ = ("_asks", "_task", "_team")

    def __init__(self, context: Context, client: ServerConnection, request: Request, endpoint: Any) -> None:
        super().__init__(context, client, request, endpoint)
        self._asks: list[Ask] = []
        self._task: asyncio.Task[None] | None = None

    def start(self, body: dict[str, Any], asker: Asker, seating: Seating) -> None:
        """See :class:`~posttrain.serving.gateway.exchange.Exchange`."""
        assert seating.team is not None, "who has no team is an Exchange"
        self._team: Team = seating.team
        super().start(body, asker, seating)

    # -- towards upstreams ------------------------------------------------------------------------

    def _prepare(self) -> None:
        options = self._body.get("stream_options") if self._stream else None
        self._usage_asked = isinstance(options, dict) and options.get("include_usage") is True
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        other = "messages" if self._endpoint == "completions" else "prompt"
        request = {name: value for name, value in self._body.items() if name not in _OURS and name != other}
        try:
            try:
                outcome = await aggregate(self._ask, self._team.config, request)
            except ServingError:
                self._task = None
                self._too_few()
            else:
                self._task = None
                self._give(outcome)
        except Exception:  # a client must not wait for ever for what a fault of ours has ended
            self._task = None
            self.fault()

    async def _ask(self, target: str, request: Mapping[str, Any]) -> str:
        ask = Ask(self._context, target, self._team.seats[target], self._request)
        self._asks.append(ask)
        return await ask.text(request, self._team.config.seconds)

    def _too_few(self) -> None:
        """What the client is told: the targets' own word where they all refuse the request, else that we failed."""
        asks = self._asks
        if all(400 <= ask.status < 500 for ask in asks):
            self._status, self._parts = asks[0].status, asks[0].parts
            self._reply_headers = asks[0].extra
            self._pass_error()
        elif not any(ask.tries for ask in asks):
            self._end("error", replies.no_upstream())
        elif all(ask.was_slow for ask in asks):
            self._end("error", replies.slow_upstream())
        else:
            self._end("error", replies.bad_upstream("too few of its models answered"))

    # -- the answer -------------------------------------------------------------------------------

    def _give(self, outcome: Aggregated) -> None:
        """Let the answer in as if an upstream gave it."""
        # The last of the winner's calls: a judge or writer may be one of those that answered, too.
        ask = [ask for ask in self._asks if ask.name == outcome.target and ask.said == outcome.text][-1]
        self._seat, self._handle, self._sampling = ask.seat, ask.handle, ask.sampling
        self._tag = f"aggregate:{outcome.by}"
        self._core = self._members()
        self._context.metrics.routed[ask.seat.cell.key.route, outcome.by, ask.seat.target.name] += 1
        self._answer = self._context.answer(self._endpoint, self._body, stream=self._stream)
        self._reader = EventReader(self._answer, usage_asked=self._usage_asked)
        self._size = 0
        data = self._written(ask)
        self.upstream_begins(200, {b"content-type": replies.EVENTS if self._stream else replies.JSON})
        self.upstream_sends(data)
        if not self._is_over:
            self.upstream_ends()

    def _written(self, ask: Ask) -> bytes:
        """The answer in the form that was asked for."""
        chat, text, usage = self._endpoint == "chat", ask.said, _usage_json(ask.answer.usage)
        kind = "chat.completion" if chat else "text_completion"
        frame = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self._request.id.decode()}",
            "object": f"{kind}.chunk" if chat and self._stream else kind,
            "created": int(time.time()),
            "model": ask.seat.cell.key.route,
        }
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = ask.answer.finish or "stop"
        if not self._stream:
            said: dict[str, Any] = {"message": message} if chat else {"text": text}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
            return orjson.dumps({**frame, "choices": [choice], **({"usage": usage} if usage else {})})
        said = {"delta": message} if chat else {"text": text}
        nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        events: list[dict[str, Any]] = [
            {**frame, "choices": [{"index": 0, **said, "finish_reason": None}]},
            {**frame, "choices": [{"index": 0, **nothing, "finish_reason": finish}]},
        ]
        if usage:
            events.append({**frame, "choices": [], "usage": usage})
        return b"".join([b"data: %b\n\n" % orjson.dumps(event) for event in events]) + DONE

    def _try_failed(self, failure: ApiError | None) -> None:
        """There is nobody left to ask."""
        self._end("error", failure or replies.bad_upstream("it ended its answer early"))

    # -- the end ----------------------------------------------------------------------------------

    def _end(self, finish: str, error: ApiError | None = None) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for ask in self._asks:
            ask.withdraw()
        self._tries = sum(ask.tries for ask in self._asks)
        self._ended = 0.0  # what several calls took cannot be told from what the gateway did
        if self._asks:
            if self._answer is NOTHING_YET:
                self._answer = Answer(self._endpoint, 0)
            self._answer.usage = _sum([ask.answer.usage for ask in self._asks])
        super()._end(finish, error)

    def _spend(self) -> float:
        return sum(ask.seat.spend(ask.answer.usage) for ask in self._asks)


class Ask(Call):
    """One target's answer."""

    __slots__ = (
        "_bytes",
        "_context",
        "_done",
        "_left",
        "_path",
        "_request",
        "answer",
        "extra",
        "handle",
        "name",
        "parts",
        "said",
        "sampling",
        "seat",
        "size",
        "status",
        "tries",
        "was_slow",
    )

    def __init__(self, context: Context, name: str, seat: Seat, request: Request) -> None:
        super().__init__()
        self._context = context
        self._request = request
        self.name = name
        self.seat = seat
        self.handle: UpstreamHandle | None = None
        """Who was called last."""
        self._left = iter(seat.handles)
        self.tries = 0
        self.status = 0
        """Of the last answer; 0: none."""
        self.extra = b""
        """Header lines of the last answer for the client."""
        self.parts: list[bytes] = []
        self.size = 0
        self.answer = Answer("chat", 0)
        self.said: str | None = None
        """The text, once it is there."""
        self.sampling: str | None = None
        self.was_slow = False

    async def text(self, request: Mapping[str, Any], seconds: float) -> str:
        """Call; the text of the answer. Raises ServingError or TimeoutError where there is none."""
        body = dict(request)
        self.seat.fill(body)
        self.sampling = sampling_digest(body)
        endpoint: Endpoint = "chat" if "messages" in body else "completions"
        self._path = UPSTREAM_PATHS[endpoint]
        self._bytes = orjson.dumps(body)
        self.answer = Answer(endpoint, self._context.limits.max_answer_bytes)
        self._done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._call_next()
        try:
            async with asyncio.timeout(seconds):
                return await self._done
        except TimeoutError:
            self.was_slow = True
            raise
        finally:
            self.withdraw()

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        if self.handle is not None:
            self.handle.pool.withdraw(self)

    def _call_next(self) -> None:
        now = time.monotonic()
        for handle in self._left:
            if self.tries >= self._context.retries.tries:
                break
            if handle.breaker.allows(now):
                self._call(handle, now)
                return
        self._fail("no upstream of it answered")

    def _call(self, handle: UpstreamHandle, now: float) -> None:
        self.handle = handle
        self.tries += 1
        self.status, self.size, self.parts, self.extra = 0, 0, [], b""
        self.is_repeat = self.was_slow = False
        self.call_deadline = now + handle.pool.first_byte_seconds
        traced = self._request.headers.get(b"traceparent")
        extra = b"traceparent: %b\r\n" % traced if traced else b""
        self.payload = handle.payload(self._path, self._request.id, self._bytes, extra)
        handle.pool.submit(self)

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(ServingError(why))

    def upstream_begins(self, status: int, headers: dict[bytes, bytes]) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        self.status = status
        if b"retry-after" in headers:
            self.extra = b"retry-after: %b\r\n" % headers[b"retry-after"]

    def upstream_sends(self, data: bytes) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        self.size += len(data)
        if self.size <= self.answer.limit:
            self.parts.append(data)
        elif not self._done.done():
            self.withdraw()
            self._bad()

    def upstream_ends(self) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        handle, status = self.handle, self.status
        if self._done.done() or handle is None:
            return
        if status == 200:
            try:
                self.answer.take_whole(orjson.loads(b"".join(self.parts)))
            except (ValueError, BadAnswer):
                self._bad()
                return
        if status >= 500:
            handle.breaker.failed(time.monotonic())
        else:
            handle.breaker.succeeded()
        if status == 200:
            self._take()
        elif status in self._context.retries.statuses:
            handle.errors += 1
            self._call_next()
        else:
            self._fail(f"it answered with status {status}")

    def _take(self) -> None:
        said = self.answer.choices.get(0)
        text = said.get("content") if isinstance(said, dict) else said
        if not isinstance(text, str) or not text.strip() or self.answer.finish == "error":
            self._fail("its answer has no text")
            return
        self.said = text
        self._done.set_result(text)

    def _bad(self) -> None:
        """What the upstream says is no answer."""
        if self.carrier is not None:
            self.carrier.distrust()
        self._failed()

    def _failed(self) -> None:
        self.status = 0
        if self.handle is not None:
            self.handle.breaker.failed(time.monotonic())
            self.handle.errors += 1
        self._call_next()

    def upstream_fails(self, failure: Failure) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        if self._done.done():
            return
        slow = failure == "slow"
        self._failed()
        if self._done.done():
            self.was_slow = slow

    def upstream_faults(self) -> None:
        """See :class:`~posttrain.serving.gateway.upstream.Call`."""
        _log.exception("gateway: a call of request %s met a fault of ours", self._request.id.decode())
        self._fail("a fault of the gateway")


def _usage_json(usage: Usage) -> dict[str, Any] | None:
    if usage.prompt is None:
        return None
    completion = usage.completion or 0
    says: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": completion,
        "total_tokens": usage.prompt + completion,
    }
    if usage.cached is not None:
        says["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    return says


def _sum(usages: list[Usage]) -> Usage:
    """Of all that were told; nothing where none was."""
    total = Usage()
    for name in ("prompt", "completion", "cached"):
        counts = [count for usage in usages if (count := getattr(usage, name)) is not None]
        setattr(total, name, sum(counts) if counts else None)
    return total
