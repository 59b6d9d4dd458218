"""Rows of one worker on their way to the log.

Here: writing them under the policy for a full disk, waiting for the disk under ``strict``. Not here: what is in them
(``exchange``, ``shadow``, ``feedback``), files (``traffic.segments``).

All rows of one turn of the loop are one write, before anything that waits for one of them goes on: under load a turn
has a dozen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import orjson

from posttrain.core.buckets import bucket
from posttrain.serving.gateway.metrics import Metrics
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.segments import SegmentWriter

Kept = Callable[[bool], None]
"""Told True when the row is as safe as configured, False when that cannot be promised."""

_SALT = "content"
_WHITE: Final = tuple(b"\n\r\t")
"""Numbers, which bytes are searched for at once; what is itself bytes only after an exception."""
_log = logging.getLogger(__name__)


class RowLog:
    """The log as the hot path sees it. Made and used in one running event loop."""

    def __init__(self, writer: SegmentWriter, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._rows: list[tuple[bytes, Kept, bool]] = []
        """Of this turn of the loop: the row, who waits for it, whether it waits for the disk, too."""
        self._writer = writer
        self._metrics = metrics
        self._strict = writer.strict
        self.refuses = writer.config.on_full == "refuse"
        """Whether requests are refused while rows cannot be written."""
        self._content = writer.config.content
        self._share = writer.config.content_share
        self.failing: str | None = None
        """Why the last row could not be written."""

    def put(self, row: bytes, then: Kept, *, on_disk: bool = True) -> None:
        """Write a row and go on, never from within this call; rows are written in the order of the calls.

        Args:
            row: One JSON object.
            then: Told True also where the row is lost and that is allowed.
            on_disk: Whether to wait for the disk where answers do (``strict``).
        """
        if not self._rows:
            self._loop.call_soon(self.flush)
        self._rows.append((row, then, on_disk))

    def flush(self) -> None:
        """Write what was put, now."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            written = self._writer.append_all([row for row, _, _ in rows])
            position = self._writer.position
            self.failing = None
        except TrafficLogError:
            written = position = 0
        for _, then, on_disk in rows[:written]:
            self._go_on(then, position if on_disk else 0)
        # Each for itself: one may be too long, or fit where two do not.
        for row, then, on_disk in rows[written:]:
            self._put_alone(row, then, on_disk)

    def _put_alone(self, row: bytes, then: Kept, on_disk: bool) -> None:
        position = 0
        try:
            position = self._writer.append(row)
            self.failing = None
        except TrafficLogError as error:
            self.failing = error.message
            if self.refuses:
                self._tell(then, False)
                return
            self._metrics.lost_rows += 1
        self._go_on(then, position if on_disk else 0)

    def _go_on(self, then: Kept, position: int) -> None:
        """Now, or once everything up to this position is on the disk."""
        if self._strict and position:
            self._writer.on_synced(position, then)
        else:
            self._tell(then, True)

    def _tell(self, then: Kept, kept: bool) -> None:
        try:
            then(kept)
        except Exception:  # the other rows of this turn are waited for, too
            _log.exception("gateway: a fault of ours after a row was written")

    def content_of(self, unit: str) -> str:
        """Whether content is kept: ``full``, ``sampled-out`` or ``off``."""
        if self._content == "sampled":
            return "full" if bucket(_SALT, unit) < self._share else "sampled-out"
        return self._content

    @property
    def backlog_bytes(self) -> int:
        """Written and not yet on the disk."""
        return self._writer.backlog_bytes

    def close(self) -> None:
        """Everything that was written on the disk, the segment sealed. From any thread, after a last flush."""
        self._writer.close()


def as_it_came(body: bytes) -> Any:
    """A request's body for a row, not parsed and written again where its bytes can stand in a row as they are."""
    for white in _WHITE:
        if white in body:  # JSON text in a row has no control characters: readers of broken files rely on it
            return orjson.loads(body)
    return orjson.Fragment(body)
