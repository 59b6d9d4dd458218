"""What a trigger sees, and how often it is wrong: the chance that it has fired by each look.

Here: exact for rates and counts (the distribution of the count, followed from look to look), simulated with a fixed
stream for the asymptotic ones. Not here: which triggers (``plan``). The streams are Philox's raw words, which NumPy
promises not to change, so a figure is the same on every machine up to the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from posttrain.statistics.sequential import log_evidence, sequence_half_width

_TINY = 1e-18
_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True)
class Detection:
    """At one true value: the chance to have fired by each look."""

    looks: tuple[int, ...]
    """Requests at each look."""
    fired: tuple[float, ...]

    @property
    def probability(self) -> float:
        """By the last look."""
        return self.fired[-1] if self.fired else 0.0

    @property
    def median(self) -> int | None:
        """Requests by which it has fired half of the time; None where it never gets there."""
        return next((n for n, p in zip(self.looks, self.fired, strict=True) if p >= 0.5), None)

    def by(self, requests: int) -> float:
        """The chance to have fired at or before ``requests``."""
        return max((p for n, p in zip(self.looks, self.fired, strict=True) if n <= requests), default=0.0)


def looks_of(requests: int, looks: int | None = None) -> tuple[int, ...]:
    """``looks`` even ones up to ``requests``; None: after every request, thinned beyond 5,000."""
    count = min(requests, 5000) if looks is None else min(looks, requests)
    return tuple(sorted({round(requests * (index + 1) / count) for index in range(count)}))


@cache
def boundary(limit: float, alpha: float, looks: tuple[int, ...]) -> tuple[int, ...]:
    """The fewest events at each look that roll back; one more than the look where none do."""
    trials = np.asarray(looks)
    low, high = np.full(len(looks), -1), trials + 1  # evidence grows with events: bisect all looks at once
    while np.any(high - low > 1):
        middle = (low + high) // 2
        enough = (middle <= trials) & (
            log_evidence(np.minimum(middle, trials), trials, limit) >= -math.log(alpha)
        )
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return tuple(int(value) for value in high)


def rate_detection(limit: float, rate: float, *, alpha: float, looks: Sequence[int]) -> Detection:
    """Of the e-process against ``limit``, at the true ``rate``. Exact."""
    points = tuple(looks)
    bounds = boundary(limit, alpha, points)
    # chances[i]: that there were `low + i` events and it has not fired.
    chances, low, before, fired, total = np.ones(1), 0, 0, [], 0.0
    for index, (look, bound) in enumerate(zip(points, bounds, strict=True)):
        chances = np.convolve(chances, _binomial(look - before, rate))
        before = look
        cut = max(0, bound - low)
        if cut < len(chances):
            total += float(chances[cut:].sum())
            chances = chances[:cut]
        fired.append(total)
        if index % 32 == 31:
            kept = np.flatnonzero(chances > _TINY)
            if not len(kept):
                fired += [total] * (len(points) - len(fired))
                break
            low += int(kept[0])
            chances = chances[kept[0] : kept[-1] + 1]
    return Detection(points, tuple(min(1.0, value) for value in fired))


@cache
def _binomial(trials: int, rate: float) -> NDArray[np.float64]:
    most = int(stats.binom.ppf(1 - 1e-16, trials, rate)) + 1 if trials > 64 else trials
    return np.asarray(stats.binom.pmf(np.arange(min(most, trials) + 1), trials, rate))


def count_detection(limit: int, rate: float, *, looks: Sequence[int]) -> Detection:
    """Of a hard trip at more than ``limit`` events. Exact."""
    fired = stats.binom.sf(limit, np.asarray(looks), rate)
    return Detection(tuple(looks), tuple(float(value) for value in fired))


def ratio_detection(
    excess: float, spread: float, *, alpha: float, looks: Sequence[int], planned: int, minimum: int = 200
) -> Detection:
    """Of a ratio's trigger, where the true ratio is ``1 + excess`` times its limit and requests differ by ``spread``,
    the standard deviation of their excess. Simulated."""
    points = np.asarray([look for look in looks if look >= minimum])
    if not len(points):
        return Detection(tuple(looks), (0.0,) * len(looks))
    steps = np.diff(points, prepend=0)
    draws = special.ndtri(_uniforms(_REPEATS * len(points), "ratio")).reshape(_REPEATS, len(points))
    means = np.cumsum(excess * steps + spread * np.sqrt(steps) * draws, axis=1) / points
    halves = np.asarray(
        [sequence_half_width(spread**2, int(n), alpha=alpha, planned=planned) for n in points]
    )
    return _first(means > halves, points, looks)


def comparison_detection(
    rates: tuple[float, float], *, alpha: float, looks: Sequence[int], planned: int, margin: float = 0.0
) -> Detection:
    """Of a comparison of two rates, the candidate's first; ``looks`` count the requests of one arm, both have as many.
    Simulated."""
    points = np.asarray(looks)
    steps = np.diff(points, prepend=0)
    sums = []
    for arm, rate in zip(("candidate", "control"), rates, strict=True):
        draws = _uniforms(_REPEATS * len(points), arm).reshape(_REPEATS, len(points))
        counts = np.empty(draws.shape)
        for step in set(steps.tolist()):
            columns = steps == step
            counts[:, columns] = np.searchsorted(
                stats.binom.cdf(np.arange(step + 1), step, rate), draws[:, columns]
            )
        sums.append(np.cumsum(counts, axis=1) / points)
    variance = sum(p * (1 - p) for p in sums) / points
    totals = 2 * points
    halves = np.asarray(
        [sequence_half_width(1.0, int(n), alpha=alpha, planned=planned) for n in totals]
    ) * np.sqrt(variance * totals)
    return _first((sums[0] - sums[1] - halves > margin) & (points >= 200), points, looks)


_REPEATS = 4000
"""Of a simulation: a chance of 5 % is known to within 0.7 points."""


def _first(over: NDArray[np.bool_], points: NDArray[np.int64], looks: Sequence[int]) -> Detection:
    known = dict(zip(points.tolist(), np.maximum.accumulate(over, axis=1).mean(axis=0).tolist(), strict=True))
    return Detection(tuple(looks), tuple(known.get(look, 0.0) for look in looks))


def _uniforms(count: int, stream: str) -> NDArray[np.float64]:
    """In the open interval from 0 to 1."""
    generator = np.random.Philox(key=int.from_bytes(stream.encode()[:8].ljust(8, b"\0"), "little"))
    raw = np.asarray(generator.random_raw(count), np.uint64)
    return (np.right_shift(raw, np.uint64(11)).astype(np.float64) + 0.5) * _UNIT
