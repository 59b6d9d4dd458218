"""Every formula against published values, and the properties that a gate relies on."""

from __future__ import annotations

import itertools
import math
import random
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.statistics import intervals as s


def close(found: tuple[float, ...], expected: tuple[float, ...], digits: int) -> bool:
    return all(abs(a - b) <= 0.5000001 * 10**-digits for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I.
        (81, 263, (0.2527, 0.3676)),
        (15, 148, (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1684)),
        (1, 29, (0.0009, 0.1776)),
    ],
)
def test_clopper_pearson_gives_the_published_limits(successes, trials, expected):
    assert close(s.clopper_pearson(successes, trials), expected, 4)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [  # Newcombe 1998; the last two by hand: z^2 / (n + z^2).
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (10, 10, (0.7225, 1.0)),
        (0, 10, (0.0, 0.2775)),
    ],
)
def test_wilson_gives_the_published_limits(successes, trials, expected):
    assert close(s.wilson(successes, trials), expected, 4)


@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_both_intervals_agree_with_scipy(trials, data, confidence):
    successes = data.draw(st.integers(0, trials))
    reference = stats.binomtest(successes, trials)
    exact = reference.proportion_ci(confidence, "exact")
    assert s.clopper_pearson(successes, trials, confidence=confidence) == pytest.approx(exact, abs=1e-9)
    score = reference.proportion_ci(confidence, "wilson")
    assert s.wilson(successes, trials, confidence=confidence) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
    ("threshold", "smallest"), [("0.82", 19), ("0.95", 72), ("0.98", 183), ("0.99", 368)]
)
def test_the_smallest_perfect_run_that_can_pass_a_gate(threshold, smallest):
    assert s.clopper_pearson(smallest, smallest).low >= float(threshold)
    assert s.clopper_pearson(smallest - 1, smallest - 1).low < float(threshold)


@given(st.integers(1, 300), st.data())
def test_one_more_success_never_lowers_a_limit(trials, data):
    successes = data.draw(st.integers(0, trials - 1))
    for interval in (s.clopper_pearson, s.wilson):
        fewer, more = interval(successes, trials), interval(successes + 1, trials)
        assert more.low >= fewer.low and more.high >= fewer.high
        assert fewer.low <= successes / trials <= fewer.high


@pytest.mark.parametrize("counts", [(3, 2), (-1, 5), (0, 0)])
def test_counts_that_are_no_proportion_are_refused(counts):
    for interval in (s.clopper_pearson, s.wilson):
        with pytest.raises(ValueError, match="not a proportion"):
            interval(*counts)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="confidence"):
        s.clopper_pearson(1, 2, confidence=confidence)
    with pytest.raises(ValueError, match="confidence"):
        s.tango_interval(1, 2, 5, confidence=confidence)


def test_pass_at_k_gives_the_published_values():
    assert s.pass_at_k(200, 23, 1) == pytest.approx(0.115, abs=1e-12)
    assert s.pass_at_k(200, 23, 10) == pytest.approx(0.71405007091, abs=1e-11)
    assert s.pass_at_k(5, 2, 2) == pytest.approx(0.7, abs=1e-15)
    assert s.pass_at_k(8, 0, 4) == 0.0
    assert s.pass_at_k(8, 5, 4) == 1.0


@given(st.integers(1, 60), st.data())
def test_pass_at_k_is_the_binomial_ratio(samples, data):
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    exact = 1 - comb(samples - correct, k) / comb(samples, k)
    assert s.pass_at_k(samples, correct, k) == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_stays_finite_where_binomials_overflow():
    assert 0 < s.pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match="cannot be estimated"):
        s.pass_at_k(5, 1, k)


