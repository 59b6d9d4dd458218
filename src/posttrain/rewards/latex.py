r"""Comparing formulas with math-verify.

Here: the only place that imports math-verify and sympy. Not here: the clock. math-verify's own timeouts are
off, because they need SIGALRM in a main thread and do not stop ``\boxed{\dfrac{5^{5^{5^{5^5}}-4}-5}{16}}``
(Math-Verify issue 65); run it inside ``pool.VerifierPool``, which kills the process instead.

Covered: what math-verify 0.9 parses: fractions, roots, powers, intervals, sets, equations, matrices. Not
covered: prose and single letters, which it would read as products of variables (``four`` as f·o·r·u, so that
anagrams are equal): they are refused before they reach it.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from functools import lru_cache
from typing import Any, Literal, TypeAlias

MAX_CHARACTERS = 1000
"""Longer texts are not read as a formula."""

Comparison: TypeAlias = Literal["equal", "different", "unreadable_reference", "unreadable_answer"]

_COMMAND = re.compile(r"\\(?:text|mathrm|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_PROSE = re.compile(r"[A-Za-z]{4,}|\b(?:and|or|not|is|of|to|the)\b|[\u3400-\u9fff]{2,}", re.IGNORECASE)
_FUNCTIONS = re.compile(r"(?:arc)?(?:sinh?|cosh?|tanh?|sqrt|log|infinity|infty|frac)", re.IGNORECASE)
_MATHEMATICS = re.compile(r"[\d\\+\-*/^=<>_{}()\[\]|!√π∞≤≥∪∩±×÷·]")
_MARKUP = re.compile(r"[\\^_{}√π]")
_DELIMITERS = re.compile(r"\$+|\\[()\[\]]")


def is_installed() -> bool:
    """Whether math-verify can be imported."""
    return importlib.util.find_spec("math_verify") is not None


def load() -> None:
    """Import math-verify and build its parser's tables now, so that no sample's clock pays for it (about a
    second)."""
    compare(r"\frac{1}{2}", r"\frac{2}{4}")


def has_markup(text: str) -> bool:
    """Whether ``text`` holds notation beyond digits, letters and the four operations."""
    return _MARKUP.search(text) is not None


def is_formula(text: str) -> bool:
    """Whether ``text`` looks like mathematics rather than words."""
    if len(text) > MAX_CHARACTERS or not _MATHEMATICS.search(text):
        return False
    return not _PROSE.search(_FUNCTIONS.sub(" ", _COMMAND.sub(" ", text)))


def compare(reference: str, answer: str) -> Comparison:
    """Whether math-verify finds ``answer`` equal to ``reference``. May never return: see the module's
    docstring."""
    if not is_formula(reference) or not (gold := _parse(reference)):
        return "unreadable_reference"
    if not is_formula(answer) or not (given := _parse(answer)):
        return "unreadable_answer"
    return "equal" if _math_verify().verify(gold, given, timeout_seconds=None) else "different"


@lru_cache(maxsize=1)
def _math_verify() -> Any:
    import math_verify

    for name in ("parser", "grader", "utils"):  # they warn that their timeouts are off
        logging.getLogger(f"math_verify.{name}").setLevel(logging.CRITICAL)
    return math_verify


@lru_cache(maxsize=256)  # a group of completions shares its reference
def _parse(text: str) -> list[Any]:
    bare = _DELIMITERS.sub(" ", text).strip()
    found: list[Any] = _math_verify().parse(f"${bare}$", fallback_mode="no_fallback", parsing_timeout=None)
    return found
