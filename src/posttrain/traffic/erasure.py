"""Forgetting a user: every row, everywhere, and a tombstone so that none returns.

Here: segments, index and history. Not here: what is merely old (``retention``). Who runs: living writers are asked to
finish their segments, dead ones' are finished already; then rows of the user, and rows that name a request of the user
(shadows, feedback, verdicts), are blanked in the segments, taken out of the Parquet files and deleted from the index,
which is then compacted, so that no page of it keeps the bytes.

Covered: every file of the traffic folder and the database's own files. Not covered: a request that is being answered
meanwhile (its last row never enters the index, but stays in its segment until that is moved to the history: run it
again), what other users wrote about this one, PostgreSQL's write-ahead log, backups, blocks that a file system freed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from posttrain.traffic.columns import REQUESTS, TABLES, entry_of
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.folder_lock import maintenance
from posttrain.traffic.history import (
    HISTORY_FOLDER,
    StoredRow,
    part_paths,
    read_part,
    write_part,
)
from posttrain.traffic.index import TrafficIndex, cursors
from posttrain.traffic.indexer import look_at
from posttrain.traffic.removals import Removal, Removals, save_removal
from posttrain.traffic.rewriting import blank_rows
from posttrain.traffic.segment_format import read_segment
from posttrain.traffic.segments import ask_for_rotation, rotation_is_pending

_T = TypeVar("_T")
_CHUNK = 400
_POLL_SECONDS = 0.02


def forget(
    folder: Path,
    index: TrafficIndex,
    *,
    user: str | None = None,
    requests: Collection[str] = (),
    wait_seconds: float = 30.0,
) -> Removal:
    """Remove everything of a user (the hash, see ``pseudonym``) or of single requests; what was removed, by where.

    Raises TrafficLogError where a living writer does not finish its segment in time; calling again goes on.
    """
    with maintenance(folder):
        began_ms = time.time_ns() // 1_000_000
        _finish_segments(folder, wait_seconds)
        segments = [folder / str(name) for name in look_at(folder).final if (folder / str(name)).exists()]
        ids, latest_ms = set(requests), began_ms
        for row in _all_rows(folder, segments):
            entry = entry_of(row.payload, row.writer)
            if user is not None and entry is not None and entry.values.get("user") == user:
                ids.add(entry.id)
                # A writer's clock may be ahead of ours after the wall clock was put back.
                latest_ms = max(latest_ms, entry.values.get("at_ms") or 0)
        ids |= _indexed_ids(index, user)
        removal = Removal(latest_ms, user, tuple(sorted(ids)))
        save_removal(folder, removal)
        gone = Removals((removal,))
        counts = {
            "segment_rows": sum(blank_rows(path, lambda payload: _goes(gone, payload)) for path in segments),
            "history_rows": sum(_rewrite_part(folder, index, path, gone) for path in part_paths(folder)),
            **_delete(index, removal),
        }
        removal = replace(removal, counts=counts)
        save_removal(folder, removal)
    return removal


def _finish_segments(folder: Path, wait_seconds: float) -> None:
    owners = {name.owner for name in look_at(folder).maybe_living}
    for owner in owners:
        ask_for_rotation(folder, owner)
    deadline = time.monotonic() + wait_seconds
    while owners := {owner for owner in owners if rotation_is_pending(folder, owner)}:
        owners &= {name.owner for name in look_at(folder).maybe_living}  # one that died needs no asking
        if time.monotonic() > deadline:
            raise TrafficLogError(
                f"the writer {sorted(owners)[0]!r} did not finish its segment within {wait_seconds:g} s",
                hint="see whether that worker hangs or its disk is full, then run it again",
            )
        time.sleep(_POLL_SECONDS)


def _all_rows(folder: Path, segments: list[Path]) -> Iterator[StoredRow]:
    for path in segments:
        for row in read_segment(path):
            yield StoredRow("", row.payload)
    for part in part_paths(folder):
        yield from read_part(folder, part)


def _goes(gone: Removals, payload: bytes) -> bool:
    entry = entry_of(payload, "")
    return entry is not None and not gone.keeps(entry)


def _rewrite_part(folder: Path, index: TrafficIndex, path: str, gone: Removals) -> int:
    """Write a file of the history without these rows, under another name, then let the old one go."""
    rows = list(read_part(folder, path))
    kept = [row for row in rows if not _goes(gone, row.payload)]
    if len(kept) == len(rows):
        return 0
    stem = path.removesuffix(".parquet")
    base, _, number = stem.partition(".")
    made = [write_part(folder, f"{base}.{int(number or 0) + 1}.parquet", kept)] if kept else []
    index.change_parts(add=made, drop=[path])
    (folder / HISTORY_FOLDER / path).unlink()
    return len(rows) - len(kept)


def _indexed_ids(index: TrafficIndex, user: str | None) -> set[str]:
    if user is None:
        return set()
    with index.database.reading() as connection:
        query = index.sql('SELECT id FROM requests WHERE "user" = ?')
        return {row[0] for row in connection.exec_driver_sql(query, (user,))}


def _delete(index: TrafficIndex, removal: Removal) -> dict[str, int]:
    counts = dict.fromkeys((table.name for table in TABLES), 0)
    with index.database.writing(cursors) as connection:
        if removal.user is not None:
            query = index.sql('DELETE FROM requests WHERE "user" = ? AND (at_ms IS NULL OR at_ms <= ?)')
            counts[REQUESTS.name] += connection.exec_driver_sql(query, (removal.user, removal.at_ms)).rowcount
        for table in TABLES:
            for column in ("id", '"of"'):
                for some in _chunks(removal.requests):
                    slots = ", ".join("?" for _ in some)
                    query = index.sql(f"DELETE FROM {table.name} WHERE {column} IN ({slots})")
                    counts[table.name] += connection.exec_driver_sql(query, tuple(some)).rowcount
    compact(index)
    return counts


def compact(index: TrafficIndex) -> None:
    """Write the tables anew: deleting leaves the bytes where they were until something else needs the place."""
    database = index.database
    if database.dialect == "sqlite":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.execute("VACUUM")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in TABLES:
            connection.execute(sa.text(f"VACUUM FULL {table.name}"))


def _chunks(values: tuple[_T, ...]) -> Iterator[tuple[_T, ...]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
