"""The error rates that were measured before the gate was designed (reference/evaluation.md 2.1, 2.2, 2.4, 2.8), again.

Sums over all outcomes where that is possible, else seeded simulations of a second or two.
"""

from __future__ import annotations

from fractions import Fraction as F

import numpy as np
import pytest
from scipy import special, stats

from posttrain.statistics import exact, power, sequential
from posttrain.statistics.intervals import clustered_proportion, mcnemar_exact, tango_score

THRESHOLD = F("0.98")
SIZES = (*range(10, 400), *range(400, 3001, 13))


def worst(passing) -> float:
    """The worst chance that a model exactly at the threshold is promoted; ``passing`` gives the fewest successes."""
    return max(float(stats.binom.sf(passing(n) - 1, n, 0.98)) for n in SIZES)


def fewest(bound) -> object:
    """The fewest successes among n whose lower bound reaches the threshold; n + 1 where none does."""

    def passing(n: int) -> int:
        counts = np.arange(n + 1)
        reached = np.flatnonzero(bound(counts, n) >= 0.98)
        return int(reached[0]) if len(reached) else n + 1

    return passing


@pytest.mark.parametrize(("confidence", "nominal"), [("0.95", 0.025), ("0.90", 0.05)])
def test_clopper_pearson_never_promotes_more_than_it_says(confidence, nominal):
    chance = worst(lambda n: power.passing_count(n, THRESHOLD, confidence=F(confidence)) or n + 1)
    assert 0.9 * nominal < chance <= nominal


def test_what_the_other_bounds_would_promote():
    def wilson(z):
        z2 = z * z
        return fewest(
            lambda k, n: (
                (k / n + z2 / (2 * n) - z * np.sqrt(k / n * (1 - k / n) / n + z2 / (4 * n * n)))
                / (1 + z2 / n)
            )
        )

    jeffreys = fewest(lambda k, n: special.betaincinv(k + 0.5, n - k + 0.5, 0.025))
    wald = fewest(lambda k, n: k / n - 1.96 * np.sqrt(k / n * (1 - k / n) / n))
    assert worst(wilson(1.6449)) == pytest.approx(0.068, abs=0.001)
    assert worst(jeffreys) == pytest.approx(0.080, abs=0.001)
    assert worst(wald) == pytest.approx(0.82, abs=0.005)


def test_a_bootstrap_of_a_perfect_slice_would_pass_any_threshold():
    """Why there is none here: its lower end is 1.0 even of one case; the exact gate wants 368 for 0.99."""
    resampled = np.random.default_rng(1).choice(np.ones(5), (1000, 5)).mean(axis=1)
    assert np.quantile(resampled, 0.025) == 1.0
    assert not exact.lower_bound_reaches(367, 367, F("0.99"), confidence=F("0.95"))


NON_INFERIORITY = [  # n, true drop, then P(pass): point >= 0, "no significant drop", margin .02, margin .05
    (100, 0.00, 0.56, 0.98, 0.14, 0.47),
    (100, 0.05, 0.07, 0.65, 0.004, 0.066),
    (200, 0.02, 0.21, 0.83, 0.05, 0.39),
    (500, 0.00, 0.53, 0.96, 0.42, 0.97),
    (1000, 0.05, 0.00, 0.00, 0.00, 0.053),
    (2000, 0.00, 0.51, 0.96, 0.88, 1.00),
]


@pytest.mark.parametrize(("cases", "drop", "point", "no_drop", "margin2", "margin5"), NON_INFERIORITY)
def test_the_rules_for_no_regression(cases, drop, point, no_drop, margin2, margin5):
    """Discordance 10 %, one-sided 5 %: what each way to say "no regression" lets pass."""
    runs, critical = 2500, special.ndtri(0.95)
    up, down = (0.1 - drop) / 2, (0.1 + drop) / 2
    draws = np.random.default_rng(cases).multinomial(cases, [up, down, 1 - up - down], runs)
    tables, weights = np.unique(draws[:, :2], axis=0, return_counts=True)
    passed = np.zeros(4)
    for (gained, lost), weight in zip(tables.tolist(), weights, strict=True):
        # Two-sided 10 %: one-sided 5 % in the direction of a drop.
        significant = lost > gained and mcnemar_exact(gained, lost) < 0.10
        tests = (
            gained >= lost,
            not significant,
            *(tango_score(gained, lost, cases, -m) > critical for m in (0.02, 0.05)),
        )
        passed += weight * np.array(tests)
    assert passed / runs == pytest.approx([point, no_drop, margin2, margin5], abs=0.035)


def test_samples_of_a_case_do_not_count_as_cases():
    """Misses of the 2.5 % lower bound at (C 100, K 8, p .9, rho .5): 17 % counting samples, a few % by clusters."""
    generator, runs = np.random.default_rng(3), 800
    naive = clustered = 0
    for _ in range(runs):
        counts = generator.binomial(8, generator.beta(0.9, 0.1, 100))
        naive += special.betaincinv(counts.sum(), 801 - counts.sum(), 0.025) > 0.9
        clustered += clustered_proportion((counts / 8).tolist(), 800).low > 0.9
    assert naive / runs == pytest.approx(0.17, abs=0.04)
    assert clustered / runs < 0.045


@pytest.mark.parametrize(
    ("rate", "naive", "sequentially", "at_end"),
    [
        (0.03, 0.065, 0.002, 1.0),
        (0.045, 0.57, 0.004, 0.96),
        (0.05, None, 0.02, 0.52),
        (0.06, None, 0.60, 0.0),
        (0.07, 1.0, 0.999, 0.0),
    ],
)
def test_what_a_canary_rolls_back(rate, naive, sequentially, at_end):
    """Limit 5 %, 24 hourly looks at 5,000 requests: looking at the point rate 24 times, and the e-process."""
    runs = 1500
    looks = np.linspace(5000 / 24, 5000, 24).astype(int)
    steps = np.diff(looks, prepend=0)
    events = np.random.default_rng(24).binomial(steps, rate, (runs, 24)).cumsum(axis=1)
    peeked = (events / looks > 0.05).any(axis=1).mean()
    tripped = (sequential.log_evidence(events, looks, 0.05) >= np.log(20)).any(axis=1).mean()
    if naive is not None:
        assert peeked == pytest.approx(naive, abs=0.04)
    if rate <= 0.05:
        assert tripped <= sequentially
    else:
        assert tripped == pytest.approx(sequentially, abs=0.05)
    assert (events[:, -1] / 5000 <= 0.05).mean() == pytest.approx(at_end, abs=0.04)


@pytest.mark.parametrize(("rate", "chance"), [(1e-4, 0.39), (1e-3, 0.993)])
def test_no_incident_in_five_thousand_is_not_none(rate, chance):
    """What ``safety_incidents.count == 0`` sees; zero of 5,000 still allows 0.06 %."""
    assert exact.upper_tail(1, 5000, F(rate)) == pytest.approx(chance, abs=0.005)
    assert power.smallest_perfect_run(1 - F("0.0006"), confidence=F("0.90")) <= 5000
