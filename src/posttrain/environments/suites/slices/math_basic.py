"""math_basic: small sums in words, answered in the tag.

Here: the generator, its rule, its scripted answers. To add a kind of problem: a line in ``_STORIES``.
"""

from __future__ import annotations

import random

from posttrain.environments.records import Answer, Case
from posttrain.environments.suites.slice_records import SliceSpec
from posttrain.environments.suites.slices._parts import (
    Ask,
    SliceSource,
    case_id,
    make_cases,
    pick,
    said,
    user,
)

NAME = "math_basic"
_NAMES = ("Carly", "Ben", "Amara", "Luis", "Wei", "Nadia", "Tom", "Priya", "Jonas", "Mina", "Omar", "Ella")
_THINGS = ("apples", "marbles", "stickers", "pencils", "cards", "shells", "coins", "books", "eggs", "stamps")
_STORIES: tuple[tuple[str, str], ...] = (
    ("{who} has {a} {what}, buys {b}, sells {c}. How many now?", "{a} + {b} - {c}"),
    ("{who} had {a} {what}, gave {c} away and found {b} more. How many are there now?", "{a} - {c} + {b}"),
    (
        "There are {b} boxes with {a} {what} each. {who} takes out {c}. How many are left in the boxes?",
        "{b} * {a} - {c}",
    ),
    ("{who} counts {a} {what} on Monday and {b} on Tuesday. How many altogether?", "{a} + {b}"),
    ("{who} wants {a} {what} and has {c}. How many are missing?", "{a} - {c}"),
    (
        "{who} puts {b} {what} into each of {c} bags and keeps {a} aside. How many in total?",
        "{b} * {c} + {a}",
    ),
)
_SPECIFIED = (0, {"who": "Carly", "what": "apples", "a": 8, "b": 2, "c": 5})
"""The example of the specification is the first case."""


def build(seed: int, count: int) -> SliceSpec:
    """The slice."""
    return SliceSpec(
        name=NAME,
        summary="Small sums in words: the right number, in <answer> tags",
        cases=make_cases(NAME, seed, count, _case),
        graders=(
            {
                "kind": "numeric",
                "name": "math",
                "source": "last_number",
                "title": "Arithmetic",
                "check": "Correct number",
            },
            {"kind": "answer_tag", "name": "format", "title": "Format", "check": "One <answer> tag, last"},
        ),
        required=("math", "format"),
    )


def _case(rng: random.Random, number: int) -> Case | None:
    story, facts = _SPECIFIED if number == 0 else (rng.randrange(len(_STORIES)), _facts(rng))
    question, sum_ = (part.format(**facts) for part in _STORIES[story])
    value = _value(sum_)
    if value < 0:
        return None
    return Case(
        id=case_id(NAME, number),
        slice=NAME,
        messages=user(question),
        expected={"answer": str(value), "sum": sum_},
        tags={"story": str(story)},
    )


def _facts(rng: random.Random) -> dict[str, object]:
    numbers = {"a": rng.randint(6, 40), "b": rng.randint(2, 12), "c": rng.randint(2, 12)}
    return {"who": rng.choice(_NAMES), "what": rng.choice(_THINGS), **numbers}


def _value(sum_: str) -> int:
    """``2 * 3 - 4``, left to right: a product only ever stands first."""
    first, *rest = sum_.split()
    value = int(first)
    for sign, word in zip(rest[::2], rest[1::2], strict=True):
        value = {"+": value + int(word), "-": value - int(word), "*": value * int(word)}[sign]
    return value


def _right(case: Case, ask: Ask) -> Answer:
    del ask
    answer = case.expected["answer"]
    return said(case, f"{case.expected['sum']} = {answer}.\n<answer>{answer}</answer>")


def _wrong(case: Case, ask: Ask) -> Answer:
    """Confident, well formed, and off by a little; or the right number without its tag."""
    del ask
    value = int(case.expected["answer"])
    if pick(case, "wrong", ("number", "number", "number", "tag")) == "tag":
        return said(case, f"Great question! Let's go step by step. Altogether that makes {value}.")
    off = value + int(pick(case, "off", ("1", "2", "10")))
    return said(
        case, f"Great question! Let's go step by step. Altogether that makes {off}.\n<answer>{off}</answer>"
    )


SOURCE = SliceSource(build, _right, _wrong)
