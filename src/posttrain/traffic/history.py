"""The history: old segments as Parquet, one folder a day.

Here: writing, checking and reading it. Not here: removing from it (``erasure``, ``retention``). A file holds the rows
as they came, byte for byte (column ``row``), so that the index can be made from it as from the segments, and beside
them the columns that one asks by (:func:`schema`), for DuckDB and whatever else reads Parquet.

A segment is moved when it is finished, older than was asked for, and read by the index to its end; the newest segment
of an owner stays, because the next one's number follows from it. Order: write, sync, read back and compare, note in the
index, and only then remove the segment: a kill in between leaves rows twice, which is harmless, never not at all. What
in a segment is no row of ours (``bad_rows`` of its cursor) is not moved.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain.core.atomic import make_folder, storage_errors, sync_file, sync_folder, unique_name
from posttrain.core.canonical import digest_file
from posttrain.core.errors import MissingDependencyError
from posttrain.traffic.codec import loads
from posttrain.traffic.columns import Entry, entry_of
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.folder_lock import maintenance
from posttrain.traffic.index import Batch, Cursor, Part, TrafficIndex
from posttrain.traffic.removals import Removals
from posttrain.traffic.segment_format import read_segment

if TYPE_CHECKING:
    import pyarrow as pa

HISTORY_FOLDER = "history"
_TEXT = (
    "kind", "id", "of", "worker", "model", "lane", "arm", "rollout", "release", "tenant", "user", "conversation",
    "finish", "type",
)  # fmt: skip
_INTEGERS = ("at_ms", "epoch", "status", "prompt_tokens", "completion_tokens")
_NUMBERS = ("cost_usd", "first_ms", "latency_ms", "value")
_RESTORE_ROWS = 2000
_PASS_BYTES = 128 << 20
"""Of segments that are in memory at once."""
_UNKNOWN_DAY = "1970-01-01"


class StoredRow(NamedTuple):
    """A row as it came, and who wrote it."""

    writer: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Archived:
    """What one pass moved."""

    segments: int = 0
    rows: int = 0
    parts: tuple[str, ...] = ()
    freed_bytes: int = 0


def schema() -> pa.Schema:
    """The columns of a file: ``writer`` and ``row`` are the truth, the others are out of ``row``, for asking."""
    pa, _ = _arrow()
    return pa.schema(
        [
            pa.field("writer", pa.string(), nullable=False),
            pa.field("row", pa.binary(), nullable=False),
            *(pa.field(name, pa.string()) for name in _TEXT),
            *(pa.field(name, pa.int64()) for name in _INTEGERS),
            *(pa.field(name, pa.float64()) for name in _NUMBERS),
        ]
    )


def archive(
    folder: Path, index: TrafficIndex, *, older_than_seconds: float, now_ms: int | None = None
) -> Archived:
    """Move finished segments whose youngest row is older than this to Parquet. Raises StorageFullError."""
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    total = Archived()
    with maintenance(folder):
        removals = Removals.load(folder)
        _remove_archived(folder, index.cursors())
        while some := _movable(folder, index.cursors(), now - int(older_than_seconds * 1000)):
            made = _write_segments(folder, some, removals)
            index.change_parts(add=made, archive=[cursor.segment for cursor in some])
            freed = _remove_archived(folder, index.cursors())
            total = Archived(
                total.segments + len(some),
                total.rows + sum(part.rows for part in made),
                total.parts + tuple(part.path for part in made),
                total.freed_bytes + freed,
            )
    return total


def _write_segments(folder: Path, segments: list[Cursor], removals: Removals) -> list[Part]:
    by_day: dict[str, list[StoredRow]] = {}
    for cursor in segments:
        for row in read_segment(folder / cursor.segment):
            stored = StoredRow(cursor.writer, row.payload)
            entry = entry_of(stored.payload, stored.writer)
            if entry is not None and removals.keeps(entry):
                by_day.setdefault(_day(entry), []).append(stored)
    # The same segments give the same names: a pass that was killed is done again over its own files.
    name = hashlib.sha256("\n".join(cursor.segment for cursor in segments).encode()).hexdigest()[:16]
    return [
        write_part(folder, f"day={day}/part-{name}.parquet", rows) for day, rows in sorted(by_day.items())
    ]


def write_part(folder: Path, path: str, rows: list[StoredRow]) -> Part:
    """Write one file of the history, read it back, and say what it is; it has its name once it is on the disk."""
    pa, parquet = _arrow()
    target = folder / HISTORY_FOLDER / path
    make_folder(target.parent)
    values = [_columns(row) for row in rows]
    table = pa.Table.from_pylist(values, schema=schema())
    temporary = target.parent / f".{unique_name()}.part"
    with storage_errors(folder):
        try:
            parquet.write_table(table, temporary, compression="zstd")
            sync_file(temporary)
            if list(_read(temporary)) != rows:
                raise TrafficLogError(f"{path} does not read back as it was written; no segment was removed")
            times = [value["at_ms"] for value in values if value["at_ms"] is not None]
            part = Part(
                path=path,
                day=target.parent.name.removeprefix("day="),
                rows=len(rows),
                size_bytes=temporary.stat().st_size,
                sha256=digest_file(temporary),
                first_ms=min(times, default=0),
                last_ms=max(times, default=0),
                made_at_ms=time.time_ns() // 1_000_000,
            )
            temporary.chmod(0o600)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return part


def read_part(folder: Path, path: str) -> Iterator[StoredRow]:
    """The rows of one file. Raises TrafficLogError where it is damaged."""
    yield from _read(folder / HISTORY_FOLDER / path)


def part_paths(folder: Path) -> list[str]:
    """The files that are there, by name."""
    root = folder / HISTORY_FOLDER
    return sorted(str(path.relative_to(root)) for path in root.glob("day=*/part-*.parquet"))


def verify_parts(folder: Path, index: TrafficIndex) -> list[str]:
    """What is wrong with the history: files that are missing, changed, or not noted."""
    noted = {part.path: part for part in index.parts()}
    there = set(part_paths(folder))
    problems = [f"history/{path} is missing" for path in sorted(noted.keys() - there)]
    problems += [f"history/{path} is not noted in the index" for path in sorted(there - noted.keys())]
    problems += [
        f"history/{path} is not what was written"
        for path in sorted(there & noted.keys())
        if digest_file(folder / HISTORY_FOLDER / path) != noted[path].sha256
    ]
    return problems


def restore(folder: Path, index: TrafficIndex, allowed: Callable[[], Callable[[Entry], bool]]) -> int:
    """Put files of the history that the index does not know into it: all of them where it is new. The rows read."""
    known = {part.path for part in index.parts()}
    rows = 0
    for path in part_paths(folder):
        if path in known:
            continue
        batch, times, count = Batch(), [], 0
        for row in read_part(folder, path):
            entry = entry_of(row.payload, row.writer)
            count += 1
            if entry is None:
                continue
            times.append(entry.values.get("at_ms") or 0)
            batch.add(entry)
            if count % _RESTORE_ROWS == 0:
                index.put(batch, allowed=allowed)
                batch = Batch()
        index.put(batch, allowed=allowed)
        file = folder / HISTORY_FOLDER / path
        part = Part(
            path=path,
            day=file.parent.name.removeprefix("day="),
            rows=count,
            size_bytes=file.stat().st_size,
            sha256=digest_file(file),
            first_ms=min(times, default=0),
            last_ms=max(times, default=0),
            made_at_ms=int(file.stat().st_mtime * 1000),
        )
        index.change_parts(add=[part])
        rows += count
    return rows


def _movable(folder: Path, cursors: dict[str, Cursor], before_ms: int) -> list[Cursor]:
    newest: dict[str, int] = {}
    for cursor in cursors.values():
        if (folder / cursor.segment).exists():
            newest[cursor.owner] = max(cursor.sequence, newest.get(cursor.owner, 0))
    old = sorted(
        (
            cursor
            for cursor in cursors.values()
            if cursor.finished
            and not cursor.archived
            and cursor.sequence < newest.get(cursor.owner, 0)
            and (cursor.last_ms is None or cursor.last_ms < before_ms)
            and (folder / cursor.segment).exists()
        ),
        key=lambda cursor: (cursor.owner, cursor.sequence),
    )
    some: list[Cursor] = []
    size = 0
    for cursor in old:
        size += cursor.offset
        if some and size > _PASS_BYTES:
            break
        some.append(cursor)
    return some


def _remove_archived(folder: Path, cursors: dict[str, Cursor]) -> int:
    freed = 0
    for cursor in cursors.values():
        path = folder / cursor.segment
        if cursor.archived and path.exists():
            freed += path.stat().st_size
            path.unlink()
    sync_folder(folder)
    return freed


def _columns(row: StoredRow) -> dict[str, Any]:
    value = loads(row.payload)
    found: dict[str, Any] = {"writer": row.writer, "row": row.payload}
    entry = entry_of(row.payload, row.writer)
    said = {} if entry is None else entry.values
    for name in (*_TEXT, *_INTEGERS, *_NUMBERS):
        found[name] = said.get(name)
    found["kind"], found["id"] = value["kind"], None if entry is None else entry.id
    return found


def _day(entry: Entry) -> str:
    at_ms = entry.values.get("at_ms")
    try:
        return datetime.fromtimestamp((at_ms or 0) / 1000, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return _UNKNOWN_DAY


def _read(path: Path) -> Iterator[StoredRow]:
    pa, parquet = _arrow()
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_RESTORE_ROWS, columns=["writer", "row"]):
                writers, rows = batch.column(0).to_pylist(), batch.column(1).to_pylist()
                yield from map(StoredRow, writers, rows)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise TrafficLogError(
            f"{path} cannot be read: {error}", hint="put it back from a backup, or move it away"
        ) from error


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "the history of the traffic log needs pyarrow", hint="pip install 'posttrain[serve]' pyarrow"
        ) from error
    return pa, parquet
