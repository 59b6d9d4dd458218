"""Perfect completions get full marks under every recipe's verifiers; and the names of failures."""

from __future__ import annotations

import itertools

import pytest

from posttrain.rewards import (
    RewardConfig,
    Sample,
    VerifierPool,
    best_value,
    build_reward,
    check_gold,
    error_kind,
    gold_completion,
    gold_sample,
)

FORMS: list[list[dict[str, object]]] = [
    [],
    [{"kind": "think_format"}],
    [{"kind": "think_format", "layout": "think"}],
    [{"kind": "think_format", "layout": "think"}, {"kind": "answer_tag"}],
    [{"kind": "tag_count"}, {"kind": "repetition", "ngram_size": 2}],
    [{"kind": "think_format"}, {"kind": "length", "min_tokens": 40, "max_tokens": 90}],
    [
        {"kind": "repetition", "unit": "token"},
        {"kind": "soft_overlong", "max_tokens": 99, "cache_tokens": 20},
    ],
]
SOURCES = ["tag", "boxed", "last_number", "tag_or_boxed"]


def config(verifiers: list[dict[str, object]]) -> RewardConfig:
    return RewardConfig.model_validate({"verifiers": [{"verifier": verifier} for verifier in verifiers]})


@pytest.mark.parametrize(("form", "source"), list(itertools.product(FORMS, SOURCES)))
@pytest.mark.parametrize("prefilled", [False, True])
def test_gold_completions_get_full_marks(form: list[dict[str, object]], source: str, prefilled: bool) -> None:
    reward = config([{"kind": "accuracy", "mode": "numeric", "answer_source": source}, *form])
    for reference in ("8", "5 apples", "-1,234.5", "3/4", "50%", "五个"):
        score = build_reward(reward).score(gold_sample(reference, reward, think_prefilled=prefilled))
        assert score.value == best_value(reward), (gold_completion(reference, reward), score)


def test_check_gold_names_the_references_that_cannot_win() -> None:
    reward = config([{"kind": "accuracy", "mode": "numeric"}, {"kind": "think_format"}])
    with VerifierPool(reward) as pool:
        assert check_gold(pool, ["8", "5 apples", "290/2"]) == []
        failures = check_gold(pool, ["8", "four", "5 and 3", "9"])
    assert [(failure.index, failure.reference) for failure in failures] == [(1, "four"), (2, "5 and 3")]
    assert failures[0].score.value is None
    assert failures[0].score.reason == "accuracy: reference is not a number"
    assert failures[0].completion == gold_completion("four", reward)


def test_gold_uses_the_tokenizer_it_is_given() -> None:
    reward = config([{"kind": "length", "max_tokens": 5}])
    sample = gold_sample("8", reward, encode=lambda text: list(text.encode()))
    assert sample.token_count == len(sample.completion.encode())
    assert sample.extra["completion_ids"] == list(sample.completion.encode())


@pytest.mark.parametrize(
    ("completion", "correct", "kind"),
    [
        ("<think> a </think> <answer> 8 </answer>", 1.0, "correct"),
        ("<think> a </think> <answer> 9 </answer>", 0.0, "wrong_answer"),
        ("<think> a </think> <answer> 8 </answer>", None, "unscored"),
        ("8", 0.0, "broken_format_right_number"),
        ("<think> a </think> <answer> 9 </answer> bye", 0.0, "broken_format"),
        ("<think> so 9", 0.0, "no_answer"),
    ],
)
def test_error_kinds_with_a_given_verdict(completion: str, correct: float | None, kind: str) -> None:
    assert error_kind(Sample(completion, "8"), correct) == kind


def test_error_kinds_under_other_forms() -> None:
    free = Sample("<think> 3+2 </think> 5 apples", "5 apples")
    assert error_kind(free, layout="think", answer_source="last_number") == "correct"
    assert error_kind(free) == "broken_format_right_number"
    boxed = Sample(r"so \boxed{6}", "5")
    assert error_kind(boxed, layout=None, answer_source="boxed") == "wrong_answer"
    assert error_kind(Sample("so 6", "5"), layout=None, answer_source="boxed") == "no_answer"
    assert error_kind(Sample("<think> so", "5", truncated=True)) == "truncated"
    assert error_kind(Sample("<answer> a </answer>", "four")) == "unscored"
