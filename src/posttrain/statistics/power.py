"""How many cases a decision needs, and how often a model that deserves to pass does.

Here: arithmetic before an evaluation, for ``posttrain gate lint`` and for the number beside INCONCLUSIVE. Not here: the
decisions themselves (``exact``). Everything for rates is of the exact Clopper-Pearson decision, not of a normal
approximation; paired differences use the usual normal formulas, since the discordance must be guessed anyway.

The power of an exact test saws up and down by a few points as n grows; a size found by bisection is one at which the
power is reached, within a few cases of the smallest such size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from scipy import special

from posttrain.statistics.exact import upper_tail_is_at_most

POWER = 0.8
"""The power that a number of cases is stated for unless another is asked for."""
_MOST = 10_000_000


def passing_count(trials: int, threshold: Fraction, *, confidence: Fraction) -> int | None:
    """The fewest successes whose lower bound reaches ``threshold``; None where even a perfect run does not."""
    level = (1 - confidence) / 2
    low, high = 0, trials
    if not upper_tail_is_at_most(trials, trials, threshold, level):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if upper_tail_is_at_most(middle, trials, threshold, level):
            high = middle
        else:
            low = middle
    return high


def smallest_perfect_run(threshold: Fraction, *, confidence: Fraction) -> int | None:
    """The fewest cases at which a perfect run has a lower bound of ``threshold``; None for a threshold of 1."""
    if threshold >= 1:
        return None
    level = (1 - confidence) / 2
    trials = max(1, math.floor(math.log(level) / math.log(threshold)) - 1) if threshold > 0 else 1
    while not upper_tail_is_at_most(trials, trials, threshold, level):
        trials += 1
    return trials


def pass_probability(trials: int, threshold: Fraction, true: float, *, confidence: Fraction) -> float:
    """The chance that a model whose rate is ``true`` passes ``lower_ci >= threshold`` on ``trials`` cases."""
    needed = passing_count(trials, threshold, confidence=confidence)
    return 0.0 if needed is None else float(special.bdtrc(needed - 1, trials, true))


def cases_for_lower_bound(
    threshold: Fraction, true: float, *, confidence: Fraction, power: float = POWER
) -> int | None:
    """Cases at which a model whose rate is ``true`` passes with that ``power``; None where no number is enough."""
    if true <= threshold:
        return None

    def enough(trials: int) -> bool:
        return pass_probability(trials, threshold, true, confidence=confidence) >= power

    return _first(enough)


def detectable_rate(
    trials: int, threshold: Fraction, *, confidence: Fraction, power: float = POWER
) -> float | None:
    """The true rate from which on a model passes with that ``power``; None where not even a perfect one does."""
    needed = passing_count(trials, threshold, confidence=confidence)
    # P(Bin(n, p) >= k) = I_p(k, n - k + 1), so the rate is the inverse of the incomplete beta function.
    return None if needed is None else float(special.betaincinv(needed, trials - needed + 1, power))


def cases_for_non_inferiority(
    discordance: float, difference: float, margin: float, *, confidence: float, power: float = POWER
) -> int | None:
    """Cases at which ``lower bound of the difference > -margin`` with that power, two-sided ``confidence``.

    ``n = (z_a + z_b)**2 (psi - d**2) / (margin + d)**2`` with psi the share of cases that change and d the true
    difference. None where the true difference is at the margin or beyond it.
    """
    distance = margin + difference
    spread = discordance - difference * difference
    if distance <= 0:
        return None
    return _at_least_one((_z(confidence) + _z_power(power)) ** 2 * spread / distance**2)


def cases_for_difference(
    discordance: float, difference: float, *, level: float, power: float = POWER
) -> int | None:
    """Cases at which McNemar's one-sided p-value falls below ``level`` with that power (Connor 1987).

    ``n = (z_a sqrt(psi) + z_b sqrt(psi - d**2))**2 / d**2``. None where the true difference is not positive.
    """
    if difference <= 0 or not 0 < level < 1:
        return None
    spread = max(0.0, discordance - difference * difference)
    root = float(special.ndtri(1 - level)) * math.sqrt(discordance) + _z_power(power) * math.sqrt(spread)
    return _at_least_one((max(0.0, root) / difference) ** 2)


def cases_for_paired_scores(
    case_variance: float, sample_variances: tuple[float, float], samples: tuple[int, int], difference: float
) -> int:
    """Cases that tell a paired difference from none at a two-sided 5 % with 80 % power (Miller 2024, equation 9).

    ``n = (z_a/2 + z_b)**2 (omega**2 + s_A**2/K_A + s_B**2/K_B) / difference**2``, omega**2 the variance of the true
    per-case difference, s**2 the mean variance within a case, K the samples a case.
    """
    within = sum(variance / count for variance, count in zip(sample_variances, samples, strict=True))
    return _at_least_one((_z(0.95) + _z_power(0.8)) ** 2 * (case_variance + within) / difference**2)


def _first(enough: Callable[[int], bool]) -> int | None:
    high = 1
    while not enough(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _at_least_one(size: float) -> int:
    return max(1, math.ceil(size))


def _z(confidence: float) -> float:
    return float(special.ndtri(0.5 + confidence / 2))


def _z_power(power: float) -> float:
    return float(special.ndtri(power))
