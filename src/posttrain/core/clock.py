"""Clocks, in one place: RFC 3339 UTC text.

Here: the wall clock, whose time never enters an artifact, only run records; and the clock that whatever is frozen is
handed instead. Not here: measuring how long something takes (``time.monotonic``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


def utc_now() -> str:
    """Now, as ``2026-11-23T15:04:05.123456Z``."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Clock(Protocol):
    """Anything that can be asked for the time."""

    def now(self) -> str:
        """RFC 3339 text, UTC."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The wall clock."""

    def now(self) -> str:
        """See :class:`Clock`."""
        return utc_now()


@dataclass(frozen=True, slots=True)
class FixedClock:
    """A clock that stands still: what a frozen world is handed."""

    at: str
    """RFC 3339 text in UTC, ending in ``Z``."""

    def __post_init__(self) -> None:
        try:
            parsed = datetime.fromisoformat(self.at)
        except ValueError:
            parsed = None
        if parsed is None or not self.at.endswith("Z") or "T" not in self.at:
            raise ValueError(f"{self.at!r} is not a time in UTC such as 2026-01-01T00:00:00Z")

    def now(self) -> str:
        """See :class:`Clock`."""
        return self.at
