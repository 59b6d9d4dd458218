"""Who gets which answer: sticky, uniform, monotone in the share, independent between salts."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from posttrain.core.buckets import BUCKETS, bucket
from posttrain.routing.assignment import assign
from posttrain.routing.records import Arm, Canary, Experiment, Route, Shadow, Target
from tests.rollouts.rollout_world import one_unit_a_bucket

UNITS = [f"user-{index}" for index in range(20_000)]
texts = st.text(min_size=1, max_size=30)
shares = st.integers(0, BUCKETS)


def target(name: str) -> Target:
    return Target(name=name, upstreams=("a",), model=name)


def canary(share: int, salt: str = "s") -> Route:
    return Route(
        model="chat", production=target("p"), canary=Canary(target=target("c"), share=share, salt=salt)
    )


def split(*weights: int, name: str = "x", names: str = "abcdefgh") -> Route:
    arms = tuple(Arm(name=n, weight=w, target=target(n)) for n, w in zip(names, weights, strict=False))
    return Route(model="chat", production=target("p"), experiment=Experiment(name=name, arms=arms))


def test_a_bucket_is_the_hash_that_is_written_down():
    """Another process in another year, or a program that reads the log, must come to the same bucket."""
    digest = hashlib.sha256(b"rollout:r-1|u42").digest()
    assert bucket("rollout:r-1", "u42") == int.from_bytes(digest[:8], "big") % 10_000 == 3239
    assert bucket("s", "\ud800") in range(BUCKETS), (
        "half a surrogate pair, as JSON may carry it, is a unit too"
    )


@given(texts, texts, shares, shares)
def test_raising_the_share_only_adds_users(salt, unit, one, other):
    low, high = sorted((one, other))
    before, after = assign(canary(low, salt), unit), assign(canary(high, salt), unit)
    assert before.lane == "production" or after.lane == "canary"
    assert assign(canary(low, salt), unit) == before, "sticky"
    assert assign(canary(0, salt), unit).lane == "production"
    assert assign(canary(BUCKETS, salt), unit).lane == "canary"


@pytest.mark.parametrize("salt", ["rollout:r-1", "rollout:r-2", ""])
def test_buckets_are_uniform(salt):
    counts = np.bincount([bucket(salt, unit) // 100 for unit in UNITS], minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert len(counts) == 100


def test_units_that_look_alike_are_spread_too():
    alike = [f"{index:032d}" for index in range(20_000)]
    assert stats.chisquare(np.bincount([bucket("s", unit) // 100 for unit in alike])).pvalue > 1e-4


def test_salts_deal_independently():
    table = np.zeros((10, 10))
    for unit in UNITS:
        table[bucket("rollout:r-1", unit) // 1000, bucket("rollout:r-2", unit) // 1000] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-4
    # Shadow copies and the canary of one rollout, and the sampling of control.
    both = sum(bucket("r/shadow", unit) < 5000 and bucket("r", unit) < 5000 for unit in UNITS)
    assert stats.binomtest(both, len(UNITS), 0.25).pvalue > 1e-4


@pytest.mark.parametrize("share", [1, 100, 500, 2500, 5000, 9999])
def test_a_share_is_that_share_of_users(share):
    got = sum(assign(canary(share), unit).lane == "canary" for unit in UNITS)
    assert stats.binomtest(got, len(UNITS), share / BUCKETS).pvalue > 1e-4


EVERY = one_unit_a_bucket("experiment:x")


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8).filter(any))
@settings(max_examples=4, deadline=None)
def test_arms_get_their_shares_exactly_to_one_bucket(weights):
    route = split(*weights)
    counts = Counter(assign(route, unit).arm for unit in EVERY)
    for arm in route.experiment.arms:
        assert abs(counts[arm.name] - arm.weight * BUCKETS / sum(weights)) < 1
    assert sum(counts.values()) == BUCKETS


@given(st.integers(1, 1000), st.integers(1, 1000))
@settings(max_examples=4, deadline=None)
def test_swapping_the_arms_swaps_their_shares(first, second):
    """An arm's share follows its weight wherever it stands."""
    one = Counter(assign(split(first, second, names="ab"), unit).arm for unit in EVERY)
    other = Counter(assign(split(second, first, names="ba"), unit).arm for unit in EVERY)
    assert abs(one["a"] - other["a"]) <= 1 and abs(one["b"] - other["b"]) <= 1


@pytest.mark.parametrize("share", [1, 100, 500, 2500, 5000, 9999])
def test_a_canary_takes_exactly_its_buckets(share):
    assert sum(assign(canary(share, "experiment:x"), unit).lane == "canary" for unit in EVERY) == share


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any), texts)
def test_an_arm_without_weight_answers_nobody(weights, unit):
    found = assign(split(*weights), unit)
    assert weights["abcdefgh".index(found.arm)] > 0
    assert found.target.name == found.arm and found.lane == "production"


@given(texts)
def test_swapping_equal_arms_swaps_their_users(unit):
    """The side is a property of the place, not of the name: nothing favours an arm for what it is called."""
    one, other = split(1, 1, names="ab"), split(1, 1, names="ba")
    assert {assign(one, unit).arm, assign(other, unit).arm} == {"a", "b"}


def test_experiments_of_different_names_split_independently():
    table = np.zeros((2, 2))
    for unit in UNITS:
        first, second = assign(split(1, 1, name="x"), unit).arm, assign(split(1, 1, name="y"), unit).arm
        table["ab".index(first), "ab".index(second)] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-4


@given(texts, shares, shares)
def test_a_canary_takes_its_users_first_and_shadows_change_nobody_s_answer(unit, share, copied):
    arms = split(1, 1)
    both = arms.model_copy(update={"canary": canary(share).canary})
    assert (assign(both, unit).lane == "canary") == (assign(canary(share), unit).lane == "canary")
    if assign(both, unit).lane == "production":
        assert assign(both, unit).arm == assign(arms, unit).arm, "the rest is split as before"
    shadowed = both.model_copy(update={"shadow": Shadow(target=target("s"), share=copied, salt="z")})
    assert assign(shadowed, unit)[:3] == assign(both, unit)[:3]
    assert (assign(shadowed, unit).shadow is not None) == (bucket("z", unit) < copied)
