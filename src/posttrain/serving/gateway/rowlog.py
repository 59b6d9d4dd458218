"""Rows of one worker on their way to the log.

Here: writing them under the policy for a full disk, waiting for the disk under ``strict``. Not here: what is in them
(``exchange``, ``shadow``, ``feedback``), files (``traffic.segments``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from posttrain.serving.assignment import bucket
from posttrain.serving.errors import TrafficLogError
from posttrain.serving.gateway.metrics import Metrics
from posttrain.serving.traffic.segments import SegmentWriter

_SALT = "content"
_WHITE = tuple(b"\n\r\t")
"""Numbers, which bytes are searched for at once; what is itself bytes only after an exception."""


class RowLog:
    """The log as the hot path sees it."""

    def __init__(self, writer: SegmentWriter, metrics: Metrics) -> None:
        self._writer = writer
        self._metrics = metrics
        self._strict = writer.strict
        self.refuses = writer.config.on_full == "refuse"
        """Whether requests are refused while rows cannot be written."""
        self._content = writer.config.content
        self._share = writer.config.content_share
        self.failing: str | None = None
        """Why the last row could not be written."""

    def write(self, row: bytes) -> int | None:
        """Append a row: its position; 0 where it is lost and that is allowed; None where it must not be lost."""
        try:
            position = self._writer.append(row)
        except TrafficLogError as error:
            self.failing = error.message
            if self.refuses:
                return None
            self._metrics.lost_rows += 1
            return 0
        self.failing = None
        return position

    def settle(self, position: int, then: Callable[[bool], None]) -> None:
        """Go on once a row is as safe as configured; False: it can no longer be promised."""
        if self._strict and position:
            self._writer.on_synced(position, then)
        else:
            then(True)

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
        """Everything on the disk, the segment sealed."""
        self._writer.close()


def as_it_came(body: bytes) -> Any:
    """A request's body for a row, not parsed and written again where its bytes can stand in a row as they are."""
    for white in _WHITE:
        if white in body:  # JSON text in a row has no control characters: readers of broken files rely on it
            return orjson.loads(body)
    return orjson.Fragment(body)
