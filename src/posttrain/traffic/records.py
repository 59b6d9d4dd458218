"""The rows of the traffic log.

Here: what a row says. Not here: how it is kept (``segments``), indexed (``indexer``) or asked (``query``). A row is one
JSON object with ``v`` (its schema) and ``kind``; it is written once and never changed, and whatever is learned later is
a later row that names the request. Rows may arrive twice, late and out of order: ``id`` makes them one.

Kinds:

- ``begin``: a request was accepted. One with a ``begin`` and no ``end`` was cut off by the death of its worker.
- ``end``: how it ended, one for every accepted request that ended.
- ``shadow``: the unseen answer beside it, named by ``of``.
- ``feedback``: what a user or a business event said of it, named by ``of``.
- ``verdict``: a judge's comparison of a shadow answer with the user's, named by ``of``.

Rows are built as plain dicts in the hot path; the dataclasses are how everybody else reads them. To add a field: a
default here, a column in the index, a golden row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

ROW_SCHEMA = 1

RowKind: TypeAlias = Literal["begin", "end", "shadow", "feedback", "verdict"]
Finish: TypeAlias = Literal[
    "stop", "length", "tool_calls", "content_filter", "error", "cancelled", "shed", "lost"
]
"""How it ended: the model's own reason; ``cancelled`` by the client; ``shed`` by back-pressure; ``lost`` where a worker
died over it (set by the indexer)."""


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request and its answer: a ``begin`` and an ``end``, or a ``shadow``."""

    id: str
    """Of this row: the request's id, which the client was told as ``x-request-id``; a shadow has its own."""
    at_ms: int
    """When it was accepted, milliseconds since 1970 by a clock that never goes back within a worker."""
    worker: str
    epoch: int
    """Of the snapshot that it was answered under, even if another was swapped in meanwhile."""
    model: str
    """The public name that was asked for."""
    lane: str
    """``production``, ``canary`` or ``shadow``."""
    arm: str = ""
    endpoint: str = "chat"
    """``chat`` or ``completions``."""
    of: str | None = None
    """Of a shadow: the request that it stands beside."""
    rollout: str | None = None
    target: str = ""
    upstream: str = ""
    """The server that answered; the last one tried."""
    tries: int = 0
    release: str | None = None
    adapter: str | None = None
    template: str | None = None
    sampling: str | None = None
    """Digest of the sampling parameters in force."""
    tenant: str | None = None
    """Salted hash of the tenant."""
    user: str | None = None
    """Salted hash of the user: what ``log forget`` finds."""
    conversation: str | None = None
    """Salted hash of the conversation."""
    unit: str | None = None
    """What ``assignment.assign`` was given, where that is neither ``user``, ``conversation`` nor ``id`` by the route's
    unit; the exposure check of a rollout draws its bucket again."""
    stream: bool = False
    status: int = 0
    """HTTP status that the client got; 0 while unknown."""
    finish: str | None = None
    error: str | None = None
    """One line, no content."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None
    queue_ms: float | None = None
    """Waited for a place, before anything was sent."""
    first_ms: float | None = None
    """To the first byte of the answer, from acceptance."""
    latency_ms: float | None = None
    """To the last byte of the answer, from acceptance."""
    gateway_ms: float | None = None
    """Of that, spent here and not upstream, where it can be told."""
    slices: tuple[str, ...] = ()
    guardrails: tuple[dict[str, Any], ...] = ()
    """What was scanned, how, and what was found."""
    request: Any = None
    """The body as it came, where content is logged."""
    response: Any = None
    """The message or text as it was sent, where content is logged."""
    content: str = "full"
    """``full``, ``sampled-out`` or ``off``."""


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """What was said of a request, before or after it ended."""

    id: str
    """Given by the client or made from the content; the same id again is the same feedback."""
    of: str
    """The request."""
    at_ms: int
    type: str
    """``thumbs`` (value -1 or 1), ``rating`` (1 to 5), ``comment``, ``better_answer``, ``abandon``, ``incident``, or
    ``event`` (a business event, named by ``name``)."""
    value: float | None = None
    text: str | None = None
    name: str | None = None
    tenant: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """A judge's word on two answers to one request."""

    id: str
    of: str
    """The request."""
    shadow: str
    """The id of the shadow row."""
    at_ms: int
    judge: str
    outcome: Literal["shadow", "production", "tie", "unknown"]
    """Who was better, over both orders; ``tie`` also where the orders disagree; ``unknown`` where the judge failed."""
    flipped: bool = False
    """Whether the two orders disagreed."""
    detail: dict[str, Any] = field(default_factory=dict)