def test_mcnemar_gives_the_published_values():
    assert s.mcnemar_exact(12, 2) == pytest.approx(0.012939, abs=5e-7)
    assert s.mcnemar_exact(86, 150) == pytest.approx(3.716e-5, rel=2e-4)
    assert s.mcnemar_exact(0, 0) == 1.0
    assert s.mcnemar_exact(4, 4) == 1.0
    assert s.mcnemar_exact(7, 1) == s.mcnemar_exact(1, 7) == pytest.approx(stats.binomtest(7, 8).pvalue)


def test_tango_gives_the_published_score():
    # Tango 1998: 43 both right, 1 lost, 44 cases, margin 0.1.
    assert s.tango_score(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)
    assert stats.norm.sf(s.tango_score(0, 1, 44, -0.1)) == pytest.approx(0.044, abs=5e-4)


def test_tango_gives_the_published_intervals():
    # Fagerland et al. 2014, (1, 1, 7, 12), printed to three digits; (36, 12, 2, 0) after Newcombe 1998.
    airway = s.tango_interval(1, 7, 21)
    assert close(airway[1:], (-0.517, -0.026), 3)
    assert close(s.tango_interval(12, 2, 50), (0.2, 0.0611, 0.3447), 4)


@given(st.integers(1, 200), st.data())
def test_tango_is_antisymmetric_contains_its_estimate_and_ends_where_the_score_says(cases, data):
    gained = data.draw(st.integers(0, cases))
    lost = data.draw(st.integers(0, cases - gained))
    found, mirror = s.tango_interval(gained, lost, cases), s.tango_interval(lost, gained, cases)
    assert found == pytest.approx((-mirror.value, -mirror.high, -mirror.low))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.005, "an interval of any finite sample has a width"
    if found.low > -1:
        assert s.tango_score(gained, lost, cases, found.low) == pytest.approx(1.959964, abs=1e-3)


@given(st.integers(2, 100), st.data())
def test_one_more_gain_never_lowers_the_paired_limits(cases, data):
    gained = data.draw(st.integers(0, cases - 1))
    lost = data.draw(st.integers(0, cases - gained - 1))
    fewer, more = s.tango_interval(gained, lost, cases), s.tango_interval(gained + 1, lost, cases)
    assert more.low >= fewer.low - 1e-9 and more.high >= fewer.high - 1e-9


def test_tango_covers_at_its_nominal_level():
    """The true chance of missing, summed over all tables of a small design."""
    cases, up, down = 40, 0.3, 0.1
    missed = 0.0
    for gained, lost in itertools.product(range(cases + 1), repeat=2):
        if gained + lost <= cases:
            probability = stats.multinomial.pmf(
                [gained, lost, cases - gained - lost], cases, [up, down, 1 - up - down]
            )
            if probability > 1e-9:
                found = s.tango_interval(gained, lost, cases)
                missed += probability * (not found.low <= up - down <= found.high)
    assert 0.02 < missed < 0.065


@pytest.mark.parametrize("counts", [(3, 3, 5), (-1, 0, 5), (0, 0, 0)])
def test_pairs_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match="do not fit"):
        s.tango_interval(*counts)


def test_samples_of_one_case_do_not_count_as_cases():
    # 10 cases, 100 samples each, all right: the evidence is 10 cases, not 1000 samples.
    found = s.clustered_proportion([1.0] * 10, 1000)
    assert found == (1.0, pytest.approx(0.6915, abs=5e-5), 1.0)
    assert found.low == s.clopper_pearson(10, 10).low
    assert s.clustered_proportion([0.0] * 10, 1000).high == s.clopper_pearson(0, 10).high


def test_alike_samples_widen_the_interval_and_independent_ones_do_not():
    alike = s.clustered_proportion([1.0] * 60 + [0.0] * 40, 800)
    apart = s.clustered_proportion([0.625, 0.5, 0.75, 0.625, 0.5] * 20, 800)
    naive = s.clopper_pearson(480, 800)
    assert alike.value == apart.value == pytest.approx(0.6)
    assert alike.high - alike.low > 2.5 * (naive.high - naive.low)
    assert apart.high - apart.low < 1.1 * (naive.high - naive.low)
    # One sample a case: the effective size is that of the cases, to the one that the variance costs.
    single = s.clustered_proportion([1.0] * 60 + [0.0] * 40, 100)
    assert single == pytest.approx((0.6, *s.clopper_pearson(60, 100)), abs=0.003)


