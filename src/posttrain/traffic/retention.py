"""Removing what is past its time: whole segments, whole files of the history, rows of the index.

Here: what goes and in which order. Not here: a user's rows (``erasure``). Files go when everything in them is old, so a
segment or a day's file may outlive its first rows by as long as it covers; the index is exact. The bound is noted in
``removed.jsonl`` first: rows before it do not return when the index is made anew from such a file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from posttrain.traffic.columns import TABLES, is_blank
from posttrain.traffic.folder_lock import maintenance
from posttrain.traffic.history import HISTORY_FOLDER
from posttrain.traffic.index import Cursor, TrafficIndex, cursors
from posttrain.traffic.removals import Removal, save_removal
from posttrain.traffic.rewriting import blank_rows

_DAY_MS = 86_400_000
_CHUNK = 5000


@dataclass(frozen=True, slots=True)
class Retained:
    """What was removed, or would be."""

    before_ms: int
    segments: tuple[str, ...]
    parts: tuple[str, ...]
    freed_bytes: int
    rows: dict[str, int]
    """Of the index, by table."""


def retain(
    folder: Path,
    index: TrafficIndex,
    *,
    days: float | None = None,
    before_ms: int | None = None,
    dry_run: bool = False,
) -> Retained:
    """Remove everything older than ``days``, or than ``before_ms``."""
    if before_ms is None:
        before_ms = time.time_ns() // 1_000_000 - int((days or 0) * _DAY_MS)
    with maintenance(folder):
        known = index.cursors()
        old = [cursor for cursor in known.values() if _is_old(cursor, before_ms)]
        there = [cursor for cursor in old if (folder / cursor.segment).exists()]
        # The newest of an owner stays as a file, because the next one's number follows from it; its rows go.
        newest = {
            owner: max(cursor.sequence for cursor in known.values() if cursor.owner == owner)
            for owner in {cursor.owner for cursor in old}
        }
        emptied = [cursor for cursor in there if cursor.sequence == newest[cursor.owner]]
        removed = [cursor for cursor in there if cursor not in emptied]
        parts = [part for part in index.parts() if part.last_ms < before_ms]
        counts = {table.name: _count(index, table.name, before_ms) for table in TABLES}
        freed = sum((folder / cursor.segment).stat().st_size for cursor in removed)
        freed += sum(part.size_bytes for part in parts)
        if not dry_run and (old or parts or any(counts.values())):
            save_removal(folder, Removal(time.time_ns() // 1_000_000, before_ms=before_ms))
            for table in TABLES:
                _delete(index, table.name, before_ms)
            index.change_parts(drop=[part.path for part in parts])
            for part in parts:
                (folder / HISTORY_FOLDER / part.path).unlink(missing_ok=True)
            for cursor in removed:
                (folder / cursor.segment).unlink()
            gone = [cursor.segment for cursor in old if cursor not in emptied]
            index.drop_segments(gone)
            for cursor in emptied:
                blank_rows(folder / cursor.segment, lambda payload: not is_blank(payload))
    return Retained(
        before_ms,
        tuple(cursor.segment for cursor in removed),
        tuple(part.path for part in parts),
        freed,
        counts,
    )


def _is_old(cursor: Cursor, before_ms: int) -> bool:
    return cursor.finished and cursor.last_ms is not None and cursor.last_ms < before_ms


def _count(index: TrafficIndex, table: str, before_ms: int) -> int:
    return int(index.scalar(f"SELECT count(*) FROM {table} WHERE at_ms < ?", (before_ms,)))


def _delete(index: TrafficIndex, table: str, before_ms: int) -> None:
    """In pieces, so that the indexer is not kept waiting."""
    query = index.sql(
        f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE at_ms < ? ORDER BY at_ms LIMIT {_CHUNK})"
    )
    while True:
        with index.database.writing(cursors) as connection:
            if connection.exec_driver_sql(query, (before_ms,)).rowcount == 0:
                return
