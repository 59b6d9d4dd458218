"""Counters that all workers share: a mapped file with one part for each worker.

Here: counting and waiting times. Not here: whose limit is what (``records``). Each worker writes only its own part and
reads everybody's, one 64-bit word at a time, so there is no lock. A word holds when and how much: a stamp in the
upper half, a count in the lower.

A window is a ring of one part more than it is long (13 of 5 seconds, 25 of an hour), so what is counted covers at least
the last minute or day and at most 5 seconds or an hour more.

*Covered*: in any 60 seconds, at most ``requests_per_minute + workers - 1`` requests are admitted: each worker may admit
one between another's reading and writing. Tokens are counted when an answer ends, so those of answers in flight come on
top. Counts survive the restart of workers and of the gateway; clock changes do not matter. *Not covered*: several
machines, each of which counts for itself; a restart of the machine, which starts at nothing.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from posttrain.core.atomic import locked, make_folder, storage_errors, unique_name
from posttrain.core.errors import ServingError
from posttrain.serving.access.records import Budgets

MAX_KEYS = 4096
"""Counters in a file; half a kilobyte for each key and worker."""
_RECORD = 64  # words
_HEADER = 512  # words
_MAGIC = 0x7074_6275_6467_0001
_COUNT = 0xFFFF_FFFF


class _Ring(NamedTuple):
    offset: int
    """First word in a record."""
    seconds: int
    """Of one part."""
    parts: int


_REQUESTS = _Ring(0, 5, 13)
_TOKENS = _Ring(16, 5, 13)
_DAY = _Ring(32, 3600, 25)


class SharedBudgets:
    """The counters, as one worker sees them."""

    def __init__(
        self, path: Path, *, worker: int, workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open the file, or make it where it is missing or made for another number of workers or by another boot.

        ``worker`` counts from 0; a second process with the same number is refused. ``clock`` is one that all processes
        share and that never goes back.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker {worker} is not one of {workers}")
        self._clock = clock
        self._workers = workers
        self._part = MAX_KEYS * _RECORD
        self._own = _HEADER + worker * self._part
        make_folder(path.parent)
        with locked(path.with_name(path.name + ".lock"), exclusive=True):
            self._descriptor = self._open(path)
            try:
                # Released by the system when this process ends.
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, worker)
            except OSError as error:
                os.close(self._descriptor)
                raise ServingError(f"another process counts as worker {worker} in {path}") from error
        self._map = mmap.mmap(self._descriptor, self._size)
        self._words = memoryview(self._map).cast("Q")

    @property
    def _size(self) -> int:
        return 8 * (_HEADER + self._workers * self._part)

    def _open(self, path: Path) -> int:
        header = (
            b"".join(word.to_bytes(8, "little") for word in (_MAGIC, self._workers, _RECORD, MAX_KEYS))
            + _boot()
        )
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.pread(descriptor, len(header), 0) == header and os.fstat(descriptor).st_size == self._size:
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            pass
        new = path.with_name(f".{unique_name()}.part")
        with storage_errors(path.parent):
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # Space is taken now: a full disk would end the process at its first write otherwise.
                os.posix_fallocate(descriptor, 0, self._size)
                os.pwrite(descriptor, header, 0)
                new.replace(path)
            except BaseException:
                os.close(descriptor)
                new.unlink(missing_ok=True)
                raise
        return descriptor

    def close(self) -> None:
        """Let go of the file; the counts stay."""
        self._words.release()
        self._map.close()
        os.close(self._descriptor)

    def admit(self, slot: int, budgets: Budgets) -> float:
        """0.0 where one more request is admitted, and it is counted; else the seconds until one may be."""
        now = self._clock()
        wait = 0.0
        for limit, ring in (
            (budgets.requests_per_minute, _REQUESTS),
            (budgets.tokens_per_minute, _TOKENS),
            (budgets.tokens_per_day, _DAY),
        ):
            if limit is not None and self._used(slot, ring, now) >= limit:
                wait = max(wait, self._wait(slot, ring, now, limit))
        if wait:
            return wait
        if budgets.requests_per_minute is not None:
            self._add(slot, _REQUESTS, now, 1)
        return 0.0

    def charge(self, slot: int, tokens: int) -> None:
        """Count the tokens of an answer."""
        if tokens > 0:
            now = self._clock()
            self._add(slot, _TOKENS, now, tokens)
            self._add(slot, _DAY, now, tokens)

    def used(self, slot: int) -> dict[str, int]:
        """What counts now, for people."""
        now = self._clock()
        return {
            "requests_per_minute": self._used(slot, _REQUESTS, now),
            "tokens_per_minute": self._used(slot, _TOKENS, now),
            "tokens_per_day": self._used(slot, _DAY, now),
        }

    def _add(self, slot: int, ring: _Ring, now: float, amount: int) -> None:
        stamp = int(now) // ring.seconds
        place = self._own + slot * _RECORD + ring.offset + stamp % ring.parts
        word = self._words[place]
        count = word & _COUNT if word >> 32 == stamp else 0
        self._words[place] = stamp << 32 | min(count + amount, _COUNT)

    def _used(self, slot: int, ring: _Ring, now: float) -> int:
        # A word whose stamp is in the window is at least this.
        oldest = max(0, int(now) // ring.seconds - ring.parts + 1) << 32
        start = _HEADER + slot * _RECORD + ring.offset
        words, total = self._words, 0
        for first in range(start, start + self._workers * self._part, self._part):
            for word in words[first : first + ring.parts].tolist():
                if word >= oldest:
                    total += word & _COUNT
        return total

    def _wait(self, slot: int, ring: _Ring, now: float, limit: int) -> float:
        """Seconds until enough has left the window."""
        oldest = max(0, int(now) // ring.seconds - ring.parts + 1)
        start = _HEADER + slot * _RECORD + ring.offset
        counted = sorted(
            (word >> 32, word & _COUNT)
            for first in range(start, start + self._workers * self._part, self._part)
            for word in self._words[first : first + ring.parts].tolist()
            if word >> 32 >= oldest
        )
        total = sum(count for _, count in counted)
        for stamp, count in counted:
            total -= count
            if total < limit:
                return max(0.001, (stamp + ring.parts) * ring.seconds - now)
        return float(ring.seconds * ring.parts)


def _boot() -> bytes:
    """What changes when the machine starts again, and the clock with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""
