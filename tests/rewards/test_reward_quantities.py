"""Reading plain numbers: a table of spellings, and properties of equality."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.quantities import Number, is_calculation, last_number, parse_number

SPELLINGS = {
    "5": [
        *(
            "5",
            " 5 ",
            "5.",
            "5 apples",
            "5 apples.",
            "The answer is 5.",
            "**5**",
            "(5)",
            "$5",
            "US$5",
            "5€",
            r"\$5",
        ),
        *(
            "$5$",
            r"\(5\)",
            r"5\text{ apples}",
            r"5~\mathrm{kg}",
            "5kg",
            "5 m",
            "5 cm^2",
            "5th",
            "5 °C",
            "x = 5",
            "5.0",
        ),
        *(
            "3 + 2 = 5 apples",
            "Ben's 5 apples",
            "5 5",
            "５",
            "5个苹果",
            "五个苹果",
            "一共五个",
            "答案是五。",
            "5千克",
            "10/4 = 5",
        ),
    ],
    "-5": ["-5", "−5", "-$5", "$-5", "负五", "负5", "–5"],
    "2469/2": ["1,234.50", "$1,234.50", "１，２３４.５", "1{,}234.5"],
    "3/4": ["3/4", "6/8", "0.75", ".75", r"\frac{3}{4}", r"\dfrac{6}{8}", "¾", "四分之三", "75e-2"],
    "3/2": ["1 1/2", "1½", r"1\frac{1}{2}", "1.5", "一点五"],
    "1500": [
        "1500",
        "1.5e3",
        "1.5 thousand",
        "1.5千",
        "15百",
        "1.5 × 10^3",
        r"1.5 \times 10^{3}",
        "一千五百",
    ],
    "24": ["24", "2 dozen", "二十四"],
    "321": ["三百二十一", "321"],
    "12000": ["1.2万", "一万二千", "12,000"],
    "2025": ["二〇二五"],
    "100": ["100 m2", "100 m²", "100", "一百"],
}
NOT_NUMBERS = [
    *(
        "",
        " ",
        "five",
        "m2",
        "5²",
        "5 and 3",
        "7 or 8",
        "5 and a half",
        "negative 5",
        "3 + 2",
        "290/2",
        "8/1",
        "12,5",
    ),
    *("5x", "5 x", "x", "1.2.3", "3-5", "x >= 5", "5:30", "1/0", "1,2345", r"\sqrt{4}", "2^3", "9" * 500),
]


@pytest.mark.parametrize(("value", "text"), [(v, text) for v, texts in SPELLINGS.items() for text in texts])
def test_spellings(value: str, text: str) -> None:
    assert parse_number(text) == Number(Fraction(value))


@pytest.mark.parametrize("text", ["50%", "50 %", r"50\%", "50 percent", "百分之五十", "百分之50", "50.0 pct"])
def test_percentages(text: str) -> None:
    number = parse_number(text)
    assert number == Number(Fraction(1, 2), percent=True)
    for other in ("50", "0.5", "1/2", "50%"):
        assert number.equals(parse_number(other) or Number(Fraction(0)))
    assert not number.equals(Number(Fraction(5)))


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_is_not_one_plain_number_is_none(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text", ["3 + 2", "290/2", r"\frac{290}{2}", "2*4", "2 × 4", r"2 \cdot 4", "10-2", "2(4)", "=3+2"]
)
def test_arithmetic_left_undone(text: str) -> None:
    assert is_calculation(text)
    assert parse_number(text) is None


@pytest.mark.parametrize("text", ["8", "8 apples", "-8", "3 + 5 = 8", "x", r"\sqrt{64}"])
def test_what_is_not_arithmetic(text: str) -> None:
    assert not is_calculation(text)


def test_a_reference_may_be_an_undivided_fraction() -> None:
    assert parse_number("290/2", undivided=True) == Number(Fraction(145))


@pytest.mark.parametrize(
    ("text", "value"),
    [("so 5 apples, then 7.", "7"), ("答案是十二。", "12"), ("we get $12.50 total", "12.5")],
)
def test_last_number(text: str, value: str) -> None:
    assert last_number(text) == Number(Fraction(value))
    assert last_number("no digits here") is None


decimals = st.decimals(min_value=-(10**9), max_value=10**9, places=3)
fractions = st.fractions(min_value=-1000, max_value=1000, max_denominator=1000)


@st.composite
def spelled(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A number as text, and its value."""
    if draw(st.booleans()):
        decimal = draw(decimals)
        return draw(st.sampled_from([f"{decimal:f}", f"{decimal:,f}", f"{decimal:f} apples"])), Fraction(
            decimal
        )
    fraction = draw(fractions)
    return (str(fraction) if fraction.denominator > 1 else str(fraction.numerator)), fraction


@given(spelled(), spelled())
def test_equality_is_exact_and_symmetric(first: tuple[str, Fraction], second: tuple[str, Fraction]) -> None:
    left, right = parse_number(first[0]), parse_number(second[0])
    assert left is not None
    assert right is not None
    assert left.equals(right) == right.equals(left) == (first[1] == second[1])


@given(spelled(), st.text(" \t\n", max_size=4), st.text(" \t\n", max_size=4))
def test_white_space_around_a_number_means_nothing(
    number: tuple[str, Fraction], before: str, after: str
) -> None:
    assert parse_number(before + number[0] + after) == parse_number(number[0]) == Number(number[1])


@given(spelled())
def test_latex_of_a_number_reads_back(number: tuple[str, Fraction]) -> None:
    assert parse_number(Number(number[1]).latex()) == Number(number[1])


@given(st.fractions(), st.fractions(), st.booleans(), st.booleans())
def test_percentages_keep_equality_symmetric(a: Fraction, b: Fraction, pa: bool, pb: bool) -> None:
    left, right = Number(a, pa), Number(b, pb)
    assert left.equals(right) == right.equals(left)
    assert left.equals(left)


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    first = parse_number(text)
    assert first is None or first.equals(first)
    last_number(text)
    is_calculation(text)
