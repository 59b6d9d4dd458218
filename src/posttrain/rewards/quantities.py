"""Reading one plain number out of a short text, exactly.

Here: text to ``Number`` (a Fraction and whether it was a percentage) and their equality. Not here: formulas
(``latex``) or where the answer stands in a completion (``parsing``). To accept another spelling:
``_normalise`` for characters, ``_TOKEN`` for digits, ``_chinese`` for Chinese numerals, and a row in its test
table.

Covered: ``5 apples``, ``$1,234.50``, ``-$5``, ``8.0``, ``.5``, ``50%``, ``3/4``, ``1 1/2``, ``½``,
``\\frac{3}{4}``, ``1.5e3``, ``3 million``, ``x = 5`` (the right-hand side), full-width digits, ``5个苹果``,
``三百二十一``, ``3万``, ``百分之五``, ``四分之三``, ``负五``. Units are ignored: ``5 apples`` equals
``5 oranges``.

Not covered, on purpose None rather than a guess: two different numbers in one text, arithmetic that was left
undone (``3 + 2``, ``290/2``), decimal commas, number words in English, ``5 and a half``, a variable beside a
number (``5x``). Units are never converted.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_CHARACTERS = 400
"""Longer texts are not read as a number."""

_SIMPLE = re.compile(r"\s*([+-]?[0-9]{1,18})\s*")
_SUPERSCRIPT = re.compile("[²³¹⁰-₎]")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_MINUS = str.maketrans({"−": "-", "﹣": "-", "–": "-", "‐": "-", "‑": "-", "⁄": "/", "’": "'"})
_CURRENCY = re.compile(r"([+-]?)\s*(?:\$|[€£¥₹₩₽])\s*(?=[-+.\d])")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_LATEX_SPACE = re.compile(r"\\[,;:!  ]|~|\\quad|\\left|\\right|\\[()\[\]]")
_LATEX_OPERATOR = re.compile(r"\\(cdot|times|div)(?![A-Za-z])")
_OPERATORS = {"cdot": "·", "times": "×", "div": "÷"}
_SCIENTIFIC = re.compile(r"(\d)\s*[×*·]\s*10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3}))")
_EQUALS = re.compile(r"(?<![<>!])=")
_SQUARE_UNIT = re.compile(r"\b([A-Za-z]{2,}|m)\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³]|(?<=m)[23]\b)")
_DEGREES = re.compile(r"°\s*[CF]?\b|\\circ")

_SCALE = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_CHINESE_SCALE = {"百": 10**2, "千": 10**3, "万": 10**4, "亿": 10**8}
_TOKEN = re.compile(
    r"""(?P<zh_percent>百分之\s*)?
    (?<![A-Za-z0-9_.])
    (?P<sign>[+-]?|负)
    (?: (?:(?P<mixed>\d+)\s+)? (?P<numerator>\d+)\s*/\s*(?P<denominator>\d+)
      | (?P<decimal>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+) (?:[eE](?P<exponent>[+-]?\d{1,3}))?
    )
    (?!\.?\d)(?![A-Za-z_](?![A-Za-z]))
    (?: \s*(?P<percent>%|percent\b|per\ cent\b|pct\b)
      | \s*(?P<scale>hundred|thousand|million|billion|trillion|dozen)\b
      | \s*(?P<zh_scale>(?:百(?!分|合)|千(?![克米瓦卡帕])|万|亿)+)
    )?""",
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_LONELY_LETTERS = frozenset("aAImgshlLt")
"""Single letters that may stand beside a number: articles, and units written with a space (``5 m``)."""
_CHANGING_WORDS = frozenset(
    {
        "half",
        "halves",
        "quarter",
        "quarters",
        "third",
        "thirds",
        "twice",
        "double",
        "triple",
        "minus",
        "negative",
    }
    | {"plus", "times", "over", "squared", "cubed"}
)
"""Words that change the number they stand beside."""
_OPERATOR = re.compile(r"[+*/^×÷·√<>=≈≠≤≥±~_|\\{}%]|(?<![A-Za-z])-(?![A-Za-z])")
_CALCULATION = re.compile(r"[\d\s.,()%^+\-*/×÷·]+")

_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_NUMERAL = re.compile(
    r"(?P<percent>百分之)?(?P<sign>负?)(?P<number>[零〇一二两三四五六七八九十百千万亿]+)(?:点(?P<decimals>[零〇一二三四五六七八九]+))?"
    r"(?:分之(?P<over>[零〇一二两三四五六七八九十百千万亿]+))?"
)
_NOT_NUMERALS = re.compile("一共|一起|一样|一些|千克|千米|百合|百分点")


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number as it was written."""

    value: Fraction
    """Its value; 50% is one half."""
    percent: bool = False
    """Whether it was written as a percentage."""

    def equals(self, other: Number) -> bool:
        """Exact and symmetric. Where just one side is a percentage, 50% equals both 1/2 and 50: whether an
        answer is meant in per cent is in the question, which no verifier reads."""
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        return self.value * (100 if self.percent else 1) == other.value * (100 if other.percent else 1)

    def latex(self) -> str:
        """The number as LaTeX."""
        if self.value.denominator == 1:
            return str(self.value.numerator)
        sign = "-" if self.value < 0 else ""
        return rf"{sign}\frac{{{abs(self.value.numerator)}}}{{{self.value.denominator}}}"


