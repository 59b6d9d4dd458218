"""Writing the traffic log: one chain of segment files per owner, never shared.

Here: ``SegmentWriter``. Not here: the bytes of a file and reading them (``segment_format``; ``read_segment`` is named
here, too), who reads (``indexer``, ``follow``).

``append`` gives rows to the kernel before it returns. From then on they outlive this process; they outlive a power cut
once a sync has passed them, which a thread does for all rows that came meanwhile.

Covered: SIGKILL at any instant; a disk that fills (nothing half-written stays, and appending works again when there is
space); a sync that fails (the rows are written again to a new segment, and whoever waits is told the truth). Not
covered: a disk that says it synced and did not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.core.atomic import is_storage_full, make_folder, sync_folder
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.owner_lock import take_owner
from posttrain.traffic.segment_format import (
    MAGIC,
    MAX_PAYLOAD_BYTES,
    Seal,
    SegmentHeader,
    SegmentName,
    encode,
    list_segments,
    parse_name,
    read_segment,
)

__all__ = [
    "SegmentWriter",
    "SyncFailure",
    "ask_for_rotation",
    "list_segments",
    "read_segment",
    "rotation_is_pending",
]

_log = logging.getLogger("posttrain.traffic")
_TICK_SECONDS = 0.2
"""How often a writer without work looks at ages and at requests to rotate."""
_RETRY_SECONDS = 1.0
"""How long a disk that failed is left alone."""

Synced = Callable[[bool], None]
"""Told True when the row is on the disk, False when that can no longer be promised."""


class SyncFailure(NamedTuple):
    """A sync that the disk refused."""

    segment: str
    error: str
    rewritten: bool
    """Whether all rows that it concerned could be written to a new segment."""


@dataclass(slots=True, eq=False)
class _Segment:
    """One open file."""

    name: SegmentName
    path: Path
    descriptor: int
    opened: float
    size: int = 0
    """Bytes that hold whole records."""
    synced: int = 0
    """Bytes that are on the disk."""
    rows: int = 0
    entered: bool = False
    """Whether the folder's entry is on the disk."""
    failed: bool = False
    """Whether a sync failed: a later one that succeeds means nothing."""
    hasher: Any = field(default_factory=hashlib.sha256)
    """The digest of those bytes as they were meant, so that a seal tells what the disk changed."""

    def wrote(self, data: bytes, rows: int) -> None:
        """So much more is in the file."""
        self.hasher.update(data)
        self.size += len(data)
        self.rows += rows


class _Waiter(NamedTuple):
    position: int
    loop: asyncio.AbstractEventLoop
    callback: Synced


