"""Counting samples that could not be scored, and stopping when they are too many.

Here: the counters and the limit. Not here: other health checks of training.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from posttrain.core.errors import HealthError
from posttrain.rewards.records import MEMORY, NO_MATH_VERIFY, TIMEOUT, Score

WINDOW_SAMPLES = 1000
"""The rate is taken over this many samples, the latest ones."""
LEAST_SAMPLES = 200
"""Fewer samples count as this many, so that one bad sample at the start stops nothing."""

_HINTS = {
    TIMEOUT: "raise rewards.timeout_seconds, or look at the completions that hang the verification",
    MEMORY: "raise rewards.worker_memory_mib",
    NO_MATH_VERIFY: "pip install 'posttrain[train]'",
}


class RewardMonitor:
    """Counts what was scored and what was not."""

    def __init__(self, max_none_rate: float) -> None:
        self.max_none_rate = max_none_rate
        self.total = 0
        """Samples seen."""
        self.none_by_reason: Counter[str] = Counter()
        """Samples without a value since the start, by reason."""
        self._window: deque[str | None] = deque(maxlen=WINDOW_SAMPLES)

    @property
    def none_total(self) -> int:
        """Samples without a value since the start."""
        return self.none_by_reason.total()

    @property
    def none_rate(self) -> float:
        """Share without a value among the latest ``WINDOW_SAMPLES``; 0.0 before the first."""
        return sum(reason is not None for reason in self._window) / len(self._window) if self._window else 0.0

    def record(self, scores: Iterable[Score]) -> None:
        """Count ``scores``."""
        for score in scores:
            self.total += 1
            reason = score.reason if score.value is None else None
            self._window.append(reason)
            if reason is not None:
                self.none_by_reason[reason] += 1

    def check(self) -> None:
        """Raise HealthError where more than ``max_none_rate`` of the window has no value."""
        reasons = Counter(reason for reason in self._window if reason is not None)
        if reasons.total() <= self.max_none_rate * max(len(self._window), LEAST_SAMPLES):
            return
        worst, count = reasons.most_common(1)[0]
        raise HealthError(
            f"{reasons.total()} of the last {len(self._window)} completions could not be scored "
            f"(limit {self.max_none_rate:.1%}); most often: {worst} ({count})",
            hint=_HINTS.get(
                worst, "check the prompts' answers with the preflight, or raise rewards.max_none_rate"
            ),
        )
