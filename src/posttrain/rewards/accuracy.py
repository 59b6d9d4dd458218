"""Whether the final answer is right.

Here: reading the answer and comparing it with the reference. Not here: how numbers (``quantities``) and
formulas (``latex``) are read. Values: 1.0 right, 0.0 not right (with the reason), None where the *reference*
cannot be read.

Rules worth knowing. An answer is a value, not a calculation: against a plain number, ``3 + 2`` and ``290/2``
score 0, or a policy learns to copy the sum instead of doing it. Several answers that differ score 0,
whichever of them is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.rewards import latex
from posttrain.rewards.parsing import FoundAnswer, find_answer, one_line, parse_completion
from posttrain.rewards.quantities import Number, is_calculation, last_number, parse_number
from posttrain.rewards.records import (
    NO_MATH_VERIFY,
    NO_REFERENCE,
    UNREADABLE_FORMULA,
    UNREADABLE_REFERENCE,
    AnswerSource,
    Sample,
    Score,
)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """1.0 where the final answer equals the reference, else 0.0; None where the reference cannot be read."""

    name: str = "accuracy"
    mode: Literal["auto", "numeric", "latex"] = "auto"
    """``numeric``: exact arithmetic only. ``latex``: math-verify only. ``auto``: exact where both sides are
    plain numbers, math-verify where one is not."""
    answer_source: AnswerSource = "tag"

    def warm_up(self) -> None:
        """Load what scoring needs, before any sample's clock runs."""
        if self.mode != "numeric" and latex.is_installed():
            latex.load()

    def score(self, sample: Sample) -> Score:
        """Compare the final answer of ``sample`` with its reference."""
        reference = (sample.reference or "").strip()
        if not reference:
            return self._none(NO_REFERENCE)
        gold = parse_number(reference, undivided=True)
        if gold is None and self.mode == "numeric":
            return self._none(UNREADABLE_REFERENCE)
        if gold is None and not latex.is_formula(reference):
            return self._none(UNREADABLE_FORMULA)
        found = find_answer(parse_completion(sample), self.answer_source)
        if found.text is None:
            return self._zero(found.reason)
        if len({_same(text) for text in found.alternatives}) > 1:
            return self._zero("several different answers")
        return self._compare(reference, gold, found)

    def _compare(self, reference: str, gold: Number | None, found: FoundAnswer) -> Score:
        text = found.text or ""
        if gold is not None and one_line(text) == one_line(reference):
            return self._one()
        number = last_number(text) if self.answer_source == "last_number" else parse_number(text)
        if gold is not None and number is not None and self.mode != "latex":
            return self._one() if gold.equals(number) else self._zero("wrong answer")
        if gold is not None and is_calculation(text) and number is None:
            return self._zero("answer is a calculation")
        # Beside a plain number, plain text that is not one number (``7 8``, ``5x``) is not left to guesses.
        readable = latex.is_formula(text) and (gold is None or latex.has_markup(text))
        if self.mode == "numeric" or (number is None and not readable):
            return self._zero("answer is not a number")
        return self._compare_formulas(gold.latex() if gold else reference, number.latex() if number else text)

    def _compare_formulas(self, reference: str, answer: str) -> Score:
        if not latex.is_installed():
            return self._none(NO_MATH_VERIFY)
        match latex.compare(reference, answer):
            case "equal":
                return self._one()
            case "different":
                return self._zero("wrong answer")
            case "unreadable_reference":
                return self._none(UNREADABLE_FORMULA)
            case "unreadable_answer":
                return self._zero("answer is not a formula")

    def _one(self) -> Score:
        return Score(1.0, {self.name: 1.0})

    def _zero(self, reason: str) -> Score:
        return Score(0.0, {self.name: 0.0}, reason)

    def _none(self, reason: str) -> Score:
        return Score(None, {self.name: None}, reason)


def _same(answer: str) -> Number | str:
    """What two answers are compared by when one completion gives several."""
    return parse_number(answer) or one_line(answer)
