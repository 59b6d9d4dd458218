"""Language consistency: the texts of the specification, what is neutral, and what cannot raise it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.languages import target_language_share
from posttrain.rewards import Sample
from posttrain.rewards.config import LanguageConsistencyConfig
from posttrain.rewards.records import NO_LANGUAGE
from posttrain.rewards.registry import build_verifier

APPLES = """<think>
Start with 3.
Buying more things should be additive.
If so, then 2 ⇒ 3+2
...
</think>
5 apples"""
MIXED = """<think>
Start with 3.
买更多的东西应该是叠加的。 [Chinese text mixed in]
...
</think>"""
VERIFIER = build_verifier(LanguageConsistencyConfig())


def score(text: str, language: str | None = "en", prompt: str = "") -> float | None:
    return VERIFIER.score(Sample(text, None, prompt, language=language)).value


def test_the_apples_of_the_seed_are_in_one_language() -> None:
    assert score(APPLES) == 1.0


def test_the_mixed_think_block_of_the_seed_scores_low() -> None:
    value = score(MIXED)
    assert value is not None
    assert value < 0.5


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("<think>3+2=5, 5*2=10</think>10", "en"),
        ("<think>3+2=5</think>", "zh"),
        ("<think></think>", "en"),
        ("<think>x = 5 km, \\frac{1}{2} ≈ 0.5</think>", "zh"),
        ("<think>减11-3=8。乘8*2=16。</think><answer>16</answer>", "zh"),
        ("<think>先运行 `pip install numpy` 再调用 numpy.mean()。</think>", "zh"),
        ("<think>Take 12-3=9. The answer is 9.</think>", "en"),
        ("<think>Run the loop:\n```python\nfür = eins(zwei)\n```\nand read it.</think>", "en"),
    ],
)
def test_numbers_symbols_code_and_names_are_neutral(text: str, language: str) -> None:
    assert score(text, language) == 1.0


def test_a_name_of_the_question_is_neutral_and_another_one_is_not() -> None:
    text = "<think>Tom有3个苹果。</think>"
    assert score(text, "zh", "Tom有3个苹果,又买了4个。") == 1.0
    assert score(text, "zh") == pytest.approx(1 - 1 / (1 + 4 / 1.5))


def test_latin_languages_are_told_apart_by_sentences() -> None:
    pytest.importorskip("py3langid")
    french = "Il y a trois pommes et on ajoute deux pommes."
    english = "There are three apples and we add two more apples."
    assert score(f"<think>{french}</think>", "en") == 0.0
    assert score(f"<think>{french}</think>", "fr") == 1.0
    assert score(f"<think>{english} {french}</think>", "en") == pytest.approx(9 / 14)
    assert score("<think>Zuerst addieren wir die Zahlen zusammen.</think>", "en") == 0.0


def test_the_text_wholly_in_the_other_language() -> None:
    assert score("<think>Add 5 and 3 together.</think>", "zh") == 0.0
    assert score("<think>把五和三加起来。</think>", "en") == 0.0


def test_a_fixed_target_and_the_whole_text() -> None:
    fixed = build_verifier(LanguageConsistencyConfig(target="zh"))
    assert fixed.score(Sample("<think>Add these now.</think>", language="en")).value == 0.0
    whole = build_verifier(LanguageConsistencyConfig(part="whole"))
    text = "<think>Add.</think>加"
    assert VERIFIER.score(Sample(text, language="en")).value == 1.0
    assert (whole.score(Sample(text, language="en")).value or 0.0) < 1.0


def test_no_language_is_no_value() -> None:
    result = VERIFIER.score(Sample("<think>Add.</think>"))
    assert result.value is None
    assert result.reason == NO_LANGUAGE


@given(st.text(max_size=200), st.sampled_from(["en", "zh", "fr", "ru", "sw"]))
def test_the_share_is_a_share(text: str, language: str) -> None:
    share = target_language_share(text, language)
    assert share is None or 0.0 <= share <= 1.0


@given(
    st.lists(st.sampled_from(["Add these two.", "把它们加起来。", "5+3=8.", "Take one away."]), max_size=8)
)
def test_a_foreign_sentence_never_raises_it(parts: list[str]) -> None:
    text = " ".join(parts)
    before = target_language_share(text, "en")
    after = target_language_share(f"{text} 然后得到答案。", "en")
    assert after is not None
    assert before is None or after <= before
