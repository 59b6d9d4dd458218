"""When to ask an upstream again, and when to leave it alone.

Here: the circuit breaker of one upstream, and the budget of repeats of one worker; both are plain arithmetic on times
that they are given. Not here: what counts as a failure (``exchange``).
"""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

from posttrain.serving.gateway.config import BreakerConfig, RetryConfig

BreakerState: TypeAlias = Literal["closed", "open", "half-open"]


class Breaker:
    """Opens on failures in a row or on their share; half open, it lets one probe through at a time.

    Every worker has its own: no shared state is asked on the way of a request.
    """

    __slots__ = ("_config", "_failed_in_row", "_last", "_open_seconds", "_until", "opened", "state")

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self.state: BreakerState = "closed"
        self.opened = 0
        """How often it opened."""
        self._failed_in_row = 0
        self._last: deque[bool] = deque(maxlen=config.window)
        self._until = 0.0
        """When it lets the next probe through."""
        self._open_seconds = config.open_seconds

    def allows(self, now: float) -> bool:
        """Whether a call may go out now; a true answer while it is not closed makes that call the probe."""
        if self.state == "closed":
            return True
        if now < self._until:
            return False
        # A probe that never reports back (its client went away) must not leave the upstream alone for ever.
        self.state = "half-open"
        self._until = now + self._open_seconds
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        if self.state != "closed":
            self.state = "closed"
            self._last.clear()
            self._open_seconds = self._config.open_seconds
        self._failed_in_row = 0
        self._last.append(True)

    def failed(self, now: float) -> None:
        """A call failed."""
        self._failed_in_row += 1
        self._last.append(False)
        if self.state == "half-open":
            self._open_seconds = min(self._open_seconds * 2, self._config.max_open_seconds)
            self._open(now)
        elif self.state == "closed" and self._is_bad():
            self._open(now)

    def _is_bad(self) -> bool:
        if self._failed_in_row >= self._config.failures:
            return True
        # Counted only after a failure, so that a healthy upstream pays nothing for it.
        full = len(self._last) == self._config.window
        return full and self._last.count(False) >= self._config.share * self._config.window

    def _open(self, now: float) -> None:
        self.state = "open"
        self.opened += 1
        self._until = now + self._open_seconds


class RetryBudget:
    """Repeats are paid from a bucket into which every request puts a little."""

    __slots__ = ("_full", "_ratio", "tokens")

    def __init__(self, config: RetryConfig) -> None:
        self._ratio = config.budget_ratio
        self._full = max(config.budget_burst, config.budget_ratio)
        self.tokens = config.budget_burst
        """Repeats that may be made now."""

    def earn(self) -> None:
        """A request came."""
        if self.tokens < self._full:
            self.tokens = min(self._full, self.tokens + self._ratio)

    def spend(self) -> bool:
        """Take one repeat, if there is one."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True