def test_korn_graubard_covers_close_to_its_nominal_level():
    generator = random.Random(7)
    misses = 0
    for _ in range(400):
        means = []
        for _case in range(100):
            skill = generator.betavariate(0.9, 0.1)  # Mean 0.9, samples of a case alike with rho 0.5.
            means.append(sum(generator.random() < skill for _ in range(8)) / 8)
        found = s.clustered_proportion(means, 800)
        misses += not found.low <= 0.9 <= found.high
    assert misses <= 0.075 * 400


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_the_clustered_interval_contains_its_estimate_whatever_the_order(counts):
    means = [count / 4 for count in counts]
    found = s.clustered_proportion(means, 4 * len(means))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.01
    assert s.clustered_proportion(sorted(means), 4 * len(means)) == found


def test_one_case_is_one_observation():
    assert s.clustered_proportion([0.5], 8).low < 0.02
    with pytest.raises(ValueError, match="at least one case"):
        s.clustered_proportion([], 0)


def test_a_paired_difference_has_a_width_even_when_every_case_flips():
    found = s.paired_clustered_difference([0.0] * 50, [1.0] * 50, observations=(200, 200))
    assert found.value == 1.0 and found.high == 1.0
    assert 0.85 < found.low < 0.95
    same = s.paired_clustered_difference([0.5] * 50, [0.5] * 50, observations=(200, 200))
    assert same.value == 0 and same.low == pytest.approx(-same.high) and same.high > 0.05


def test_pairing_shortens_the_interval_where_the_cases_agree():
    before = [0.0, 0.25, 0.5, 0.75, 1.0] * 20
    after = [min(1.0, value + 0.25) for value in before]
    paired = s.paired_clustered_difference(before, after, observations=(400, 400))
    crossed = s.paired_clustered_difference(before, after[::-1], observations=(400, 400))
    assert paired.value == pytest.approx(0.2) and paired.low > 0.15
    assert (paired.high - paired.low) < 0.5 * (crossed.high - crossed.low)


def test_the_paired_clustered_interval_covers_where_the_t_interval_does_not():
    generator = random.Random(3)
    misses = t_misses = 0
    for _ in range(300):
        before, after = [], []
        for _case in range(50):
            before.append(sum(generator.random() < generator.betavariate(0.02, 0.98) for _ in range(4)) / 4)
            skill = generator.betavariate(0.95 * 0.4, 0.05 * 0.4)
            after.append(sum(generator.random() < skill for _ in range(4)) / 4)
        found = s.paired_clustered_difference(before, after, observations=(200, 200))
        misses += not found.low <= 0.93 <= found.high
        plain = s.paired_mean_difference(before, after)
        t_misses += plain is None or not plain.low <= 0.93 <= plain.high
    assert misses <= 0.08 * 300
    assert t_misses > misses


def test_pairs_need_both_sides():
    with pytest.raises(ValueError, match="pairs"):
        s.paired_clustered_difference([0.5], [0.5, 0.5], observations=(1, 2))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        s.paired_mean_difference([1.0], [1.0, 2.0])


def test_the_mean_of_tokens_has_the_t_interval():
    values = [12.0, 15.0, 11.0, 19.0, 14.0]
    expected = stats.t.interval(0.95, 4, loc=14.2, scale=stats.sem(values))
    found = s.mean_interval(values)
    assert found is not None
    assert found.value == pytest.approx(14.2) and found[1:] == pytest.approx(expected)
    assert s.mean_interval([3.0]) is None
    assert math.isclose(s.paired_mean_difference([1, 2, 3], [2, 4, 6]).value, 2.0)
