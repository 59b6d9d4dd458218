"""The index of the traffic log: what the segments say, where it can be asked.

Here: opening it, putting rows and cursors in with one transaction, what was concluded (``lost``). Not here: reading
segments (``indexer``), asking (``query``). It runs on SQLite (``index.sqlite`` beside the segments) and PostgreSQL,
with the same tables. Whatever is in it can be made again from the segments and the history: it is no truth of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from posttrain.artifacts.database import Database, Schema
from posttrain.core.atomic import make_folder, write_atomic
from posttrain.traffic.columns import ENDED, TABLES, Entry, merged, upsert_sql
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.segment_format import SegmentName

INDEX_FILE = "index.sqlite"
_SINK_FILE = "sink"

_SCHEMA = Schema(
    name="index of the traffic log",
    setting="traffic.sink",
    migrations="posttrain.traffic.migrations",
    table="traffic_migrations",
    rebuild="start the indexer: it reads the segments and the history again",
    page_bytes=16384,
)

metadata = sa.MetaData()
cursors = sa.Table(
    "cursors",
    metadata,
    sa.Column("segment", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("writer", sa.Text, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("finished", sa.BigInteger, nullable=False),
    sa.Column("accepted", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("bad_rows", sa.BigInteger, nullable=False),
    sa.Column("corrupt_bytes", sa.BigInteger, nullable=False),
    sa.Column("torn_bytes", sa.BigInteger, nullable=False),
    sa.Column("first_ms", sa.BigInteger),
    sa.Column("last_ms", sa.BigInteger),
    sa.Column("archived", sa.BigInteger, nullable=False),
)
parts = sa.Table(
    "parts",
    metadata,
    sa.Column("path", sa.Text, primary_key=True),
    sa.Column("day", sa.Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("first_ms", sa.BigInteger, nullable=False),
    sa.Column("last_ms", sa.BigInteger, nullable=False),
    sa.Column("made_at_ms", sa.BigInteger, nullable=False),
)
about = sa.Table(
    "about",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a segment was read, and what was in it so far."""

    segment: str
    owner: str
    sequence: int
    writer: str
    offset: int = 0
    finished: bool = False
    """Whether nothing can follow: it is sealed, or its writer is gone."""
    accepted: int = 0
    """``begin`` rows."""
    rows: int = 0
    bad_rows: int = 0
    """Records that are no rows of ours."""
    corrupt_bytes: int = 0
    torn_bytes: int = 0
    """What a dead writer left unfinished at the end."""
    first_ms: int | None = None
    """Of the earliest row."""
    last_ms: int | None = None
    archived: bool = False
    """Whether its rows are in the history, so that the file may be gone."""

    @property
    def name(self) -> SegmentName:
        """The file's name."""
        return SegmentName(self.owner, self.sequence)


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the history."""

    path: str
    """Below the history folder."""
    day: str
    rows: int
    size_bytes: int
    sha256: str
    first_ms: int
    last_ms: int
    made_at_ms: int


@dataclass(slots=True)
class Batch:
    """What one transaction puts in."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    """By table and id: rows of one id are one before they reach the database."""
    cursors: dict[str, tuple[Cursor | None, Cursor]] = field(default_factory=dict)
    """By segment: where it must stand in the index now, and where it will."""
    rows: int = 0
    """Records behind the entries."""
    size_bytes: int = 0

    def add(self, entry: Entry) -> None:
        """Put a row in."""
        key = (entry.table.name, entry.id)
        old = self.entries.get(key)
        self.entries[key] = entry if old is None else merged(old, entry)

    def move(self, before: Cursor | None, after: Cursor) -> None:
        """Move a segment's cursor."""
        first = self.cursors[after.segment][0] if after.segment in self.cursors else before
        self.cursors[after.segment] = (first, after)


class Overtaken(Exception):
    """The cursors are not where this batch began; nothing was written."""