@lru_cache(maxsize=4096)
def parse_number(text: str, *, undivided: bool = False) -> Number | None:
    """The one number that ``text`` states, or None.

    A fraction that is a whole number (``290/2``) is arithmetic left undone and is None, unless ``undivided``
    allows it (for references).
    """
    if simple := _SIMPLE.fullmatch(text):
        return Number(Fraction(int(simple[1])))
    if len(text) > MAX_CHARACTERS:
        return None
    text = _SQUARE_UNIT.sub(r"\1", _LATEX_TEXT.sub(r" \1", text))
    if _SUPERSCRIPT.search(text):
        return None
    text = right_hand_side(_normalise(text))
    if not re.search(r"\d", text):
        found = _chinese(_NOT_NUMERALS.sub(" ", text))
        return found[0] if found and all(number == found[0] for number in found) else None
    tokens = list(_TOKEN.finditer(text))
    numbers = [_read(token) for token in tokens]
    if not numbers or any(number is None or number != numbers[0] for number in numbers):
        return None
    if not undivided and any(_is_undivided(token) for token in tokens):
        return None
    return numbers[0] if _is_plain(_TOKEN.sub(" ", text)) else None


def last_number(text: str) -> Number | None:
    """The last number in a longer text, or None. Takes the last 2,000 characters; what stands beside it is
    not judged."""
    text = _normalise(text[-2000:])
    tokens = list(_TOKEN.finditer(text))
    if tokens:
        return None if _is_undivided(tokens[-1]) else _read(tokens[-1])
    found = _chinese(_NOT_NUMERALS.sub(" ", text))
    return found[-1] if found else None


def is_calculation(text: str) -> bool:
    """Whether ``text`` is arithmetic on plain numbers that was not carried out, such as ``3 + 2`` or
    ``290/2``."""
    side = right_hand_side(_normalise(text[:MAX_CHARACTERS]))
    return _CALCULATION.fullmatch(side) is not None and re.search(r"\d\s*[-+*/×÷·^(]", side) is not None


def right_hand_side(text: str) -> str:
    """What stands after the last equals sign: ``3 + 2 = 5`` states 5."""
    return _EQUALS.split(text)[-1]


def _normalise(text: str) -> str:
    text = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    text = _LATEX_TEXT.sub(r" \1", text)
    text = _LATEX_FRACTION.sub(lambda m: f"{m[1]}{' ' if m[1] else ''}{m[2]}/{m[3]}", text)
    text = _LATEX_OPERATOR.sub(lambda found: _OPERATORS[found[1]], text)
    text = text.replace("{,}", ",").replace(r"\%", "%").replace(r"\$", "$").replace("**", " ")
    text = _SCIENTIFIC.sub(lambda m: f"{m[1]}e{m[2] or m[3]}", _LATEX_SPACE.sub(" ", text))
    text = _CURRENCY.sub(r" \1", text).replace("$", " ")
    return _DEGREES.sub(" ", text)


def _read(token: re.Match[str]) -> Number | None:
    if token["decimal"] is not None:
        value = Fraction(token["decimal"].replace(",", ""))
        if token["exponent"]:
            value *= Fraction(10) ** int(token["exponent"])
    else:
        denominator = int(token["denominator"])
        if denominator == 0:
            return None
        value = int(token["mixed"] or 0) + Fraction(int(token["numerator"]), denominator)
    if token["scale"]:
        value *= _SCALE[token["scale"].lower()]
    for character in token["zh_scale"] or "":
        value *= _CHINESE_SCALE[character]
    percent = bool(token["percent"] or token["zh_percent"])
    return Number((-value if token["sign"] in ("-", "负") else value) / (100 if percent else 1), percent)


def _is_undivided(token: re.Match[str]) -> bool:
    if token["denominator"] is None or token["mixed"] is not None:
        return False
    return int(token["denominator"]) != 0 and int(token["numerator"]) % int(token["denominator"]) == 0


def _is_plain(rest: str) -> bool:
    """Whether what stands beside the number leaves it a number: no digits, no operators, no variables."""
    if re.search(r"\d", rest) or _OPERATOR.search(rest):
        return False
    words = _WORD.findall(rest)
    return all((len(w) > 1 or w in _LONELY_LETTERS) and w.lower() not in _CHANGING_WORDS for w in words)


def _chinese(text: str) -> list[Number]:
    numbers = []
    for found in _NUMERAL.finditer(text):
        value = Fraction(_chinese_integer(found["number"]))
        if found["decimals"]:
            digits = "".join(str(_DIGITS[c]) for c in found["decimals"])
            value += Fraction(int(digits), 10 ** len(digits))
        if found["over"]:
            if value == 0:
                continue
            value = _chinese_integer(found["over"]) / value
        percent = bool(found["percent"])
        numbers.append(Number((-value if found["sign"] else value) / (100 if percent else 1), percent))
    return numbers


def _chinese_integer(numeral: str) -> int:
    """``三百二十一`` is 321; digits one by one (``二〇二五``) are read as written."""
    if not any(c in _UNITS or c in "万亿" for c in numeral):
        return int("".join(str(_DIGITS[c]) for c in numeral))
    total = section = digit = 0
    for character in numeral:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _UNITS:
            section += (digit or 1) * _UNITS[character]
            digit = 0
        else:
            total = (total + section + digit) * _CHINESE_SCALE[character]
            section = digit = 0
    return total + section + digit
