"""Accuracy: where the answer is read, what it is compared with, and what is not a zero."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards import Accuracy, AnswerTag, Sample, ThinkFormat
from posttrain.rewards.records import NO_REFERENCE, UNREADABLE_FORMULA, UNREADABLE_REFERENCE

# The seed's cold-start example (lesson M5-L01): the target has a think block and then "5 apples", no answer tag.
APPLES = """<think>
Start with 3.
Buying more things should be additive.
If so, then 2 ⇒ 3+2
...
</think>
5 apples"""
APPLES_MIXED = APPLES.replace("Buying more things should be additive.", "买更多的东西应该是叠加的。")


def tagged(answer: str, reference: str, mode: str = "auto") -> tuple[float | None, str]:
    sample = Sample(f"<think> so </think> <answer> {answer} </answer>", reference)
    score = Accuracy(mode=mode).score(sample)  # type: ignore[arg-type] - the parameter is one of three words
    return score.value, score.reason


@pytest.mark.parametrize("completion", [APPLES, APPLES_MIXED])
def test_the_apples_of_the_seed(completion: str) -> None:
    sample = Sample(completion, "5 apples", "Alice has 3 apples and buys 2 more. How many now?")
    assert Accuracy(answer_source="last_number").score(sample).value == 1.0
    assert ThinkFormat(layout="think").score(sample).value == 1.0
    # The same completion under R1-Zero's own layout, which wants an answer tag.
    assert Accuracy().score(sample).reason == "no answer tag"
    assert AnswerTag().score(sample).value == ThinkFormat().score(sample).value == 0.0
    wrapped = Sample(completion.replace("5 apples", "<answer>5 apples</answer>"), "5 apples")
    assert Accuracy(mode="numeric").score(wrapped).value == ThinkFormat().score(wrapped).value == 1.0


def test_three_plus_two_is_not_an_answer_to_the_apples() -> None:
    assert tagged("3+2", "5 apples") == (0.0, "answer is a calculation")
    assert tagged("3+2 = 5", "5 apples") == (1.0, "")
    assert tagged(r"\frac{10}{2}", "5") == (0.0, "answer is a calculation")


@pytest.mark.parametrize(
    "answer", ["8", "8.0", "8 apples", "$8.00", "8 个", "八", "16/2 = 8", r"\boxed{8}", r"$\boxed{8}$"]
)
@pytest.mark.parametrize("mode", ["auto", "numeric"])
def test_right_numbers(answer: str, mode: str) -> None:
    assert tagged(answer, "8", mode) == (1.0, "")
    assert tagged(answer, "9", mode) == (0.0, "wrong answer")


@pytest.mark.parametrize("answer", ["eight", "8 or 9", "7 8", "1 2 3 4 5 6 7 8", "", "the number", "8 / 0"])
def test_what_is_not_one_number_is_a_zero(answer: str) -> None:
    assert tagged(answer, "8")[0] == 0.0


def test_unreadable_references_are_none_never_zero() -> None:
    for reference in ("four", "A", "five apples", "New York", "x"):
        assert tagged(reference, reference) == (None, UNREADABLE_FORMULA)
        assert tagged("4", reference, "numeric") == (None, UNREADABLE_REFERENCE)
    for reference in ("", "  "):
        assert tagged("4", reference) == (None, NO_REFERENCE)
    assert Accuracy().score(Sample("<answer>4</answer>")).reason == NO_REFERENCE


def test_formulas_go_to_math_verify() -> None:
    pytest.importorskip("math_verify")
    assert tagged(r"2\sqrt{2}", r"\sqrt{8}") == (1.0, "")
    assert tagged("1+x^2", "x^2+1") == (1.0, "")
    assert tagged("x^2", "x^2+1") == (0.0, "wrong answer")
    assert tagged(r"\sqrt{64}", "8") == (1.0, "")
    assert tagged(r"\frac{1}{", r"\sqrt{8}")[0] == 0.0
    assert tagged("8", "8", "latex") == (1.0, "")
    assert tagged(r"\sqrt{8}", "8", "numeric") == (0.0, "answer is not a number")


def test_anagrams_are_not_equal() -> None:
    pytest.importorskip("math_verify")
    assert tagged("apple", "aplpe") == (None, UNREADABLE_FORMULA)
    assert tagged("silent", r"\sqrt{2}") == (0.0, "answer is not a number")


@pytest.mark.parametrize(
    ("source", "completion", "value"),
    [
        ("boxed", r"<think> \boxed{7} </think> so \boxed{8}", 1.0),
        ("boxed", r"so \boxed{\text{8 apples}}", 1.0),
        ("boxed", r"\boxed{7} no, \boxed{8}", 0.0),
        ("boxed", r"\boxed{8} that is \boxed{8.0}", 1.0),
        ("boxed", "<answer>8</answer>", 0.0),
        ("boxed", r"\boxed{8", 0.0),
        ("tag_or_boxed", r"\boxed{7} <answer>8</answer>", 1.0),
        ("tag_or_boxed", r"so \boxed{8}", 1.0),
        ("tag_or_boxed", "so 8", 0.0),
        ("tag", r"<answer>\boxed{8}</answer>", 1.0),
        ("last_number", "<think> 7 </think> first 9, then 8.", 1.0),
        ("last_number", "<think> so 8", 0.0),
        ("last_number", "it is 8", 1.0),
        ("last_number", "<think> 8 </think> done", 0.0),
    ],
)
def test_where_the_answer_is_read(source: str, completion: str, value: float) -> None:
    verifier = Accuracy(answer_source=source, mode="numeric")  # type: ignore[arg-type] - one of the four words
    assert verifier.score(Sample(completion, "8")).value == value


@given(
    st.integers(-(10**6), 10**6),
    st.integers(-(10**6), 10**6),
    st.sampled_from(["{}", "{}.0", "{} apples", "${}"]),
)
def test_accuracy_is_equality(reference: int, answer: int, form: str) -> None:
    assert tagged(form.format(answer), str(reference), "numeric")[0] == float(reference == answer)
    assert tagged(form.format(reference), str(reference), "numeric")[0] == 1.0


@given(
    st.text(alphabet="<>/thinkanswer 0123456789+=\\{}", max_size=80),
    st.sampled_from(["8", "5 apples", "1/3"]),
)
def test_any_completion_has_a_number_for_a_readable_reference(completion: str, reference: str) -> None:
    for source in ("tag", "boxed", "last_number", "tag_or_boxed"):
        value = Accuracy(mode="numeric", answer_source=source).score(Sample(completion, reference)).value  # type: ignore[arg-type] - literal
        assert value in (0.0, 1.0)


NASTY = [
    *(" ", "1", "1 ", "1,111", "<answer>", "<think>", r"\boxed{", "{", "(", "-", "$ ", "一", "ﷺ"),
    *("<think></think><answer>7</answer>", r"\boxed{7} "),
]


@pytest.mark.parametrize("piece", NASTY)
def test_plain_reading_is_quick_on_nasty_text(piece: str) -> None:
    """Nothing here has a clock of its own: every scan must be nearly linear."""
    start = time.process_time()
    for text in (piece * 5_000, f"<answer>{piece * 5_000}</answer>", rf"\boxed{{{piece * 5_000}}}"):
        for source in ("tag", "boxed", "last_number", "tag_or_boxed"):
            verifier = Accuracy(mode="numeric", answer_source=source)  # type: ignore[arg-type] - one of four words
            assert verifier.score(Sample(text, "8")).value == 0.0
        ThinkFormat().score(Sample(text))
    assert time.process_time() - start < 3.0
