"""Decisions about counts: published p-values, agreement with the bounds, ties decided in integers, properties."""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction as F

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from posttrain.statistics import exact as e
from posttrain.statistics.intervals import clopper_pearson

C95 = F("0.95")


def test_thresholds_mean_what_was_written():
    assert not 0.57 - 0.50 >= 0.07, "binary floats lose the tie"
    assert e.as_fraction(0.57) - e.as_fraction(0.50) >= e.as_fraction("0.07")
    assert e.as_fraction(Decimal("0.07")) == e.as_fraction(0.07) == F(7, 100)


@settings(deadline=None)
@given(st.integers(1, 300), st.data(), st.sampled_from(["0.05", "0.5", "0.82", "0.98"]))
def test_the_decision_is_that_of_the_clopper_pearson_bound(trials, data, threshold):
    successes = data.draw(st.integers(0, trials))
    bounds = clopper_pearson(successes, trials)
    assert e.lower_bound_reaches(successes, trials, F(threshold), confidence=C95) == (
        bounds.low >= float(threshold)
    )
    assert e.upper_bound_reaches(successes, trials, F(threshold), confidence=C95) == (
        bounds.high <= float(threshold)
    )


@pytest.mark.parametrize(
    ("threshold", "smallest"), [("0.82", 19), ("0.95", 72), ("0.98", 183), ("0.99", 368)]
)
def test_the_smallest_perfect_run_that_passes(threshold, smallest):
    assert e.lower_bound_reaches(smallest, smallest, F(threshold), confidence=C95)
    assert not e.lower_bound_reaches(smallest - 1, smallest - 1, F(threshold), confidence=C95)


def test_a_tail_that_equals_the_level_is_a_tie():
    # P(Bin(2, 1/2) >= 2) = 1/4 exactly, so at confidence 1/2 the lower bound of 2 of 2 is exactly 1/2.
    half = F(1, 2)
    assert e.lower_bound_reaches(2, 2, half, confidence=half)
    assert not e.lower_bound_reaches(2, 2, half, confidence=half, strictly=True)
    assert e.upper_bound_reaches(0, 2, half, confidence=half)
    assert not e.upper_bound_reaches(0, 2, half, confidence=half, strictly=True)
    above = half + F(1, 10**30)
    assert not e.lower_bound_reaches(2, 2, above, confidence=half), "no float could tell them apart"
    # McNemar: P(Bin(5, 1/2) >= 5) = 1/32 = 0.03125.
    assert e.mcnemar_is_below(5, 0, F("0.03125"), "greater", strictly=False)
    assert not e.mcnemar_is_below(5, 0, F("0.03125"), "greater", strictly=True)
    assert e.mcnemar_is_below(5, 0, F("0.0625"), "two-sided", strictly=False)


@settings(deadline=None)
@given(st.integers(1, 40), st.data(), st.fractions(F(1, 50), F(49, 50), max_denominator=50))
def test_the_tail_in_integers_is_the_tail(trials, data, rate):
    successes = data.draw(st.integers(0, trials + 1))
    expected = sum(stats.binom.pmf(k, trials, float(rate)) for k in range(successes, trials + 1))
    assert float(e._exact_upper_tail(successes, trials, rate)) == pytest.approx(expected, abs=1e-12)
    assert e.upper_tail(successes, trials, rate) == pytest.approx(expected, abs=1e-12)


def test_a_tie_among_twenty_thousand_is_decided_in_integers():
    rate, level = F(98, 100), e._exact_upper_tail(19_650, 20_000, F(98, 100))
    assert e.upper_tail_is_at_most(19_650, 20_000, rate, level)
    assert not e.upper_tail_is_at_most(19_650, 20_000, rate, level, strictly=True)
    assert not e.upper_tail_is_at_most(19_650, 20_000, rate, level - F(1, 10**40))


@pytest.mark.parametrize(
    ("successes", "threshold", "strictly", "reached"),
    [
        (0, "0", False, True),
        (0, "0", True, False),
        (3, "0", True, True),
        (0, "0.1", False, False),
        (10, "1", False, False),
        (10, "1.5", False, False),
        (0, "-1", True, True),
        (10, "0.5", False, True),
    ],
)
def test_thresholds_at_the_ends(successes, threshold, strictly, reached):
    assert e.lower_bound_reaches(successes, 10, F(threshold), confidence=C95, strictly=strictly) is reached


