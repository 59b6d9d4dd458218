"""Rows as columns: which there are, and how a JSON row becomes one.

Here: pure functions. Not here: the database (``index``), the records that others read (``records``, ``query``).

A request's row in the index is made of its ``begin`` and its ``end``, which come in any order and more than once. Each
row has a *rank*: an end above a begin, and among rows of a kind the one with the larger checksum, so that the order of
arrival decides nothing. Of two rows the higher rank's fields count, and what it does not say is taken from the other.

To add a field: a column here, one in the next migration, the field in ``records``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

from posttrain.traffic.codec import dumps, loads_row

ENDED = 1 << 32
"""Ranks from here on are of rows that say how a request ended."""

_MAX_INTEGER = (1 << 63) - 1
_Convert: TypeAlias = Callable[[Any], Any]


def _text(value: Any) -> str | None:
    if type(value) is not str:
        return None if value is None else dumps(value)
    if value.isascii() and "\0" not in value:
        return value
    # PostgreSQL takes no NUL, and neither database half of a character.
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _integer(value: Any) -> int | None:
    if type(value) is int:
        return value if -_MAX_INTEGER <= value <= _MAX_INTEGER else None
    if type(value) is bool:
        return int(value)
    return int(value) if type(value) is float and abs(value) < _MAX_INTEGER else None


def _number(value: Any) -> float | None:
    if type(value) is float:
        return value
    return None if (number := _integer(value)) is None else float(number)


def _json(value: Any) -> str | None:
    return None if value is None else dumps(value)


class Table(NamedTuple):
    """One table of rows."""

    name: str
    columns: Mapping[str, _Convert]
    """Of the row itself, in order; ``id``, ``rank`` and ``writer`` stand before them."""

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Every column, in order."""
        return ("id", "rank", "writer", *self.columns)


REQUESTS = Table(
    "requests",
    {
        "at_ms": _integer,
        "worker": _text,
        "epoch": _integer,
        "model": _text,
        "lane": _text,
        "arm": _text,
        "endpoint": _text,
        "of": _text,
        "rollout": _text,
        "target": _text,
        "upstream": _text,
        "tries": _integer,
        "release": _text,
        "adapter": _text,
        "template": _text,
        "sampling": _text,
        "tenant": _text,
        "user": _text,
        "conversation": _text,
        "unit": _text,
        "stream": _integer,
        "status": _integer,
        "finish": _text,
        "error": _text,
        "prompt_tokens": _integer,
        "completion_tokens": _integer,
        "cached_tokens": _integer,
        "cost_usd": _number,
        "queue_ms": _number,
        "first_ms": _number,
        "latency_ms": _number,
        "gateway_ms": _number,
        "slices": _json,
        "guardrails": _json,
        "content": _text,
        "request": _json,
        "response": _json,
    },
)
FEEDBACK = Table(
    "feedback",
    {
        "of": _text,
        "at_ms": _integer,
        "type": _text,
        "value": _number,
        "text": _text,
        "name": _text,
        "tenant": _text,
        "data": _json,
    },
)
VERDICTS = Table(
    "verdicts",
    {
        "of": _text,
        "shadow": _text,
        "at_ms": _integer,
        "judge": _text,
        "outcome": _text,
        "flipped": _integer,
        "detail": _json,
    },
)
TABLES = (REQUESTS, FEEDBACK, VERDICTS)
TABLE_OF = {
    "begin": REQUESTS,
    "end": REQUESTS,
    "shadow": REQUESTS,
    "feedback": FEEDBACK,
    "verdict": VERDICTS,
}
"""By the kind of a row."""


class Entry(NamedTuple):
    """A row for a table."""

    table: Table
    id: str
    rank: int
    writer: str
    values: dict[str, Any]
    """By column, only what the row says."""
    accepts: bool = False
    """Whether it is a ``begin``."""

    def parameters(self) -> tuple[Any, ...]:
        """Values of ``table.all_columns``."""
        return (self.id, self.rank, self.writer, *map(self.values.get, self.table.columns))


def entry_of(payload: bytes, writer: str) -> Entry | None:
    """What a row says to the index; None where it is none of ours: no object, no id, no kind that is known."""
    try:
        row, plain = loads_row(payload)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    kind, name = row.get("kind"), _text(row.get("id"))
    table = TABLE_OF.get(kind) if isinstance(kind, str) else None
    if table is None or not name:
        return None
    find, values = table.columns.get, {}
    for key, value in row.items():
        convert = find(key)
        if convert is None or value is None:
            continue
        if plain and convert is _text and type(value) is str:
            values[key] = value  # most of what there is, without a call
        elif (found := convert(value)) is not None:
            values[key] = found
    checksum = crc32(payload)
    return Entry(
        table, name, checksum if kind == "begin" else ENDED + checksum, writer, values, kind == "begin"
    )


def is_blank(payload: bytes) -> bool:
    """Whether this is what remains of an erased row."""
    return payload.strip(b" {}") == b""


def merged(first: Entry, second: Entry) -> Entry:
    """Two rows of one id as one; the order of the two does not matter."""
    low, high = (first, second) if second.rank > first.rank else (second, first)
    return high._replace(values={**low.values, **high.values})


def quoted(column: str) -> str:
    """A column's name in SQL: some of ours are words of the language."""
    return f'"{column}"'


def upsert_sql(table: Table, placeholder: str) -> str:
    """Puts an entry into its table, merging it with what is there as :func:`merged` does."""
    names = ", ".join(quoted(column) for column in table.all_columns)
    slots = ", ".join(placeholder for _ in table.all_columns)
    wins = f'excluded."rank" > {table.name}."rank"'
    sets = [
        f'"rank" = CASE WHEN {wins} THEN excluded."rank" ELSE {table.name}."rank" END',
        f"writer = CASE WHEN {wins} THEN excluded.writer ELSE {table.name}.writer END",
    ]
    for column in map(quoted, table.columns):
        old, new = f"{table.name}.{column}", f"excluded.{column}"
        # "lost" is what the indexer concluded, not what a row said.
        said = f"NULLIF({old}, 'lost')" if column == '"finish"' else old
        sets.append(
            f"{column} = CASE WHEN {wins} THEN COALESCE({new}, {said}) ELSE COALESCE({old}, {new}) END"
        )
    return f"INSERT INTO {table.name} ({names}) VALUES ({slots}) ON CONFLICT (id) DO UPDATE SET {', '.join(sets)}"
