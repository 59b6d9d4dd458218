"""Decisions about counts that no rounding can turn: tails of the binomial at a decimal threshold, exact paired tests.

Here: functions from counts and exact fractions to a decision or a p-value. Not here: intervals for display
(``statistics``), how many cases a decision needs (``power``), what a rule does with it (``promotion``). Thresholds come
in as ``Fraction``, made of the text that a person wrote, so 0.07 is seven hundredths: in binary floats
``0.57 - 0.50 >= 0.07`` is false.

No random numbers: numpy may change its streams between versions (NEP 19), and a gate must give the same verdict for
ever. Where signs are drawn they come from SHAKE-256 of a counter.

*Covered*: independent cases, one outcome each; for several samples a case, sign flips over cases. *Not covered*: cases
that depend on each other (the same document asked twice); looking again while data grow (``sequential``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import comb
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from posttrain.statistics.intervals import Interval, wilson

Alternative: TypeAlias = Literal["greater", "less", "two-sided"]

FLIPS = 9_999
"""Sign flips where they cannot all be enumerated: the smallest p-value is 1 / (1 + FLIPS)."""
_ENUMERATE = 20
# A float tail this close to the level is computed again in integers; scipy's own error is far smaller.
_NEAR = 1e-7
_SEED = b"posttrain/sign-flip/1:"
_BLOCK_BYTES = 1 << 22


def as_fraction(value: float | int | str | Decimal | Fraction) -> Fraction:
    """The number as a person would write it: a float stands for its shortest decimal form."""
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def upper_tail(successes: int, trials: int, rate: Fraction) -> float:
    """``P(Bin(trials, rate) >= successes)``."""
    if successes <= 0:
        return 1.0
    return float(special.bdtrc(successes - 1, trials, float(rate)))


def upper_tail_is_at_most(
    successes: int, trials: int, rate: Fraction, level: Fraction, *, strictly: bool = False
) -> bool:
    """Whether ``P(Bin(trials, rate) >= successes) <= level``, decided exactly.

    In floats where the two are clearly apart, else in integers.
    """
    tail = upper_tail(successes, trials, rate)
    if abs(tail - float(level)) > _NEAR * float(level):
        return tail < float(level)
    exact = _exact_upper_tail(successes, trials, rate)
    return exact < level if strictly else exact <= level


def lower_bound_reaches(
    successes: int, trials: int, threshold: Fraction, *, confidence: Fraction, strictly: bool = False
) -> bool:
    """Whether the lower end of the two-sided Clopper-Pearson interval is ``>= threshold`` (``>`` strictly).

    The same as ``P(Bin(trials, threshold) >= successes) <= (1 - confidence) / 2``, so nothing is inverted and no bound
    is rounded. A model that is exactly at the threshold passes at most that often.
    """
    if threshold <= 0 or successes == 0:  # the bound of no success is 0, that of any other count is above it
        return threshold < 0 or (threshold == 0 and not (strictly and successes == 0))
    if threshold > 1 or (threshold == 1 and strictly):
        return False
    return upper_tail_is_at_most(successes, trials, threshold, (1 - confidence) / 2, strictly=strictly)


def upper_bound_reaches(
    successes: int, trials: int, threshold: Fraction, *, confidence: Fraction, strictly: bool = False
) -> bool:
    """Whether the upper end of the two-sided Clopper-Pearson interval is ``<= threshold`` (``<`` strictly)."""
    return lower_bound_reaches(
        trials - successes, trials, 1 - threshold, confidence=confidence, strictly=strictly
    )


def mcnemar(gained: int, lost: int, alternative: Alternative = "greater") -> float:
    """Exact McNemar p-value. ``greater``: ``P(Bin(gained + lost, 1/2) >= gained)``, the chance of so many gains.

    Cases that did not change say nothing about the direction and do not enter. 1 where none changed.
    """
    if min(gained, lost) < 0:
        raise ValueError(f"gained {gained} and lost {lost} are counts")
    changed, half = gained + lost, Fraction(1, 2)
    if alternative == "two-sided":
        return min(1.0, 2 * upper_tail(max(gained, lost), changed, half))
    return upper_tail(gained if alternative == "greater" else lost, changed, half)


def mcnemar_is_below(
    gained: int, lost: int, level: Fraction, alternative: Alternative, *, strictly: bool
) -> bool:
    """Whether :func:`mcnemar` is ``<= level`` (``<`` strictly), decided exactly."""
    sides = 2 if alternative == "two-sided" else 1
    most = {"greater": gained, "less": lost, "two-sided": max(gained, lost)}[alternative]
    if level >= 1:
        return level > 1 or not strictly or mcnemar(gained, lost, alternative) < 1
    return upper_tail_is_at_most(most, gained + lost, Fraction(1, 2), level / sides, strictly=strictly)


def newcombe_interval(table: Sequence[int], *, confidence: float = 0.95) -> Interval:
    """The paired difference of two proportions by Newcombe's method 10 (1998), for display beside Tango's.

    ``table`` counts the cases: right in both, gained (right after only), lost (right before only), wrong in both.
    """
    both, gained, lost, neither = table
    cases = both + gained + lost + neither
    after, before = both + gained, both + lost
    first, second = (
        wilson(after, cases, confidence=confidence),
        wilson(before, cases, confidence=confidence),
    )
    rate_after, rate_before = after / cases, before / cases
    product = after * (cases - after) * before * (cases - before)
    covariance = float(both * neither - gained * lost)
    if covariance > 0:  # Newcombe's continuity correction of phi
        covariance = max(covariance - cases / 2, 0.0)
    phi = covariance / product**0.5 if product > 0 else 0.0

    def spread(up: float, down: float) -> float:
        return float(max(0.0, up * up - 2 * phi * up * down + down * down) ** 0.5)

    difference = (gained - lost) / cases
    low = difference - spread(rate_after - first.low, second.high - rate_before)
    high = difference + spread(first.high - rate_after, rate_before - second.low)
    return Interval(low, high)


class Flips(NamedTuple):
    """The result of a sign-flip test."""

    p_value: Fraction
    flips: int
    """Sign patterns looked at."""
    exact: bool
    """Whether that was all of them."""


def sign_flip(differences: Sequence[Fraction], alternative: Alternative = "greater") -> Flips:
    """Permutation p-value of the sum of per-case differences: under no effect each sign is as likely as the other.

    All ``2**m`` patterns of the m cases that differ where m <= 20, else ``FLIPS`` fixed ones and ``(1 + r) / (1 + B)``.
    Sums are of integers, so ties are ties; the differences are sorted first, so neither the order nor the names of
    the cases move the result.
    """
    changed = [d for d in differences if d]
    if not changed:
        return Flips(Fraction(1), 1, True)
    scale = int(np.lcm.reduce([d.denominator for d in changed]))
    ordered = sorted(int(d * scale) for d in changed)
    if alternative == "less":
        ordered = sorted(-value for value in ordered)
    observed, sizes = sum(ordered), np.array([abs(value) for value in ordered], dtype=np.int64)
    sizes.sort()
    sums = _all_sums(sizes) if len(sizes) <= _ENUMERATE else _drawn_sums(sizes)
    if alternative == "two-sided":
        sums, observed = np.abs(sums), abs(observed)
    hits = int(np.count_nonzero(sums >= observed))
    if len(sizes) <= _ENUMERATE:
        return Flips(Fraction(hits, len(sums)), len(sums), True)
    return Flips(Fraction(1 + hits, 1 + FLIPS), FLIPS, False)


def _all_sums(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    sums = np.zeros(1, np.int64)
    for size in sizes:
        sums = np.concatenate([sums + size, sums - size])
    return sums


def _drawn_sums(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums under ``FLIPS`` sign patterns; pattern i is SHAKE-256 of the counter i, a bit a case."""
    width = (len(sizes) + 7) // 8
    per_block = max(1, _BLOCK_BYTES // (8 * width))
    found = []
    for start in range(0, FLIPS, per_block):
        counters = range(start, min(FLIPS, start + per_block))
        raw = b"".join(
            hashlib.shake_256(_SEED + counter.to_bytes(8, "big")).digest(width) for counter in counters
        )
        bits = np.unpackbits(
            np.frombuffer(raw, np.uint8).reshape(len(counters), width), axis=1, count=len(sizes)
        )
        # Sums of integers below 2**53 are exact in float64, whose product is many times quicker.
        found.append(2 * (bits @ sizes.astype(np.float64)) - float(sizes.sum()))
    return np.concatenate(found).astype(np.int64)


def _exact_upper_tail(successes: int, trials: int, rate: Fraction) -> Fraction:
    """The tail as a fraction, summed over its shorter side in integers over one denominator."""
    up, whole = rate.numerator, rate.denominator
    down = whole - up
    if up == 0 or down == 0:
        return Fraction(int((trials if down == 0 else 0) >= successes))
    upper = 2 * successes > trials
    outcomes = range(successes, trials + 1) if upper else range(successes)
    first = outcomes.start
    term = comb(trials, first) * up**first * down ** (trials - first) if len(outcomes) else 0
    total = 0
    for count in outcomes:
        total += term
        term = term * (trials - count) * up // ((count + 1) * down)
    tail = Fraction(total, whole**trials)
    return tail if upper else 1 - tail