@settings(deadline=None)
@given(st.integers(1, 200), st.data(), st.sampled_from(["0.1", "0.82", "0.98"]))
def test_one_more_success_never_undoes_a_decision(trials, data, threshold):
    successes = data.draw(st.integers(0, trials - 1))
    if e.lower_bound_reaches(successes, trials, F(threshold), confidence=C95):
        assert e.lower_bound_reaches(successes + 1, trials, F(threshold), confidence=C95)
    if e.upper_bound_reaches(successes + 1, trials, F(threshold), confidence=C95):
        assert e.upper_bound_reaches(successes, trials, F(threshold), confidence=C95)


def test_mcnemar_gives_the_published_values():
    assert e.mcnemar(12, 2, "two-sided") == pytest.approx(0.012939, abs=5e-7)
    assert e.mcnemar(86, 150, "two-sided") == pytest.approx(3.716e-5, rel=2e-4)
    assert e.mcnemar(12, 2) == pytest.approx(0.012939 / 2, abs=5e-7)
    assert e.mcnemar(12, 2, "less") == pytest.approx(stats.binomtest(2, 14, alternative="greater").pvalue)
    assert e.mcnemar(0, 0) == e.mcnemar(0, 0, "two-sided") == 1.0
    with pytest.raises(ValueError, match="counts"):
        e.mcnemar(-1, 2)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from(["0.01", "0.05", "0.5", "1"]))
def test_the_decision_of_mcnemar_is_that_of_its_p_value(gained, lost, level):
    for alternative in ("greater", "less", "two-sided"):
        p = e.mcnemar(gained, lost, alternative)
        if abs(p - float(level)) > 1e-9:
            assert e.mcnemar_is_below(gained, lost, F(level), alternative, strictly=True) == (
                p < float(level)
            )


def test_newcombe_gives_the_published_intervals():
    # Fagerland et al. 2014, (1, 1, 7, 12); Newcombe 1998, (36, 12, 2, 0).
    assert e.newcombe_interval((1, 1, 7, 12)) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert e.newcombe_interval((36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 30)] * 4).filter(lambda table: sum(table) > 0))
def test_newcombe_contains_its_estimate_and_mirrors(table):
    both, gained, lost, neither = table
    found, mirror = e.newcombe_interval(table), e.newcombe_interval((both, lost, gained, neither))
    assert found.low <= (gained - lost) / sum(table) <= found.high
    assert found == pytest.approx((-mirror.high, -mirror.low))


def test_sign_flips_of_single_outcomes_are_mcnemar():
    for gained, lost in [(12, 2), (3, 3), (0, 4), (7, 0)]:
        differences = [F(1)] * gained + [F(-1)] * lost + [F(0)] * 9
        for alternative in ("greater", "less", "two-sided"):
            found = e.sign_flip(differences, alternative)
            assert found.exact
            assert float(found.p_value) == pytest.approx(e.mcnemar(gained, lost, alternative))
    assert e.sign_flip([F(0)] * 5) == (1, 1, True)


@settings(deadline=None)
@given(st.lists(st.fractions(-1, 1, max_denominator=4), min_size=1, max_size=9), st.randoms())
def test_sign_flips_are_those_of_the_definition_in_any_order(differences, random):
    observed = sum(differences)
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    found = e.sign_flip(differences)
    assert found.p_value == F(sum(value >= observed for value in sums), len(sums))
    shuffled = random.sample(differences, len(differences))
    assert e.sign_flip(shuffled) == found


def test_drawn_flips_are_fixed_for_ever_and_close_to_the_truth():
    differences = [F(1, 4)] * 90 + [F(-1, 4)] * 60 + [F(1, 2)] * 40 + [F(-1, 2)] * 35
    found = e.sign_flip(differences)
    assert not found.exact and found.flips == e.FLIPS
    assert found.p_value == F(341, 10_000), "these signs were the same in every version"
    spread = float(sum(d * d for d in differences)) ** 0.5
    assert float(found.p_value) == pytest.approx(stats.norm.sf(float(sum(differences)) / spread), abs=0.01)
    assert e.sign_flip(differences[::-1]) == found
    assert e.sign_flip([-d for d in differences], "less") == found


def test_drawn_signs_are_balanced():
    sums = e._drawn_sums(np.ones(64, dtype=np.int64))
    assert len(sums) == e.FLIPS and len(np.unique(sums)) > 20
    assert abs(sums.mean()) < 0.4 and sums.std() == pytest.approx(8, rel=0.03)
