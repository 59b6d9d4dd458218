"""From segments to the index: one process, exactly once.

Here: following every owner's segments, concluding which requests are lost, the loop of the process. Not here: the
database (``index``), files that leave the segments (``history``, ``retention``).

Rows and the cursor behind them are one transaction, so a kill at any instant costs nothing but the work of a batch. A
segment is *finished* when it is sealed, when its owner has a later one, or when its writer is dead: then what stands
torn at its end is final. A ``begin`` without ``end`` is ``lost`` when its writer is dead and all it wrote was read.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from posttrain.core.errors import PosttrainError, StoreError
from posttrain.traffic.columns import entry_of, is_blank
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.folder_lock import folder_lock
from posttrain.traffic.history import restore
from posttrain.traffic.index import Batch, Cursor, Overtaken, TrafficIndex, note_sink
from posttrain.traffic.owner_lock import is_alive
from posttrain.traffic.pseudonym import load_or_make_secret, pseudonym
from posttrain.traffic.removals import RemovalsFile
from posttrain.traffic.segment_format import (
    SegmentName,
    SegmentReader,
    list_segments,
    read_header,
    read_segment,
)

_log = logging.getLogger("posttrain.traffic")
_BATCH_ROWS = 2000
_BATCH_BYTES = 8 << 20
_BATCH_SEGMENTS = 500
_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Indexed:
    """What one look at the segments brought."""

    rows: int = 0
    """Records read, rows of ours or not."""
    lost: int = 0
    """Requests newly found lost."""
    bad_rows: int = 0
    """Records that are no rows of ours."""
    corrupt_bytes: int = 0
    torn_bytes: int = 0


class Indexer:
    """Follows one folder into one index. One at a time per folder: hold the lock, or use :func:`index_once`."""

    def __init__(self, folder: Path, index: TrafficIndex, *, batch_rows: int = _BATCH_ROWS) -> None:
        self.folder = folder
        self.index = index
        self.batch_rows = batch_rows
        index.belong_to(pseudonym(load_or_make_secret(folder), "log", ""))
        self._cursors = index.cursors()
        self._removals = RemovalsFile(folder)
        self._writers: dict[SegmentName, str] = {}
        self._done, self._batch = Indexed(), Batch()
        self._restored = False
        self._concluded: frozenset[str] | None = None
        """Writers that may have been alive when lost requests were last looked for, unless rows came since."""

    def poll(self, should_stop: Callable[[], bool] = lambda: False) -> Indexed:
        """Read everything that is there now. Raises StoreError, TrafficLogError; what was put in before stays."""
        self._done, self._batch = Indexed(), Batch()
        try:
            if not self._restored:
                rows = restore(self.folder, self.index, lambda: self._removals.now().keeps)
                self._done, self._restored = Indexed(rows), True
            look = look_at(self.folder)
            for name in look.names:
                cursor = self._cursors.get(str(name))
                if cursor is None or not cursor.finished:
                    self._follow(name, final=name in look.final)
                if should_stop():
                    break
            self._put()
            if not should_stop():
                self._conclude(look)
        except Overtaken:
            _log.warning("traffic log: another indexer writes the same index")
            self._cursors = self.index.cursors()
        return self._done

    def _follow(self, name: SegmentName, *, final: bool) -> None:
        """Read one segment to its present end."""
        path = self.folder / str(name)
        start = self._cursors.get(str(name)) or Cursor(str(name), name.owner, name.sequence, "")
        try:
            progress = _Progress(replace(start, writer=self._writer(name)))
            reader = read_segment(path, start.offset)
            for row in reader:
                progress.take(row.payload, self._batch)
                if self._batch.rows >= self.batch_rows or self._batch.size_bytes >= _BATCH_BYTES:
                    self._batch.move(self._cursors.get(str(name)), progress.cursor(reader))
                    self._put()
                    progress = _Progress(self._cursors[str(name)])
            cursor = progress.cursor(reader)
            if reader.seal is not None or final:
                torn = 0 if reader.torn_at is None else path.stat().st_size - reader.torn_at
                cursor = replace(cursor, finished=True, torn_bytes=torn)
        except FileNotFoundError:
            return  # moved to the history or removed since it was listed
        if cursor != self._cursors.get(str(name)):
            self._batch.move(self._cursors.get(str(name)), cursor)
            if len(self._batch.cursors) >= _BATCH_SEGMENTS:
                self._put()

    def _put(self) -> None:
        """One transaction with what was gathered, of however many segments."""
        batch, self._batch = self._batch, Batch()
        if not batch.cursors:
            return
        # Looked up under the database's lock: what is erased after that is erased from the index, too.
        self.index.put(batch, allowed=lambda: self._removals.now().keeps)
        if batch.rows:
            self._concluded = None
        for before, after in batch.cursors.values():
            self._cursors[after.segment] = after
            self._done = Indexed(
                rows=self._done.rows + after.rows - (before.rows if before else 0),
                bad_rows=self._done.bad_rows + after.bad_rows - (before.bad_rows if before else 0),
                corrupt_bytes=self._done.corrupt_bytes
                + after.corrupt_bytes
                - (before.corrupt_bytes if before else 0),
                torn_bytes=self._done.torn_bytes + after.torn_bytes,
            )

    def _writer(self, name: SegmentName) -> str:
        """Who wrote a segment. Where the header is damaged, or not written yet, the segment counts as its own."""
        if name not in self._writers:
            header = read_header(self.folder / str(name))
            if header is None:
                return f"{name.owner}@{name.sequence}"
            self._writers[name] = header.writer
        return self._writers[name]

    def _conclude(self, look: Look) -> None:
        """Requests without an end whose writer is surely dead are lost."""
        unread = {
            cursor.writer for cursor in self._cursors.values() if not cursor.finished and not cursor.archived
        }
        living = frozenset(unread | {self._writer(name) for name in look.maybe_living})
        if living == self._concluded:
            return
        lost = self.index.call_lost(except_of=living)
        self._done = replace(self._done, lost=lost)
        self._concluded = living


class _Progress:
    """How far one segment was read since its cursor was put in."""

    def __init__(self, start: Cursor) -> None:
        self._start = start
        self._rows = 0
        self._accepted = 0
        self._bad = 0
        self._first = start.first_ms
        self._last = start.last_ms

    def take(self, payload: bytes, batch: Batch) -> None:
        """One record."""
        self._rows += 1
        batch.rows += 1
        batch.size_bytes += len(payload)
        entry = entry_of(payload, self._start.writer)
        if entry is None:
            self._bad += not is_blank(payload)
            return
        batch.add(entry)
        self._accepted += entry.accepts
        at_ms = entry.values.get("at_ms")
        if at_ms is not None:
            self._first = at_ms if self._first is None or at_ms < self._first else self._first
            self._last = at_ms if self._last is None or at_ms > self._last else self._last

    def cursor(self, reader: SegmentReader) -> Cursor:
        """Where the segment's cursor stands after these rows."""
        start = self._start
        corrupt = sum(item.end - item.start for item in reader.corrupt if item.start >= start.offset)
        return replace(
            start,
            offset=reader.offset,
            accepted=start.accepted + self._accepted,
            rows=start.rows + self._rows,
            bad_rows=start.bad_rows + self._bad,
            corrupt_bytes=start.corrupt_bytes + corrupt,
            first_ms=self._first,
            last_ms=self._last,
        )