class SegmentWriter:
    """The log of one owner. Appending is safe from any thread, meant for one."""

    def __init__(self, folder: Path, *, owner: str, config: TrafficConfig | None = None) -> None:
        """Begin the owner's next segment. Raises TrafficLogError: the owner has a living writer, or no space."""
        self.folder = folder
        self.owner = owner
        self.config = config or TrafficConfig()
        self.strict = self.config.durability == "strict"
        """Whether answers wait for the disk."""
        self.failures: tuple[SyncFailure, ...] = ()
        """Every sync that failed, the last hundred of them."""
        self.position = 0
        """Bytes appended in this writer's life: what :meth:`append` returned last."""
        self.synced = 0
        """Everything up to here is on the disk, but for what ``failures`` says was lost."""
        self.syncs = 0
        """How often data was synced, for the metrics."""
        if parse_name(str(SegmentName(owner, 0))) is None:
            raise TrafficLogError(f"{owner!r} cannot name a segment", hint="use letters, digits, . _ and -")
        self._segment_bytes = self.config.segment_bytes
        self._backlog_bytes = self.config.backlog_bytes
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._asleep = False
        self._closed = False
        self._broken = False
        self._retry_at = 0.0
        self._look_at = 0.0
        self._retired: list[_Segment] = []
        self._waiters: deque[_Waiter] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = self._take()
        try:
            last = max((name.sequence for name in list_segments(folder) if name.owner == owner), default=0)
            self._first = last + 1
            self._segment = self._open(last + 1)
        except BaseException:
            os.close(self._held)
            raise
        self._syncer = threading.Thread(target=self._run, name=f"traffic-{owner}", daemon=True)
        self._syncer.start()
        _writers.add(self)

    # -- the hot path -----------------------------------------------------------------------------

    def append(self, row: bytes) -> int:
        """Write one JSON object; returns its position. Raises TrafficLogError, and then nothing was written."""
        self.append_all([row])
        return self.position

    def append_all(self, rows: list[bytes]) -> int:
        """Write JSON objects at once; how many of them, the first ones, were written: all but where space ends.

        Raises TrafficLogError, and then nothing was written: no space even for the first, one too long, the writer
        closed, a disk that does not keep up.
        """
        for row in rows:
            if len(row) > MAX_PAYLOAD_BYTES:
                raise TrafficLogError(
                    f"a row of the traffic log has at most {MAX_PAYLOAD_BYTES} bytes, this has {len(row)}"
                )
        records = [encode(row) for row in rows]
        data = records[0] if len(records) == 1 else b"".join(records)
        with self._lock:
            segment = self._segment
            if (
                segment.size >= self._segment_bytes
                or self.position - self.synced > self._backlog_bytes
                or self._closed
            ):
                segment = self._make_room()
            try:
                written = os.write(segment.descriptor, data)
            except OSError as error:
                raise self._undo(segment, error) from error
            count = len(records)
            cut = written != len(data)
            if cut:
                count, written = _whole(records, written)
                data = data[:written]
            segment.wrote(data, count)
            self.position += written
            if cut:
                full = self._undo(segment, None)
                if not count:
                    raise full
            if self._asleep:
                self._asleep = False
                self._wake.set()
            return count

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Callbacks run on this loop; without it, on the loop that :meth:`on_synced` is called in."""
        self._loop = loop

    def on_synced(self, position: int, callback: Synced) -> None:
        """Call ``callback(True)`` on the event loop once everything up to ``position`` is on the disk.

        ``callback(False)`` when the disk refused and the row may be lost. Never called from within this call.
        """
        loop = self._loop or asyncio.get_running_loop()
        with self._lock:
            if position > self.synced and not self._closed:
                self._waiters.append(_Waiter(position, loop, callback))
                return
        loop.call_soon(callback, position <= self.synced)

    @property
    def backlog_bytes(self) -> int:
        """Written and not yet on the disk."""
        return self.position - self.synced

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._segment.path

    def rotate(self) -> None:
        """Finish this segment, if it has rows, and begin the next. Raises TrafficLogError."""
        with self._lock:
            if self._segment.rows and not self._closed:
                self._rotate()
                self._wake.set()

    def close(self) -> None:
        """Put everything on the disk, seal the segment and let the owner go. Calling again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._closing.set()
            self._wake.set()
        self._syncer.join()
        os.close(self._segment.descriptor)
        os.close(self._held)
        _writers.discard(self)

    # -- beneath it, with the lock held -----------------------------------------------------------

    def _make_room(self) -> _Segment:
        """The segment to write to, where it is not just the one at hand."""
        if self._closed:
            raise TrafficLogError("the traffic log is closed")
        if self.backlog_bytes > self._backlog_bytes:
            raise TrafficLogError(
                f"the disk of {self.folder} does not keep up: {self.backlog_bytes} bytes of the log wait for it",
                hint="use a faster disk, or raise traffic.backlog_bytes",
            )
        if time.monotonic() >= self._retry_at:
            # With no space for another file there may still be some in this one: the row decides.
            with contextlib.suppress(TrafficLogError):
                self._rotate()
        return self._segment

    def _rotate(self) -> None:
        try:
            following = self._open(self._segment.name.sequence + 1)
        except TrafficLogError:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            raise
        self._retired.append(self._segment)
        self._segment = following

    def _open(self, sequence: int) -> _Segment:
        name = SegmentName(self.owner, sequence)
        path = self.folder / str(name)
        header = SegmentHeader(self.owner, sequence, self._first, time.time_ns() // 1_000_000, os.getpid())
        start = MAGIC + encode(header.payload())
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            try:
                if os.write(descriptor, start) != len(start):
                    raise _full(self.folder)
            except BaseException:
                os.close(descriptor)
                path.unlink()
                raise
        except OSError as error:
            raise self._explain(error) from error
        segment = _Segment(name, path, descriptor, time.monotonic())
        segment.wrote(start, 0)
        return segment

    def _undo(self, segment: _Segment, error: OSError | None) -> TrafficLogError:
        """Take what is half-written behind the segment's last record away; where even that fails, go on in another."""
        try:
            os.ftruncate(segment.descriptor, segment.size)
        except OSError:
            with contextlib.suppress(TrafficLogError):
                self._rotate()
        return _full(self.folder) if error is None else self._explain(error)

    def _explain(self, error: OSError) -> TrafficLogError:
        if isinstance(error, TrafficLogError):
            return error
        if is_storage_full(error):
            return _full(self.folder)
        return TrafficLogError(f"cannot write the traffic log in {self.folder}: {error.strerror or error}")

    def _take(self) -> int:
        try:
            make_folder(self.folder)
            held = take_owner(self.folder, self.owner)
        except OSError as error:
            raise self._explain(error) from error
        if held is None:
            raise TrafficLogError(
                f"{self.owner!r} already writes the traffic log in {self.folder}",
                hint="give each worker a name of its own",
            )
        return held

    # -- the thread that syncs --------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                closing = self._closed
                idle = self.position == self.synced and not self._retired
                self._asleep = idle and not closing
                if self._asleep:
                    self._wake.clear()
            if idle and not closing:
                self._wake.wait(_TICK_SECONDS)
            if not closing and (self._broken or not self.strict):
                self._closing.wait(_RETRY_SECONDS if self._broken else self.config.sync_seconds)
            asked = self._rotate_if_due()
            self._sync()
            if asked is not None:
                asked.unlink(missing_ok=True)
            if closing:
                self._finish(self._segment, closed=True)
                return

    def _rotate_if_due(self) -> Path | None:
        """Rotate by age or because somebody asked; the request to take away once the old segment is sealed."""
        now = time.monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + _TICK_SECONDS
        asked = _rotation_path(self.folder, self.owner)
        is_asked = asked.exists()
        if is_asked or now - self._segment.opened > self.config.segment_seconds:
            try:
                self.rotate()
            except TrafficLogError:
                return None  # tried again a tick later
        return asked if is_asked else None

    def _sync(self) -> None:
        """Put everything that was appended so far on the disk and tell who waits; a second try is in another file."""
        for _ in range(2):
            with self._lock:
                target, retired, current = self.position, self._retired, self._segment
                self._retired = []
            failed = [segment for segment in retired if not self._finish(segment)]
            if target > self.synced and not self._put(current):
                failed.append(current)
            if not failed:
                self._broken = False
                self.synced = target
                self._tell(target, kept=True)
                return
            if not self._write_again(failed):
                break
        self._broken = True
        self._tell(target, kept=False)

    def _put(self, segment: _Segment) -> bool:
        """Sync the segment that is being written."""
        size = segment.size
        try:
            if segment.failed:
                return False
            if not segment.entered:
                sync_folder(self.folder)
                segment.entered = True
            os.fdatasync(segment.descriptor)
        except OSError as error:
            self._remember(segment, error)
            return False
        segment.synced = size
        self.syncs += 1
        return True

    def _finish(self, segment: _Segment, *, closed: bool = False) -> bool:
        """Seal and sync a segment that nothing more is written to. Without space for the seal it stays unsealed."""
        if segment.failed:
            return False
        try:
            seal = encode(Seal(segment.rows, segment.hasher.hexdigest(), closed).payload())
            sealed = os.write(segment.descriptor, seal) == len(seal)
        except OSError:
            sealed = False
        try:
            if not sealed:
                os.ftruncate(segment.descriptor, segment.size)
            os.fsync(segment.descriptor)
            sync_folder(self.folder)
        except OSError as error:
            self._remember(segment, error)
            return False
        segment.synced = segment.size
        if not closed:
            os.close(segment.descriptor)
        return True

    def _write_again(self, failed: list[_Segment]) -> bool:
        """After a failed sync the kernel forgets what it could not write, so it is written anew, elsewhere.

        Whether everything now is where the next sync looks.
        """
        with self._lock:
            self._retired = [segment for segment in self._retired if segment not in failed]
            try:
                if self._segment in failed:
                    self._rotate()
                    self._retired.pop()
                copied = [self._copy(segment) for segment in failed]
            except OSError:  # no space for it now: tried again a second later
                self._retired = [item for item in failed if item is not self._segment] + self._retired
                return False
            for segment in failed:
                os.close(segment.descriptor)
        whole = all(copied)
        if whole:
            names = {str(segment.name) for segment in failed}
            self.failures = tuple(
                failure._replace(rewritten=True) if failure.segment in names else failure
                for failure in self.failures
            )
        return whole

    def _copy(self, segment: _Segment) -> bool:
        """Append what was not synced to the segment that is being written; whether all of it could be read back."""
        target, rows = self._segment, 0
        reader = read_segment(segment.path, segment.synced)
        for row in reader:
            record = encode(row.payload)
            if os.write(target.descriptor, record) != len(record):
                os.ftruncate(target.descriptor, target.size)
                raise _full(self.folder)
            target.wrote(record, 1)
            rows += 1
        _log.error("traffic log: %d rows of %s were written again to %s", rows, segment.name, target.name)
        return not reader.corrupt and reader.offset >= segment.size

    def _remember(self, segment: _Segment, error: OSError) -> None:
        segment.failed = True
        failure = SyncFailure(str(segment.name), error.strerror or str(error), rewritten=False)
        self.failures = (*self.failures[-99:], failure)
        _log.error("traffic log: the disk refused to sync %s: %s", *failure[:2])

    def _tell(self, position: int, *, kept: bool) -> None:
        if not self._waiters:
            return
        told: dict[asyncio.AbstractEventLoop, list[Synced]] = {}
        with self._lock:
            while self._waiters and self._waiters[0].position <= position:
                waiter = self._waiters.popleft()
                told.setdefault(waiter.loop, []).append(waiter.callback)
        for loop, callbacks in told.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_call_all, callbacks, kept)


