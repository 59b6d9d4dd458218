"""Composition: linear, and None where a required part is None."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.rewards import (
    Accuracy,
    Composed,
    Length,
    Part,
    RewardConfig,
    Sample,
    TagCount,
    ThinkFormat,
    build_reward,
)
from posttrain.rewards.registry import best_value

weights = st.floats(0, 100, allow_nan=False)
completions = st.sampled_from(
    [
        "<think> a </think> <answer> 8 </answer>",
        "<answer> 8 </answer>",
        "<think> a </think> 8",
        "<answer> 9",
        "",
    ]
)


def reward(*weighted: tuple[float, bool]) -> Composed:
    verifiers = (Accuracy(mode="numeric"), ThinkFormat(), TagCount())
    return Composed(tuple(Part(v, w, r) for v, (w, r) in zip(verifiers, weighted, strict=True)))


@given(completions, st.tuples(weights, weights, weights), st.floats(0, 10))
def test_composition_is_linear(text: str, weight: tuple[float, float, float], scale: float) -> None:
    a, b, c = weight
    sample = Sample(text, "8")
    whole = reward((a, True), (b, True), (c, True)).score(sample)
    assert whole.value is not None
    assert set(whole.parts) == {"accuracy", "think_format", "tag_count"}
    values = [value or 0.0 for value in whole.parts.values()]
    assert math.isclose(whole.value, a * values[0] + b * values[1] + c * values[2], abs_tol=1e-9)
    scaled = reward((a * scale, True), (b * scale, True), (c * scale, True)).score(sample)
    assert math.isclose(scaled.value or 0.0, whole.value * scale, rel_tol=1e-9, abs_tol=1e-9)
    assert scaled.parts == whole.parts, "weights never change the parts"


def test_a_missing_required_part_makes_the_whole_none() -> None:
    sample = Sample("<think> a </think> <answer> 8 </answer>", "four")
    score = reward((1, True), (1, True), (1, True)).score(sample)
    assert score.value is None
    assert score.parts == {"accuracy": None, "think_format": 1.0, "tag_count": 1.0}
    assert score.reason == "accuracy: reference is not a number"


def test_a_missing_part_that_is_not_required_is_left_out() -> None:
    sample = Sample("<think> a </think> <answer> 8 </answer>", "four")
    assert reward((5, False), (1, True), (0.5, True)).score(sample).value == 1.5


def test_nothing_to_sum_is_none() -> None:
    lengths = (Length(max_tokens=5, name="short"), Length(max_tokens=9, name="long"))
    score = Composed(tuple(Part(verifier, required=False) for verifier in lengths)).score(
        Sample("no token count")
    )
    assert (score.value, score.reason) == (None, "short: no token count")


def config(*verifiers: object, **settings: object) -> RewardConfig:
    return RewardConfig.model_validate({"verifiers": list(verifiers), **settings})


def test_every_kind_is_built_and_named() -> None:
    built = build_reward(
        config(
            {"verifier": {"kind": "accuracy", "mode": "numeric"}, "weight": 2},
            {"verifier": {"kind": "think_format", "layout": "think"}},
            {"verifier": {"kind": "answer_tag"}, "required": False},
            {"verifier": {"kind": "tag_count"}},
            {"verifier": {"kind": "length", "max_tokens": 9}, "name": "short"},
            {"verifier": {"kind": "repetition"}},
            {"verifier": {"kind": "soft_overlong", "max_tokens": 9, "cache_tokens": 3}, "weight": 0},
        )
    )
    assert built.part_names == (
        *("accuracy", "think_format", "answer_tag", "tag_count"),
        *("short", "repetition", "soft_overlong"),
    )
    assert [part.weight for part in built.parts] == [2, 1, 1, 1, 1, 1, 0]
    assert built.parts[1].verifier == ThinkFormat(layout="think")
    assert not built.parts[2].required


def test_best_value_counts_scores_and_not_penalties() -> None:
    assert (
        best_value(
            config({"verifier": {"kind": "accuracy"}, "weight": 2}, {"verifier": {"kind": "repetition"}})
        )
        == 2.0
    )


@pytest.mark.parametrize(
    ("verifiers", "words"),
    [
        ([{"verifier": {"kind": "acuracy"}}], ["accuracy", "think_format"]),
        ([{"verifier": {"kind": "accuracy", "mod": "numeric"}}], ["mod", "Extra inputs are not permitted"]),
        ([{"verifier": {"kind": "accuracy", "mode": "exact"}}], ["mode", "'auto', 'numeric' or 'latex'"]),
        ([{"verifier": {"kind": "accuracy"}, "wieght": 2}], ["wieght"]),
        ([{"verifier": {"kind": "accuracy"}, "weight": -1}], ["weight", "greater than or equal to 0"]),
        ([{"verifier": {"kind": "accuracy"}, "weight": 0}], ["every verifier has weight 0", "`weight`"]),
        ([{"verifier": {"kind": "accuracy"}}] * 2, ["two verifiers are called 'accuracy'", "`name`"]),
        (
            [{"verifier": {"kind": "soft_overlong", "max_tokens": 5, "cache_tokens": 9}}],
            ["lower cache_tokens"],
        ),
        ([{"verifier": {"kind": "length", "min_tokens": 5, "max_tokens": 3}}], ["lower min_tokens"]),
        ([], ["at least 1 item"]),
    ],
)
def test_bad_configurations_say_which_key(verifiers: list[object], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        config(*verifiers)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(ValidationError, match="timeout_seconds"):
        config({"verifier": {"kind": "accuracy"}}, timeout_seconds=0)
