"""Graders of the final text: exact, numeric, regex, JSON schema, word limit, answer tag, one language, step check.

Here: one class a kind. Not here: rules and versions (``rules``), code (``unit_tests``), tools (``tool_calls``).
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

from posttrain.data.languages import mixes_languages
from posttrain.environments.records import Answer, Case
from posttrain.evaluation.graders import config as c
from posttrain.evaluation.graders.code_blocks import split_code
from posttrain.evaluation.graders.records import Grade, Metric
from posttrain.evaluation.graders.schemas import Schema
from posttrain.rewards.formats import AnswerTag as AnswerTagVerifier
from posttrain.rewards.parsing import find_answer, parse_completion, reasoning_of
from posttrain.rewards.quantities import last_number, parse_number
from posttrain.rewards.records import Sample

_NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
_EQUATION = re.compile(
    rf"(?<![\w.,+*/×·÷^-])(?P<left>{_NUMBER})\s*(?P<sign>[-+*/×·÷−x])\s*(?P<right>{_NUMBER})\s*"
    rf"(?P<relation>=|≈)\s*(?P<result>{_NUMBER})(?![\w.,]*\d)(?!\s*[-+*/×·÷−^])"
)
_OPERATORS = "+-*/×·÷−^("


class Verdict:
    """What all graders of a kind share: a config, and a column for the verdict."""

    usual_metric = ""
    """The verdict's column where the config names none; empty for the grader's own name."""
    meaning = ""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.column = config.metric or self.usual_metric or f"{config.name}_pass"

    @property
    def name(self) -> str:
        """The config's name."""
        return str(self.config.name)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict's column."""
        return (Metric(self.column, "bool", self.meaning),)

    def verdict(self, passed: bool | None, reason: str, **more: bool | int | float | None) -> Grade:
        """A grade with the verdict in its column."""
        return Grade(passed, {self.column: passed, **more}, reason)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"


class Exact(Verdict):
    """The text is the expected one."""

    meaning = "The final text is the expected one."
    config: c.ExactConfig

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Compare."""
        expected = str(case.expected[self.config.expects]).strip()
        given = answer.text.strip()
        if self.config.source == "tag":
            found = find_answer(parse_completion(Sample(answer.text)), "tag")
            if found.text is None:
                return self.verdict(False, found.reason)
            given = found.text
        if self.config.ignore_case:
            expected, given = expected.casefold(), given.casefold()
        return self.verdict(given == expected, "" if given == expected else "another text")


class Numeric(Verdict):
    """The number is the expected one."""

    usual_metric = "math_correct"
    meaning = "The final number is the expected one, within the tolerance."
    config: c.NumericConfig

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Read both numbers and compare them; None where the expected one cannot be read."""
        gold = parse_number(str(case.expected[self.config.expects]), undivided=True)
        if gold is None:
            return self.verdict(None, "the expected answer is not a number")
        found = find_answer(parse_completion(Sample(answer.text)), self.config.source)
        if found.text is None:
            return self.verdict(False, found.reason)
        read = last_number if self.config.source == "last_number" else parse_number
        numbers = {read(text) for text in found.alternatives or (found.text,)}
        if len(numbers) > 1:
            return self.verdict(False, "several different answers")
        if (number := numbers.pop()) is None:
            return self.verdict(False, "no number")
        near = abs(number.value - gold.value) <= Fraction(self.config.tolerance)
        return self.verdict(
            near or gold.equals(number), "" if near or gold.equals(number) else "wrong answer"
        )


class Regex(Verdict):
    """A pattern is there, or is not."""

    meaning = "The pattern is found, or is absent where it must be."
    config: c.RegexConfig

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Search."""
        found = re.search(self.config.pattern, answer.text, re.IGNORECASE if self.config.ignore_case else 0)
        if bool(found) == self.config.present:
            return self.verdict(True, "")
        return self.verdict(False, f"found {found[0]!r}" if found else "not found")


class JsonSchema(Verdict):
    """The text is valid JSON by a schema."""

    meaning = "The final text is JSON that is valid by the schema."
    config: c.JsonSchemaConfig

    def __init__(self, config: c.JsonSchemaConfig) -> None:
        super().__init__(config)
        self._schema = Schema(config.schema_)

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Parse and validate."""
        text = answer.text
        if self.config.source == "block":
            blocks = split_code(text).blocks
            if not blocks:
                return self.verdict(False, "no code block")
            text = blocks[-1].code
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return self.verdict(False, f"not JSON: {error}")
        fault = self._schema.fault(value)
        return self.verdict(not fault, fault)


class WordLimit(Verdict):
    """The length in words is within limits."""

    meaning = "The number of words is within its limits."
    config: c.WordLimitConfig

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict and the count."""
        return (*super().metrics, Metric("words", "int64", "Words of the final text."))

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Count."""
        words = len(answer.text.split())
        if words > self.config.max_words:
            return self.verdict(False, f"{words} words, at most {self.config.max_words}", words=words)
        if words < self.config.min_words:
            return self.verdict(False, f"{words} words, at least {self.config.min_words}", words=words)
        return self.verdict(True, f"{words} words", words=words)


class AnswerTag(Verdict):
    """The answer stands in its tag."""

    usual_metric = "format_pass(tag='<answer>')"
    meaning = "Exactly one <answer> tag, with something in it, last."
    config: c.AnswerTagConfig

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Judge by the verifier that trains it."""
        score = AnswerTagVerifier().score(Sample(answer.text))
        return self.verdict(score.value == 1.0, score.reason)


class OneLanguage(Verdict):
    """The reasoning is in one language."""

    usual_metric = "one_language"
    meaning = "The reasoning keeps to the language of the case."
    config: c.OneLanguageConfig

    def grade(self, case: Case, answer: Answer) -> Grade:
        """None for a case that does not say its language."""
        language = case.tags.get("language")
        if not language:
            return self.verdict(None, "the case has no tag `language`")
        question = str(case.messages[-1].get("content", ""))
        mixed = mixes_languages(reasoning_of(answer.text), language, question=question)
        return self.verdict(not mixed, "languages are mixed" if mixed else "")


class StepCheck(Verdict):
    """Equations of the working are right."""

    meaning = "Every equation of the working is right."
    config: c.StepCheckConfig

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Check every ``a ∘ b = c``; chains and brackets are not read, so they cannot fail."""
        steps = [
            found for found in _EQUATION.finditer(answer.text) if not _continues(answer.text, found.start())
        ]
        for step in steps:
            if not _is_right(step):
                return self.verdict(False, f"wrong step: {' '.join(step[0].split())}")
        if len(steps) < self.config.min_steps:
            return self.verdict(False, f"{len(steps)} steps, at least {self.config.min_steps}")
        return self.verdict(True, f"{len(steps)} steps checked")


def _continues(text: str, start: int) -> bool:
    """Whether what stands before makes the match the end of a longer sum; a dash at the start of a line is a list's."""
    before = text[:start].rpartition("\n")[2].rstrip()
    return len(before) > 1 and before[-1] in _OPERATORS


def _is_right(step: re.Match[str]) -> bool:
    left, right, result = (Fraction(step[name].replace(",", "")) for name in ("left", "right", "result"))
    match step["sign"]:
        case "+":
            exact = left + right
        case "-" | "−":
            exact = left - right
        case "/" | "÷":
            if right == 0:
                return False
            exact = left / right
        case _:
            exact = left * right
    decimals = len(step["result"].partition(".")[2])
    half_unit = Fraction(Decimal(10) ** -decimals) / 2
    return abs(exact - result) <= (half_unit if decimals or step["relation"] == "≈" else 0)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
