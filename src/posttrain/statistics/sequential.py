"""Tests that stay valid however often one looks, and the check that traffic was split as meant.

Here: the evidence against ``rate <= p0`` from growing counts, the half-width of a mean's confidence sequence, the
sample-ratio tests. Not here: what a canary does when
the evidence is enough (``promotion``, ``monitoring``).

An e-value is a bet against the hypothesis that cannot win on average while it is true; the chance that it ever reaches
``1 / alpha`` is at most alpha (Ville). So one may look after every request and stop at any time. *Covered*: any
stopping rule, any true rate up to the limit. *Not covered*: a rate that drifts from below the limit to above it late in
a long window is seen late, since the evidence is about the mean so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

_CONCENTRATION = 50.0
_LEAN = 1.4


class Beta(NamedTuple):
    """A beta distribution."""

    a: float
    b: float


def default_mixture(limit: float) -> Beta:
    """Where the bets are placed against ``rate <= limit``: around 1.4 times the limit, worth 50 observations.

    For a limit of 0.05 that is Beta(3.5, 46.5).
    """
    mean = min(_LEAN * limit, (1 + limit) / 2)
    return Beta(_CONCENTRATION * mean, _CONCENTRATION * (1 - mean))


def log_evidence(
    events: NDArray[Any] | int, trials: NDArray[Any] | int, limit: float, mixture: Beta | None = None
) -> NDArray[np.float64]:
    """Log e-value of ``events`` among ``trials`` against ``rate <= limit``.

    The likelihood ratio of a beta mixture cut off below the limit, against the limit itself:
    ``ln B(a+s, b+n-s) - ln B(a, b) + ln SF(p0; a+s, b+n-s) - ln SF(p0; a, b) - s ln p0 - (n-s) ln(1-p0)``.
    """
    if not 0 < limit < 1:
        raise ValueError(f"a limit of {limit} has no evidence against it: it must lie between 0 and 1")
    a, b = mixture or default_mixture(limit)
    hits, misses = np.asarray(events, np.float64), np.asarray(trials, np.float64) - np.asarray(events)
    with np.errstate(divide="ignore"):  # no event in a long run: the survival function underflows to 0
        survival = np.log(special.betaincc(a + hits, b + misses, limit))
    return np.asarray(
        special.betaln(a + hits, b + misses)
        - special.betaln(a, b)
        + survival
        - math.log(special.betaincc(a, b, limit))
        - hits * math.log(limit)
        - misses * math.log1p(-limit),
        np.float64,
    )


class Trip(NamedTuple):
    """Whether a sequence of outcomes ever gave enough evidence."""

    at: int | None
    """1-based number of the outcome at which it did; None where it never did."""
    log_evidence: float
    """The largest that was reached."""
    needed: float
    """The log e-value that trips."""


def rate_trip(
    outcomes: NDArray[np.bool_], limit: float, *, alpha: float, mixture: Beta | None = None
) -> Trip:
    """Look after every outcome, in order, whether the rate is above ``limit``; ``alpha`` is the whole error."""
    needed = -math.log(alpha)
    if len(outcomes) == 0:
        return Trip(None, 0.0, needed)
    path = log_evidence(np.cumsum(outcomes), np.arange(1, len(outcomes) + 1), limit, mixture)
    over = np.flatnonzero(path >= needed)
    return Trip(int(over[0]) + 1 if len(over) else None, float(path.max()), needed)


def sample_ratio_p_value(counts: Sequence[int], weights: Sequence[float]) -> float:
    """Chi-square p-value that units came to the arms in proportion to ``weights``. For one look at the end."""
    total, scale = sum(counts), math.fsum(weights)
    if len(counts) != len(weights) or len(counts) < 2 or total < 1 or min(weights) <= 0:
        raise ValueError(f"counts {list(counts)} and weights {list(weights)} are no experiment")
    expected = [total * weight / scale for weight in weights]
    statistic = math.fsum((o - e) ** 2 / e for o, e in zip(counts, expected, strict=True))
    return float(special.chdtrc(len(counts) - 1, statistic))


def sample_ratio_log_evidence(
    counts: Sequence[int], weights: Sequence[float], *, concentration: float = 10_000.0
) -> float:
    """Log Bayes factor against the intended split (Lindon and Malek 2022); may be looked at after every unit.

    A multinomial with a Dirichlet prior centred on the intended shares, ``concentration`` units strong; the split is
    refuted at level alpha when it reaches ``ln(1 / alpha)``.
    """
    scale = math.fsum(weights)
    shares = [weight / scale for weight in weights]
    value = math.lgamma(concentration) - math.lgamma(concentration + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = concentration * share
        value += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return value


def sequence_half_width(variance: float, count: int, *, alpha: float, planned: int) -> float:
    """Half-width of a one-sided asymptotic confidence sequence (Waudby-Smith et al. 2024, eq. 134, as GrowthBook).

    For a mean of ``count`` values with this ``variance``, or a difference whose variance is ``variance / count``; at
    every look the true value is below ``mean - half_width`` with a chance of at most ``alpha`` in all. ``planned`` is
    the count at which it is narrowest. Asymptotic: not for small counts.
    """
    rho2 = (-2 * math.log(2 * alpha) + math.log(-2 * math.log(2 * alpha) + 1)) / planned
    grown = count * rho2 + 1
    return math.sqrt(
        variance * 2 * grown / (count * count * rho2) * math.log1p(math.sqrt(grown) / (2 * alpha))
    )
