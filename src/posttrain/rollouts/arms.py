"""Candidate against control: moments of each arm, and their difference over strata.

Here: arithmetic. Not here: which rows are in an arm (``observe``), when a difference is enough (``triggers``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moments:
    """A count of values, their mean and variance."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of_rate(cls, events: int, trials: int) -> Moments:
        """Of zeros and ones."""
        mean = events / trials if trials else 0.0
        return cls(trials, mean, mean * (1 - mean))

    @classmethod
    def of_sums(cls, count: int, total: int, squares: int) -> Moments:
        """Of whole numbers, exactly until the last division."""
        if not count:
            return cls(0, 0.0, 0.0)
        return cls(count, total / count, (squares * count - total * total) / (count * count))


@dataclass(frozen=True, slots=True)
class Difference:
    """Candidate less control over strata."""

    value: float
    variance: float
    """Of a value, such that ``variance / count`` is the difference's."""
    count: int
    """Of both arms."""
    candidate: int
    control: int


def difference(pairs: list[tuple[Moments, Moments]]) -> Difference | None:
    """Candidate less control, over strata in which both have a value, weighted by the candidate's counts."""
    kept = [(a, b) for a, b in pairs if a.count and b.count]
    candidate, control = sum(a.count for a, _ in kept), sum(b.count for _, b in kept)
    if not candidate:
        return None
    value = math.fsum(a.count * (a.mean - b.mean) for a, b in kept) / candidate
    variance = math.fsum(
        (a.count / candidate) ** 2 * (a.variance / a.count + b.variance / b.count) for a, b in kept
    )
    count = candidate + control
    return Difference(value, variance * count, count, candidate, control)