class Look(NamedTuple):
    """The segments, and who may still write."""

    names: tuple[SegmentName, ...]
    final: frozenset[SegmentName]
    """Nothing more comes to these."""
    maybe_living: frozenset[SegmentName]
    """The newest segment of every writer that may be alive."""


def look_at(folder: Path) -> Look:
    """The segments of a folder, and who could still write to them."""
    # In this order: a writer that was listed and is dead after that has no segment that the second listing lacks.
    listed = set(list_segments(folder))
    living = {owner for owner in {name.owner for name in listed} if is_alive(folder, owner)}
    names = tuple(list_segments(folder))
    newest = {name.owner: name for name in names}
    followed = frozenset(name for name in names if name != newest[name.owner])
    dead = frozenset(name for name in listed if name.owner not in living)
    final = followed | dead
    return Look(names, final, frozenset(name for name in newest.values() if name not in final))


def index_once(folder: Path, index: TrafficIndex) -> Indexed | None:
    """Bring the index up to what the segments say now; None where a running indexer is doing just that."""
    with folder_lock(folder, "indexer") as held:
        return Indexer(folder, index).poll() if held else None


def run_indexer(
    folder: Path, url: str | None, *, poll_seconds: float, housekeeping: Callable[[TrafficIndex], object]
) -> None:
    """Follow the folder until SIGTERM or SIGINT. Raises TrafficLogError where another indexer runs.

    A database that does not answer is tried again for ever: the segments keep what is missing.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with folder_lock(folder, "indexer") as held:
        if not held:
            raise TrafficLogError(f"an indexer of {folder} is already running")
        while not stopping.is_set():
            try:
                index = TrafficIndex.open(folder, url)
                note_sink(folder, index)
                with index.held_open():
                    indexer = Indexer(folder, index)
                    while not stopping.is_set():
                        done = indexer.poll(stopping.is_set)
                        if not stopping.is_set():
                            _keep_house(housekeeping, index)
                        stopping.wait(0 if done.rows else poll_seconds)
            except StoreError as error:
                _log.error("%s", error)
                stopping.wait(_RETRY_SECONDS)


def _keep_house(work: Callable[[TrafficIndex], object], index: TrafficIndex) -> None:
    """Tidying is tried again later; what it could not do keeps no row from the index."""
    try:
        work(index)
    except StoreError:
        raise
    except PosttrainError as error:
        _log.error("%s", error)