def ask_for_rotation(folder: Path, owner: str) -> None:
    """Ask a living writer, of any process, to finish its segment: it does within a second."""
    _rotation_path(folder, owner).touch()


def rotation_is_pending(folder: Path, owner: str) -> bool:
    """Whether the writer has not yet done what it was asked for."""
    return _rotation_path(folder, owner).exists()


def _rotation_path(folder: Path, owner: str) -> Path:
    return folder / f"{owner}.rotate"


def _whole(records: list[bytes], written: int) -> tuple[int, int]:
    """How many records the first ``written`` bytes hold, and their bytes: readers may have seen those already."""
    count = size = 0
    while size + len(records[count]) <= written:
        size += len(records[count])
        count += 1
    return count, size


def _call_all(callbacks: list[Synced], kept: bool) -> None:
    for callback in callbacks:
        callback(kept)


def _full(folder: Path) -> TrafficLogError:
    return TrafficLogError(
        f"no space left for the traffic log in {folder}; nothing half-written was kept",
        hint="free some space there, or shorten traffic.retention_days and run `posttrain log retain`",
    )


_writers: set[SegmentWriter] = set()
"""Those that are not closed; their threads keep them alive as it is."""


def _leave_to_parent() -> None:
    # A child has the descriptors, not the thread; its rows would tear the parent's file, and its lock outlive it.
    for writer in list(_writers):
        writer._lock = threading.Lock()
        writer._closed = True
        os.close(writer._held)
    _writers.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
