"""Quantiles and ratios against published values and definitions."""

from __future__ import annotations

import math
import random
from fractions import Fraction as F

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from posttrain.statistics import order as o


def test_the_published_interval_of_a_quantile():
    # R confintr::ci_quantile and scipy's own test of quantile_test: exp(0:0.01:1), q = 0.3, 95 %.
    found = o.quantile_interval(np.exp(np.arange(0, 1.001, 0.01)), F(3, 10))
    assert found.low == pytest.approx(1.221402758, abs=1e-9)
    assert found.high == pytest.approx(1.476980794, abs=1e-9)


def test_ranks_of_p95_and_the_runs_that_can_bound_it():
    assert o.quantile_ranks(5000, F(95, 100)) == (4750, 4719, 4781)
    assert o.smallest_run_with_upper_bound(F(95, 100)) == 72
    assert o.smallest_run_with_upper_bound(F(95, 100), confidence=0.90) == 59
    assert o.quantile_interval(np.arange(71.0), F(95, 100)).high == math.inf
    assert o.quantile_interval(np.arange(72.0), F(95, 100)).high == 71
    assert o.quantile_interval([4.0], F(1, 2)) == (4.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no quantile"):
        o.quantile_ranks(0, F(1, 2))


def test_a_median_of_whole_steps_is_one_of_them():
    assert o.quantile_interval([3, 4, 5, 9], F(1, 2)).value == 4
    assert o.quantile_point(np.array([9, 3, 5, 4]), F(1, 2)) == 4
    # 0.95 * 20 is exactly 19; in floats 0.95 * 20 may be a little more, and the rank 20.
    assert o.quantile_ranks(20, F("0.95")).point == 19


@settings(deadline=None)
@given(st.integers(30, 400), st.sampled_from([F(1, 2), F(3, 10), F(9, 10)]), st.integers(0, 10**6))
def test_bounds_are_those_of_scipy(size, quantile, seed):
    values = np.array(random.Random(seed).sample(range(10**6), size), dtype=float)
    found = o.quantile_interval(values, quantile)
    expected = stats.quantile_test(values, q=0, p=float(quantile)).confidence_interval(0.95)
    for ours, theirs in zip(found[1:], expected, strict=True):
        assert ours == theirs or (math.isinf(ours) and math.isnan(theirs))


def test_a_missing_value_moves_the_quantile_as_far_as_it_could():
    values = [*range(1, 100), math.inf]
    assert o.quantile_interval(values, F(95, 100)).value == 95
    assert o.quantile_interval([1.0, math.inf], F(95, 100)).value == math.inf


def test_a_ratio_is_of_sums_and_exact_in_decimals():
    cost = np.array([0.001, 0.02, 0.0001, 0.3])
    tokens = np.array([100, 900, 10, 20_000])
    found = o.ratio_of_sums(cost, tokens, scale=1000)
    assert found.exact and found.value == F("0.3211") * 1000 / 21_010
    assert float(found.value) != pytest.approx(float(np.mean(1000 * cost / tokens)))
    # The limit itself, which no sum of binary floats hits.
    exactly = o.ratio_of_sums(np.full(70, 0.02), np.full(70, 1000), scale=1000)
    assert exactly.value == F("0.020") and sum([0.02] * 70) != 1.4
    assert exactly.low <= 0.02 <= exactly.high
    third = o.ratio_of_sums(np.full(3, 1 / 3), np.ones(3))
    assert not third.exact and float(third.value) == pytest.approx(1 / 3)


def test_the_linearised_error_is_the_formula_and_covers():
    generator = np.random.default_rng(5)
    tokens = generator.integers(50, 500, 400)
    cost = tokens * 2e-5 + generator.normal(0, 1e-3, 400)
    found = o.ratio_of_sums(cost, tokens, scale=1000)
    residual = cost - float(found.value) * tokens / 1000
    error = 1000 * residual.std(ddof=1) / (tokens.mean() * 20)
    assert found.high - float(found.value) == pytest.approx(error * stats.t.ppf(0.975, 399), rel=1e-6)
    misses = 0
    for _ in range(400):
        t = generator.integers(50, 500, 200)
        r = o.ratio_of_sums(t * 2e-5 + generator.normal(0, 1e-3, 200), t, scale=1000)
        misses += not r.low <= 0.02 <= r.high
    assert misses <= 0.085 * 400


def test_requests_of_one_session_are_one_observation():
    cost, tokens = np.tile([0.1, 0.3, 0.2, 0.5], 25), np.full(100, 10)
    sessions = np.tile(np.arange(4), 25)
    single, clustered = (
        o.ratio_of_sums(cost, tokens),
        o.ratio_of_sums(cost, tokens, clusters=sessions),
    )
    assert clustered.value == single.value
    assert clustered.high - clustered.low > 5 * (single.high - single.low)
    assert o.ratio_of_sums(cost, tokens, clusters=np.zeros(100, np.int64)).high == math.inf


def test_what_is_no_ratio_is_refused():
    with pytest.raises(ValueError, match="not positive"):
        o.ratio_of_sums(np.ones(2), np.zeros(2))
    with pytest.raises(ValueError, match="1 terms above, 0 below"):
        o.ratio_of_sums(np.ones(1), np.ones(0))


@settings(deadline=None)
@given(st.lists(st.integers(-(10**15), 10**15), min_size=1, max_size=50))
def test_sums_of_billionths_are_exact(values):
    floats = np.array(values) / 1e9
    found = o._exact_sum(floats)
    if found.exact:
        assert found.value == F(sum(round(float(f) * 1e9) for f in floats), 10**9)
