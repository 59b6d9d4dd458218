"""Evidence that may be looked at any time, sample ratios, and how many cases decisions need."""

from __future__ import annotations

import math
from fractions import Fraction as F

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from posttrain.statistics import power as w
from posttrain.statistics import sequential as q
from posttrain.statistics.exact import upper_tail

C95 = F("0.95")


@pytest.mark.parametrize(
    ("events", "trials", "expected"),
    [(20, 208, 2.970917), (60, 1000, -0.201290), (300, 5000, 3.054552), (350, 5000, 16.890884)],
)
def test_evidence_has_the_reference_values(events, trials, expected):
    """p0 = 0.05, Beta(3.5, 46.5); checked by quadrature in reference/evaluation.md 2.8, and the first one here."""
    assert q.default_mixture(0.05) == pytest.approx((3.5, 46.5))
    assert q.log_evidence(events, trials, 0.05) == pytest.approx(expected, abs=1e-6)


def test_evidence_is_the_likelihood_ratio_of_the_cut_mixture():
    def integrand(p):
        ratio = (p / 0.05) ** 20 * ((1 - p) / 0.95) ** 188
        return ratio * stats.beta.pdf(p, 3.5, 46.5) / stats.beta.sf(0.05, 3.5, 46.5)

    value = integrate.quad(integrand, 0.05, 1, limit=200)[0]
    assert q.log_evidence(20, 208, 0.05) == pytest.approx(math.log(value), abs=1e-6)


@settings(deadline=None)
@given(st.floats(0.005, 0.95), st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_bet_cannot_win_on_average_at_the_limit(limit, before):
    """One more outcome leaves the expected e-value the same at the limit, and lowers it below the limit."""
    s, n = sum(before), len(before)
    now = float(np.exp(q.log_evidence(s, n, limit)))
    hit, miss = (float(np.exp(q.log_evidence(s + x, n + 1, limit))) for x in (1, 0))
    assert limit * hit + (1 - limit) * miss == pytest.approx(now, rel=1e-6, abs=1e-12)
    assert 0.5 * limit * hit + (1 - 0.5 * limit) * miss <= now * (1 + 1e-9)


def test_a_long_quiet_run_is_no_evidence():
    assert q.log_evidence(0, 1_000_000, 0.05) == -math.inf
    trip = q.rate_trip(np.zeros(5000, bool), 0.05, alpha=0.05)
    assert trip.at is None and trip.needed == pytest.approx(math.log(20))
    assert q.rate_trip(np.zeros(0, bool), 0.05, alpha=0.05).at is None
    assert q.rate_trip(np.ones(50, bool), 0.05, alpha=0.05).at == 5
    for limit in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            q.log_evidence(1, 2, limit)


def test_sample_ratios_have_the_reference_values():
    assert q.sample_ratio_p_value([1000, 1200], [1, 1]) == pytest.approx(2.0079e-5, rel=1e-4)
    assert q.sample_ratio_p_value([135, 115], [50, 50]) == pytest.approx(0.205903, abs=1e-6)
    assert q.sample_ratio_p_value([310, 98], [75, 25]) == pytest.approx(0.647434, abs=1e-6)
    with pytest.raises(ValueError, match="no experiment"):
        q.sample_ratio_p_value([5], [1])


def test_the_sequential_ratio_test_is_a_dirichlet_multinomial_bayes_factor():
    # By the chain rule: each unit's predictive probability against its intended share.
    shares, prior, expected = (0.75, 0.25), [7.5, 2.5], 0.0
    for arm in [0, 0, 1, 0, 1, 1, 1]:
        expected += math.log(prior[arm] / sum(prior) / shares[arm])
        prior[arm] += 1
    assert q.sample_ratio_log_evidence([3, 4], [3, 1], concentration=10) == pytest.approx(expected)
    assert q.sample_ratio_log_evidence([50_000, 52_000], [1, 1]) > math.log(1000)
    assert q.sample_ratio_log_evidence([50_000, 50_200], [1, 1]) < 0


@pytest.mark.parametrize(("threshold", "perfect"), [("0.82", 19), ("0.95", 72), ("0.98", 183), ("0.99", 368)])
def test_smallest_perfect_runs(threshold, perfect):
    assert w.smallest_perfect_run(F(threshold), confidence=C95) == perfect
    assert w.passing_count(perfect, F(threshold), confidence=C95) == perfect
    assert w.passing_count(perfect - 1, F(threshold), confidence=C95) is None
    assert w.smallest_perfect_run(F(1), confidence=C95) is None


@pytest.mark.parametrize(
    ("threshold", "true", "wilson"),
    [
        ("0.82", 0.85, 980),
        ("0.82", 0.87, 326),
        ("0.98", 0.99, 896),
        ("0.98", 0.995, 306),
        ("0.99", 0.995, 1952),
    ],
)
def test_an_exact_gate_needs_a_little_more_than_wilson(threshold, true, wilson):
    """The sizes of section 2.1 are Wilson's at a one-sided 5 %; Clopper-Pearson at that level, then at 2.5 %."""
    five = w.cases_for_lower_bound(F(threshold), true, confidence=F("0.90"))
    half = w.cases_for_lower_bound(F(threshold), true, confidence=C95)
    assert wilson < five < 1.3 * wilson < half * 1.1
    assert w.pass_probability(half, F(threshold), true, confidence=C95) >= 0.8
    assert w.pass_probability(half // 2, F(threshold), true, confidence=C95) < 0.75


def test_no_number_of_cases_helps_a_model_at_the_threshold():
    assert w.cases_for_lower_bound(F("0.9"), 0.9, confidence=C95) is None
    assert w.cases_for_lower_bound(F("0.9"), 0.9000001, confidence=C95) is None
    assert w.pass_probability(10, F("0.9"), 1.0, confidence=C95) == 0.0


@settings(deadline=None)
@given(st.integers(200, 3000), st.sampled_from(["0.8", "0.95", "0.98"]))
def test_the_detectable_rate_passes_with_that_power(trials, threshold):
    rate = w.detectable_rate(trials, F(threshold), confidence=C95)
    assert w.pass_probability(trials, F(threshold), rate, confidence=C95) == pytest.approx(0.8, abs=1e-6)
    needed = w.passing_count(trials, F(threshold), confidence=C95)
    assert upper_tail(needed, trials, F(threshold)) <= 0.025 < upper_tail(needed - 1, trials, F(threshold))


def test_pairs_need_the_published_numbers_of_cases():
    sizes = [w.cases_for_non_inferiority(0.1, 0.0, m, confidence=0.90) for m in (0.02, 0.03, 0.05)]
    assert sizes == [1546, 687, 248]
    assert w.cases_for_non_inferiority(0.1, -0.02, 0.02, confidence=0.9) is None
    # Miller 2024 (arXiv 2411.00640), omega^2 = 1/9, no variance within a case, difference 0.03.
    assert w.cases_for_paired_scores(1 / 9, (0, 0), (1, 1), 0.03) == 969
    assert w.cases_for_paired_scores(1 / 9, (1 / 6, 1 / 6), (10, 10), 0.03) > 969


def test_the_size_for_a_difference_has_that_power():
    size = w.cases_for_difference(0.3, 0.11, level=0.05)
    generator, passed = np.random.default_rng(11), 0
    for gained, lost, _ in generator.multinomial(size, [0.205, 0.095, 0.7], 2000):
        passed += upper_tail(gained, gained + lost, F(1, 2)) < 0.05
    assert 0.74 < passed / 2000 < 0.84, "a little below 80 %: the exact test is cautious"
    assert w.cases_for_difference(0.3, 0.0, level=0.05) is None
