"""Asking the index: what everybody but the indexer uses.

Here: requests, their feedback, shadows and verdicts, counts. Not here: whether the index has everything (``audit``),
rows as they arrive (``follow``). Requests come in pages, oldest first, so a long answer holds no lock; rows that arrive
while one reads may be in it or not.

To ask by another column: a field of :class:`Where` with the column's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from posttrain.traffic.codec import loads
from posttrain.traffic.columns import FEEDBACK, REQUESTS, VERDICTS, Table, quoted
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.records import FeedbackRow, RequestRow, VerdictRow

By: TypeAlias = Literal[
    "lane", "arm", "model", "rollout", "release", "target", "worker", "finish", "epoch", "tenant"
]

_PAGE = 500
_T = TypeVar("_T", RequestRow, FeedbackRow, VerdictRow)
_JSON = {"slices", "guardrails", "request", "response", "data", "detail"}
_BOOLEAN = {"stream", "flipped"}
_NEEDED = {"str": "", "int": 0}
"""For fields without a default that a row did not give."""
_LIMITS = {"since_ms", "until_ms", "limit", "newest_first"}


@dataclass(frozen=True, slots=True)
class Where:
    """Which requests; what is None is not asked for."""

    since_ms: int | None = None
    """Accepted at this time or later."""
    until_ms: int | None = None
    """Accepted before this time."""
    model: str | None = None
    lane: str | None = None
    arm: str | None = None
    rollout: str | None = None
    user: str | None = None
    """The hash."""
    tenant: str | None = None
    """The hash."""
    conversation: str | None = None
    """The hash."""
    release: str | None = None
    target: str | None = None
    finish: str | None = None
    epoch: int | None = None
    of: str | None = None
    """Shadows of this request."""
    limit: int | None = None
    """At most so many."""
    newest_first: bool = False
    """Which end to begin at."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the requests of one group."""

    key: tuple[Any, ...]
    """Values of the columns that were grouped by."""
    requests: int
    finishes: dict[str, int] = field(default_factory=dict)
    """How they ended; ``open`` those that have not."""
    errors: int = 0
    """``error``, ``lost``, and answers with a status of 500 and more."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    latency_ms: tuple[float, float, float] | None = None
    """Median, 95th and 99th percentile, of those that have one."""
    first_ms: tuple[float, float, float] | None = None
    """The same to the first byte."""


class Pair(NamedTuple):
    """A shadow answer and the user's."""

    shadow: RequestRow
    production: RequestRow


def requests(index: TrafficIndex, where: Where | None = None) -> Iterator[RequestRow]:
    """Requests and shadows in order of time."""
    where = where or Where()
    names = _names(REQUESTS)
    order = "DESC" if where.newest_first else "ASC"
    condition, values = _condition(where)
    left, last = where.limit, None
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        after = "" if last is None else f" AND (at_ms, id) {'<' if where.newest_first else '>'} (?, ?)"
        query = f"SELECT {names} FROM requests WHERE {condition}{after} ORDER BY at_ms {order}, id {order} LIMIT {size}"
        page = _select(index, query, (*values, *(last or ())))
        for found in page:
            yield _record(RequestRow, REQUESTS, found)
        if len(page) < size:
            return
        last = (page[-1][1], page[-1][0])
        left = None if left is None else left - len(page)


def request(index: TrafficIndex, name: str) -> RequestRow | None:
    """One request or shadow."""
    found = _select(index, f"SELECT {_names(REQUESTS)} FROM requests WHERE id = ?", (name,))
    return _record(RequestRow, REQUESTS, found[0]) if found else None


def shadows_of(index: TrafficIndex, name: str) -> list[RequestRow]:
    """The unseen answers beside a request."""
    query = f'SELECT {_names(REQUESTS)} FROM requests WHERE "of" = ? ORDER BY at_ms, id'
    return [_record(RequestRow, REQUESTS, found) for found in _select(index, query, (name,))]


def feedback_of(index: TrafficIndex, name: str) -> list[FeedbackRow]:
    """What was said of a request by the tenant whose request it was, oldest first; nobody else's word is about it."""
    query = (
        f"SELECT {_names(FEEDBACK)} FROM feedback WHERE \"of\" = ? AND COALESCE(tenant, '') ="
        " COALESCE((SELECT tenant FROM requests WHERE id = ?), '') ORDER BY at_ms, id"
    )
    return [_record(FeedbackRow, FEEDBACK, found) for found in _select(index, query, (name, name))]


def feedback(index: TrafficIndex, since_ms: int = 0, until_ms: int | None = None) -> Iterator[FeedbackRow]:
    """All feedback in order of time, also that on requests of another tenant: see :func:`feedback_of`."""
    last: tuple[Any, ...] = (since_ms, "")
    until = "" if until_ms is None else f" AND at_ms < {int(until_ms)}"
    while True:
        query = (
            f"SELECT {_names(FEEDBACK)} FROM feedback WHERE (at_ms, id) > (?, ?){until}"
            f" ORDER BY at_ms, id LIMIT {_PAGE}"
        )
        page = _select(index, query, last)
        for found in page:
            yield _record(FeedbackRow, FEEDBACK, found)
        if len(page) < _PAGE:
            return
        last = (page[-1][list(FEEDBACK.columns).index("at_ms") + 1], page[-1][0])


