"""The time on rows: milliseconds since 1970 that never go back within a process.

Here: one clock. Not here: durations, which are differences of ``time.monotonic``. The time is the wall clock's when the
process began, plus what the monotonic clock says has passed; where the wall clock moves away from that, this clock
follows: forward at once, back by running at half speed until the two agree. A jump is noted, so that a report can say
that its times around it are not to be trusted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

JUMP_MS = 1000
"""A step of the wall clock that is larger than this is noted; smaller ones are what NTP does all day."""
_LOOK_NS = 100_000_000
_KEPT_JUMPS = 100


class ClockJump(NamedTuple):
    """A step of the wall clock."""

    at_ms: int
    """By this clock, when it was seen."""
    by_ms: int
    """How far: negative is back."""


class MonotonicWallClock:
    """``now_ms`` costs two calls of the system's clocks at most; the wall clock is looked at ten times a second."""

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._base_ns = wall_ns() - monotonic_ns()
        """Wall clock minus monotonic clock, as far as this clock follows it."""
        self._seen_ns = self._base_ns
        """The same as it was last seen."""
        self._look_at_ns = monotonic_ns() + _LOOK_NS
        self._last_ms = 0
        self.jumps: tuple[ClockJump, ...] = ()
        """The last hundred jumps, oldest first."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, never less than before."""
        now = self._monotonic_ns()
        if now >= self._look_at_ns:
            self._look(now)
        at_ms = (now + self._base_ns) // 1_000_000
        if at_ms < self._last_ms:
            return self._last_ms
        self._last_ms = at_ms
        return at_ms

    def _look(self, now: int) -> None:
        passed = now - self._look_at_ns + _LOOK_NS
        self._look_at_ns = now + _LOOK_NS
        seen = self._wall_ns() - now
        step_ms = (seen - self._seen_ns) // 1_000_000
        self._seen_ns = seen
        if abs(step_ms) > JUMP_MS:
            jump = ClockJump((now + self._base_ns) // 1_000_000, step_ms)
            self.jumps = (*self.jumps[-_KEPT_JUMPS + 1 :], jump)
        # Back no faster than time goes on by half, so that rows keep their order and no time is given twice for long.
        self._base_ns = max(seen, self._base_ns - passed // 2)