class TrafficIndex:
    """An open index. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.placeholder = "?" if database.dialect == "sqlite" else "%s"
        self._upserts = {table.name: upsert_sql(table, self.placeholder) for table in TABLES}

    @classmethod
    def open(cls, folder: Path, url: str | None = None) -> TrafficIndex:
        """The index of a traffic folder: SQLite in it, or what ``url`` names. Made or brought up to date as needed."""
        if url is None:
            make_folder(folder)
            url = sa.URL.create("sqlite", database=str(folder / INDEX_FILE)).render_as_string()
        return cls(Database(url, _SCHEMA))

    @contextlib.contextmanager
    def held_open(self) -> Iterator[None]:
        """Keep one connection while the block runs: SQLite does its housekeeping when the last one closes."""
        with contextlib.closing(self.database.engine.raw_connection()):
            yield

    def belong_to(self, log: str) -> None:
        """Be the index of this log and no other. Raises TrafficLogError where it already is another's."""
        with self.database.writing(cursors) as connection:
            found = connection.scalar(sa.select(about.c.value).where(about.c.key == "log"))
            if found is None:
                connection.execute(about.insert().values(key="log", value=log))
            elif found != log:
                raise TrafficLogError(
                    f"the index {self.database.shown()} is of another traffic log",
                    hint="give each traffic folder a database or a schema of its own: traffic.sink",
                )

    def put(self, batch: Batch, *, allowed: Callable[[], Callable[[Entry], bool]] | None = None) -> None:
        """Write rows and cursors, all or nothing. Raises Overtaken.

        ``allowed`` is called once nobody else can write, and says of each row whether it may be in the index: what was
        erased meanwhile does not return.
        """
        with self.database.writing(cursors) as connection:
            self._check(connection, batch)
            entries = list(batch.entries.values())
            if allowed is not None:
                entries = list(filter(allowed(), entries))
            for table in TABLES:
                values = [entry.parameters() for entry in entries if entry.table is table]
                if values:
                    connection.exec_driver_sql(self._upserts[table.name], values)
            for _, after in batch.cursors.values():
                _save_cursor(connection, after)

    def cursors(self) -> dict[str, Cursor]:
        """How far every segment was read, by its name."""
        with self.database.reading() as connection:
            return {row.segment: _cursor(row) for row in connection.execute(sa.select(cursors))}

    def call_lost(self, *, except_of: Collection[str]) -> int:
        """Say of every request without an end that it is lost, but for these writers'; how many there were."""
        names = tuple(sorted(except_of))
        slots = ", ".join(self.placeholder for _ in names)
        where = f'"rank" < {ENDED} AND finish IS NULL' + (f" AND writer NOT IN ({slots})" if names else "")
        with self.database.reading() as connection:
            if not connection.exec_driver_sql(f"SELECT 1 FROM requests WHERE {where} LIMIT 1", names).all():
                return 0
        with self.database.writing(cursors) as connection:
            return connection.exec_driver_sql(
                f"UPDATE requests SET finish = 'lost' WHERE {where}", names
            ).rowcount

    def parts(self) -> list[Part]:
        """The files of the history."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(parts).order_by(parts.c.path))
            return [Part(**row._mapping) for row in rows]

    def change_parts(
        self, *, add: Sequence[Part] = (), drop: Sequence[str] = (), archive: Sequence[str] = ()
    ) -> None:
        """Note files of the history, forget files, and note segments whose rows are in the history."""
        with self.database.writing(cursors) as connection:
            for path in [*drop, *(part.path for part in add)]:
                connection.execute(parts.delete().where(parts.c.path == path))
            for part in add:
                connection.execute(
                    parts.insert().values(**{name: getattr(part, name) for name in part.__slots__})
                )
            for segment in archive:
                connection.execute(cursors.update().where(cursors.c.segment == segment).values(archived=1))

    def drop_segments(self, segments: Sequence[str]) -> None:
        """Forget the cursors of segments that were removed with their rows."""
        with self.database.writing(cursors) as connection:
            for segment in segments:
                connection.execute(cursors.delete().where(cursors.c.segment == segment))

    def scalar(self, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
        """The one value that a query answers; ``?`` stands for a parameter."""
        with self.database.reading() as connection:
            return connection.exec_driver_sql(self.sql(sql), parameters).scalar()

    def sql(self, text: str) -> str:
        """A query with ``?`` for its parameters, as this database wants it."""
        return text if self.placeholder == "?" else text.replace("%", "%%").replace("?", "%s")

    def _check(self, connection: sa.Connection, batch: Batch) -> None:
        if not batch.cursors:
            return
        chosen = sa.select(cursors).where(cursors.c.segment.in_(list(batch.cursors)))
        now = {row.segment: _cursor(row) for row in connection.execute(chosen)}
        if any(now.get(segment) != before for segment, (before, _) in batch.cursors.items()):
            raise Overtaken


def note_sink(folder: Path, index: TrafficIndex) -> None:
    """Note beside the segments which database their index is in, without its password."""
    shown = index.database.shown()
    path = folder / _SINK_FILE
    if index.database.dialect == "sqlite" and Path(shown).absolute() == (folder / INDEX_FILE).absolute():
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, f"{shown}\n".encode())


def known_sink(folder: Path) -> str | None:
    """Where the index of a folder is, if it is not in the folder."""
    try:
        return (folder / _SINK_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _cursor(row: Any) -> Cursor:
    fields: Mapping[str, Any] = row._mapping
    return Cursor(**{**fields, "finished": bool(row.finished), "archived": bool(row.archived)})


def _save_cursor(connection: sa.Connection, cursor: Cursor) -> None:
    values = {name: getattr(cursor, name) for name in Cursor.__slots__}
    values |= {"finished": int(cursor.finished), "archived": int(cursor.archived)}
    connection.execute(cursors.delete().where(cursors.c.segment == cursor.segment))
    connection.execute(cursors.insert().values(**values))
