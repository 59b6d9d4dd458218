"""Back-pressure: how many are answered at once, and who waits.

Here: places and the queue for them. Not here: what is told to who gets none (``exchange``).
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple, Protocol, TypeAlias

from posttrain.serving.gateway.config import LimitsConfig

Entry: TypeAlias = Literal["in", "waits", "full"]


class Guest(Protocol):
    """Whoever wants a place."""

    def admitted(self) -> None:
        """There is a place now, and it is taken."""

    def turned_away(self) -> None:
        """It waited too long."""


class _Waiting(NamedTuple):
    until: float
    guest: Guest


class Admission:
    """Places of one worker."""

    __slots__ = ("_limits", "_places", "_queue", "_seating", "in_flight")

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._places = limits.max_in_flight
        self._queue: deque[_Waiting] = deque()
        self._seating = False
        self.in_flight = 0
        """Places taken."""

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    def enter(self, guest: Guest, now: float) -> Entry:
        """Take a place, or wait for one."""
        if self.in_flight < self._places and not self._queue:
            self.in_flight += 1
            return "in"
        if self._limits.policy == "shed" or len(self._queue) >= self._limits.queue:
            return "full"
        self._queue.append(_Waiting(now + self._limits.queue_seconds, guest))
        return "waits"

    def leave(self) -> None:
        """Give a place back; who waits longest has it."""
        self.in_flight -= 1
        if self._seating:
            return  # one that fails at once leads on to the next in the loop below, not by recursion
        self._seating = True
        while self._queue and self.in_flight < self._places:
            self.in_flight += 1
            self._queue.popleft().guest.admitted()
        self._seating = False

    def give_up(self, guest: Guest) -> None:
        """Wait no longer."""
        self._queue = deque(item for item in self._queue if item.guest is not guest)

    def sweep(self, now: float) -> None:
        """Turn away who waited too long."""
        while self._queue and self._queue[0].until < now:
            self._queue.popleft().guest.turned_away()