def verdicts_of(index: TrafficIndex, name: str) -> list[VerdictRow]:
    """Judges' words on the shadows of a request, oldest first."""
    query = f'SELECT {_names(VERDICTS)} FROM verdicts WHERE "of" = ? ORDER BY at_ms, id'
    return [_record(VerdictRow, VERDICTS, found) for found in _select(index, query, (name,))]


def verdicts(index: TrafficIndex, rollout: str) -> list[VerdictRow]:
    """Judges' words on the shadows of a rollout, oldest first."""
    names = ", ".join(f"v.{quoted(column)}" for column in ("id", *VERDICTS.columns))
    query = (
        f"SELECT {names} FROM verdicts v JOIN requests s ON s.id = v.shadow"
        " WHERE s.rollout = ? ORDER BY v.at_ms, v.id"
    )
    return [_record(VerdictRow, VERDICTS, found) for found in _select(index, query, (rollout,))]


def pairs(index: TrafficIndex, rollout: str, *, since_ms: int | None = None) -> Iterator[Pair]:
    """Shadows of a rollout with the answers that users got; those whose request is not there (yet) are left out."""
    for shadow in requests(index, Where(since_ms=since_ms, lane="shadow", rollout=rollout)):
        production = None if shadow.of is None else request(index, shadow.of)
        if production is not None:
            yield Pair(shadow, production)


def counts(index: TrafficIndex, by: Sequence[By] = (), where: Where | None = None) -> list[Counts]:
    """Requests by the values of columns, the most first."""
    condition, values = _condition(where or Where())
    names = ", ".join(
        [*map(quoted, by), "finish", "status", "prompt_tokens", "completion_tokens", "cost_usd"]
    )
    query = f"SELECT {names}, latency_ms, first_ms FROM requests WHERE {condition}"
    groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    with index.database.reading() as connection:
        for row in connection.exec_driver_sql(index.sql(query), values):
            groups.setdefault(tuple(row[: len(by)]), []).append(tuple(row[len(by) :]))
    found = [_counted(key, rows) for key, rows in groups.items()]
    return sorted(found, key=lambda item: (-item.requests, str(item.key)))


def _counted(key: tuple[Any, ...], rows: list[tuple[Any, ...]]) -> Counts:
    return Counts(
        key=key,
        requests=len(rows),
        finishes=dict(Counter(row[0] or "open" for row in rows)),
        errors=sum(row[0] in {"error", "lost"} or (row[1] or 0) >= 500 for row in rows),
        prompt_tokens=sum(row[2] or 0 for row in rows),
        completion_tokens=sum(row[3] or 0 for row in rows),
        cost_usd=sum(row[4] or 0.0 for row in rows),
        latency_ms=_percentiles([row[5] for row in rows if row[5] is not None]),
        first_ms=_percentiles([row[6] for row in rows if row[6] is not None]),
    )


def _percentiles(values: list[float]) -> tuple[float, float, float] | None:
    """By nearest rank, so that each is a value that was seen."""
    if not values:
        return None
    values.sort()
    p50, p95, p99 = (values[max(0, -(-len(values) * share // 100) - 1)] for share in (50, 95, 99))
    return (p50, p95, p99)


def _condition(where: Where) -> tuple[str, tuple[Any, ...]]:
    parts, values = ["at_ms IS NOT NULL"], []
    for text, value in (("at_ms >= ?", where.since_ms), ("at_ms < ?", where.until_ms)):
        if value is not None:
            parts.append(text)
            values.append(value)
    for item in fields(where):
        value = getattr(where, item.name)
        if item.name not in _LIMITS and value is not None:
            parts.append(f"{quoted(item.name)} = ?")
            values.append(value)
    return " AND ".join(parts), tuple(values)


def _names(table: Table) -> str:
    return ", ".join(map(quoted, ("id", *table.columns)))


def _select(index: TrafficIndex, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    with index.database.reading() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(index.sql(query), values)]


def _record(kind: type[_T], table: Table, found: tuple[Any, ...]) -> _T:
    columns = dict(zip(("id", *table.columns), found, strict=True))
    said: dict[str, Any] = {}
    for item in fields(kind):
        value = columns[item.name]
        if value is None:
            if item.default is MISSING and item.default_factory is MISSING:
                said[item.name] = _NEEDED.get(str(item.type), "")
            continue
        if item.name in _JSON:
            value = loads(value)
            value = (
                tuple(value) if item.name in {"slices", "guardrails"} and isinstance(value, list) else value
            )
        said[item.name] = bool(value) if item.name in _BOOLEAN else value
    return kind(**said)
