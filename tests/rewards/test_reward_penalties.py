"""Penalties against their formulas, and against TRL's own where it has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards import Length, Repetition, Sample, SoftOverlong
from posttrain.rewards.records import NO_TOKEN_COUNT, NO_TOKEN_IDS


def of_tokens(count: int) -> Sample:
    return Sample("", token_count=count)


@pytest.mark.parametrize(
    ("tokens", "value"), [(0, -1.0), (10, -0.5), (20, 0.0), (100, 0.0), (150, -0.5), (900, -1.0)]
)
def test_length_is_a_band(tokens: int, value: float) -> None:
    assert Length(min_tokens=20, max_tokens=100).score(of_tokens(tokens)).value == pytest.approx(value)


@pytest.mark.parametrize(("tokens", "value"), [(80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0)])
def test_soft_overlong_is_dapo(tokens: int, value: float) -> None:
    assert SoftOverlong(max_tokens=100, cache_tokens=20).score(of_tokens(tokens)).value == pytest.approx(
        value
    )


def test_soft_overlong_without_a_ramp() -> None:
    verifier = SoftOverlong(max_tokens=100, cache_tokens=0)
    assert [verifier.score(of_tokens(n)).value for n in (100, 101)] == [0.0, -1.0]


def test_repetition_counts_unique_ngrams() -> None:
    tokens = Repetition(ngram_size=2, unit="token")
    assert tokens.score(Sample("", extra={"completion_ids": [1, 2, 3, 4]})).value == 0.0
    assert tokens.score(Sample("", extra={"completion_ids": [5, 5, 5, 5, 5]})).value == -0.75
    assert tokens.score(Sample("", extra={"completion_ids": [5]})).value == 0.0
    words = Repetition(ngram_size=2)
    assert words.score(Sample("one two three")).value == 0.0
    assert words.score(Sample("So so SO so so")).value == -0.75
    assert words.score(Sample("好好好好好")).value == -0.75, "Chinese needs no spaces"


def test_what_is_missing_is_none() -> None:
    assert Length(max_tokens=5).score(Sample("")).reason == NO_TOKEN_COUNT
    assert SoftOverlong(5, 1).score(Sample("")).reason == NO_TOKEN_COUNT
    score = Repetition(unit="token").score(Sample("a b"))
    assert (score.value, score.reason) == (None, NO_TOKEN_IDS)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4), st.integers(1, 30), st.data())
def test_same_values_as_trl(ids: list[int], ngram: int, longest: int, data: st.DataObject) -> None:
    trl = pytest.importorskip("trl.rewards.other_rewards")
    cache = data.draw(st.integers(0, longest))
    sample = Sample("", token_count=len(ids), extra={"completion_ids": ids})
    theirs = trl.get_repetition_penalty_reward(ngram)(completion_ids=[ids])[0]
    assert Repetition(ngram_size=ngram, unit="token").score(sample).value == pytest.approx(theirs)
    theirs = trl.get_soft_overlong_punishment(longest, cache)(completion_ids=[ids])[0]
    assert SoftOverlong(longest, cache).score(sample).value == pytest.approx(theirs)


@given(st.integers(0, 500), st.integers(0, 50), st.integers(50, 200))
def test_penalties_stay_between_minus_one_and_zero(tokens: int, shortest: int, longest: int) -> None:
    for verifier in (Length(max_tokens=longest, min_tokens=shortest), SoftOverlong(longest, shortest)):
        value = verifier.score(of_tokens(tokens)).value
        assert value is not None
        assert -1.0 <= value <= 0.0
