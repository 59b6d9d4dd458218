"""Quantiles by order statistics, and ratios of sums.

Here: what latencies, steps and costs need. Not here: rates (``statistics``, ``exact``). A quantile is always an
observed value, the inverted distribution function ``x_(ceil(q n))``; numpy's default interpolates between two values,
so that a median of whole steps need not be one. Its bounds are order statistics too: exact for any distribution, ties
only make them wider.

A missing value may be given as an infinity: the quantile then moves as far as that value could move it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from posttrain.statistics.intervals import Estimate

_NANO = 1e9


class Ranks(NamedTuple):
    """1-based ranks of a quantile and of its bounds in the sorted values."""

    point: int
    low: int
    """0 where n is too small for a lower bound: it is minus infinity."""
    high: int
    """n + 1 where n is too small for an upper bound: it is plus infinity."""


def quantile_ranks(trials: int, quantile: Fraction, *, confidence: float = 0.95) -> Ranks:
    """The ranks of the quantile and of its two-sided bounds among ``trials`` values.

    ``x_(high)`` with ``high = 1 + F^-1(1 - a/2)`` and ``x_(low)`` with ``low = F^-1(a/2)``, F of Bin(n, q): what
    scipy's ``quantile_test`` and R's ``quantileCI`` give (Conover 1999).
    """
    if trials < 1 or not 0 < quantile < 1:
        raise ValueError(f"no quantile {quantile} of {trials} values")
    tail = (1 - confidence) / 2
    return Ranks(
        point=math.ceil(quantile * trials),
        low=_binomial_quantile(tail, trials, float(quantile)),
        high=1 + _binomial_quantile(1 - tail, trials, float(quantile)),
    )


def quantile_interval(
    values: NDArray[Any] | Sequence[float], quantile: Fraction, *, confidence: float = 0.95
) -> Estimate:
    """The quantile with its order-statistic bounds; infinite where n is too small for one."""
    array = np.asarray(values)
    ranks = quantile_ranks(len(array), quantile, confidence=confidence)
    wanted = sorted({rank - 1 for rank in ranks if 1 <= rank <= len(array)})
    parted = np.partition(array, wanted)

    def at(rank: int) -> float:
        if rank < 1:
            return -math.inf
        return float(parted[rank - 1]) if rank <= len(array) else math.inf

    return Estimate(at(ranks.point), at(ranks.low), at(ranks.high))


def quantile_point(values: NDArray[Any], quantile: Fraction) -> float:
    """The quantile alone, ``x_(ceil(q n))``."""
    rank = math.ceil(quantile * len(values)) - 1
    return float(np.partition(values, rank)[rank])


def smallest_run_with_upper_bound(quantile: Fraction, *, confidence: float = 0.95) -> int:
    """The fewest values whose quantile has a finite upper bound: for p95, 72 at two-sided 95 % and 59 at 90 %."""
    tail = (1 - confidence) / 2
    trials = max(1, math.floor(math.log(tail) / math.log(float(quantile))) - 1)
    while quantile_ranks(trials, quantile, confidence=confidence).high > trials:
        trials += 1
    return trials


class Ratio(NamedTuple):
    """A ratio of two sums."""

    value: Fraction
    """Exact where ``exact``; else of the correctly rounded sums."""
    low: float
    high: float
    exact: bool
    """Whether every term was a whole number of billionths, so that the sums are exact."""


def ratio_of_sums(
    numerator: NDArray[Any],
    denominator: NDArray[Any],
    *,
    scale: int = 1,
    clusters: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
) -> Ratio:
    """``scale * sum(numerator) / sum(denominator)`` with the linearised interval; never the mean of ratios.

    The residuals ``e = numerator - R * denominator`` have mean zero; their spread, over clusters where given (sessions,
    cases), gives the standard error ``scale * sqrt(C / (C - 1) * sum(E_c**2)) / sum(denominator)``. Student's t with
    C - 1 degrees. The interval is infinite for fewer than two clusters. *Not covered*: a few huge terms that carry the
    sum, which no interval from the sample sees.
    """
    if len(numerator) != len(denominator) or len(numerator) == 0:
        raise ValueError(f"{len(numerator)} terms above, {len(denominator)} below")
    above, below = _exact_sum(numerator), _exact_sum(denominator)
    if below.value <= 0:
        raise ValueError("the sum below the line is not positive")
    value = scale * above.value / below.value
    residuals: NDArray[Any] = numerator - float(above.value / below.value) * denominator
    if clusters is not None:
        residuals = np.bincount(clusters, weights=residuals)
    count = len(residuals)
    half = math.inf
    if count > 1:
        spread = math.sqrt(count / (count - 1) * float(residuals @ residuals))
        half = float(special.stdtrit(count - 1, 0.5 + confidence / 2)) * scale * spread / float(below.value)
    return Ratio(value, float(value) - half, float(value) + half, above.exact and below.exact)


class _Sum(NamedTuple):
    value: Fraction
    exact: bool


def _exact_sum(values: NDArray[Any]) -> _Sum:
    """The sum as decimals would add up: in billionths where all values are such, else correctly rounded."""
    if values.dtype.kind in "iub":
        return _Sum(Fraction(_whole_sum(values.astype(np.int64))), True)
    with np.errstate(over="ignore", invalid="ignore"):
        nano = np.rint(values * _NANO)
        grid = bool(np.all(np.abs(nano) < 2**53)) and bool(np.all(nano / _NANO == values))
    if grid:
        return _Sum(Fraction(_whole_sum(nano.astype(np.int64)), 10**9), True)
    return _Sum(Fraction(math.fsum(values.tolist())), False)


def _whole_sum(values: NDArray[np.int64]) -> int:
    """The sum, in halves of 32 bits so that it cannot overflow."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFF_FFFF).sum())


def _binomial_quantile(level: float, trials: int, rate: float) -> int:
    """The smallest k with ``P(Bin(trials, rate) <= k) >= level``."""
    low, high = -1, trials
    while high - low > 1:
        middle = (low + high) // 2
        if special.bdtr(middle, trials, rate) >= level:
            high = middle
        else:
            low = middle
    return high
