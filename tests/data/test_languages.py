"""The detector on clear cases, on what is neutral, and on the limits that its docstring states."""

from __future__ import annotations

import pytest

from posttrain.data.languages import mixes_languages, script_shares


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("He has 3 apples, 然后 he buys 4 more.", "en"),
        ("First add the numbers, so we get 12 个 apples in the basket.", "en"),
        ("小明有3个苹果, then he buys 4 more.", "zh"),
        ("先算 total 再减去4。", "zh"),
        ("先算 3 + 4 = 7。", "en"),
        ("He has 3 apples and buys 4 more.", "zh-CN"),
        ("сначала add them", "ru"),
        ("Ｔｈｅｎ 先加上4个", "zh"),
    ],
)
def test_mixed_text_is_seen(text, language):
    assert mixes_languages(text, language)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("He has 3 apples and buys 4 more: 3 + 4 = 7.", "en"),
        ("小明有3个苹果,又买了4个,一共 3 + 4 = 7 个。", "zh"),
        ("<think> 先加 3 + 4 = 7 </think> <answer> 7 </answer>", "zh"),
        ("<|im_start|>设 x = 3, y = 4 km, 那么 x + y = 7", "zh"),
        (r"所以 \frac{3}{4} \cdot 8 = 6 \text{}", "zh"),
        ("The angle is π/2 and α + β = 90", "en"),
        ("3 + 4 = 7", "zh"),
        ("", "en"),
        ("🍎🍎🍎 = 3", "en"),
        ("Café naïve Ångström", "en"),
        ("りんごを3個買いました。", "ja"),
        ("Hier sind drei Äpfel", "de"),
    ],
)
def test_text_of_one_language_is_not_mixed(text, language):
    assert not mixes_languages(text, language)


def test_words_of_the_question_are_neutral():
    text = "Tom 有 3 个苹果, Tom 又买了 4 个。"
    assert mixes_languages(text, "zh")
    assert not mixes_languages(text, "zh", question="Tom有3个苹果,又买了4个。现在有几个?")
    assert mixes_languages(text + " So he has seven.", "zh", question="Tom有3个苹果")


def test_one_stray_character_in_a_long_text_is_below_the_threshold():
    text = "Adding the numbers step by step gives the total of the basket. " * 5
    assert not mixes_languages(text + "个", "en")
    assert mixes_languages(text[:120] + "个", "en")


def test_the_stated_blind_spots_are_as_stated():
    assert not mixes_languages("First add, puis soustrais les pommes", "en")
    assert not mixes_languages("我 go 商店", "zh")
    assert mixes_languages("Li Ming (李明) has 3 apples", "en")


def test_shares_are_weighted_and_sum_to_one():
    shares = script_shares("abcdef 个个")
    assert shares == {"CJK": 0.5, "LATIN": 0.5}
    assert sum(script_shares("abc где 个 ελληνικά").values()) == pytest.approx(1)
    assert script_shares("12 + 3 = 15") == {}
