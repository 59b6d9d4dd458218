"""division_hard: quotients that do not come out even, to three decimals.

Here: the generator, its rule (a numeric tolerance on the final value), a check of the working that is measured and not
required, its scripted answers.
"""

from __future__ import annotations

import random
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

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

NAME = "division_hard"
_WORDINGS = (
    "What is {a} ÷ {b}?",
    "Divide {a} by {b}. Give three decimals.",
    "Calculate {a} / {b} to three decimal places.",
    "How much is {a} divided by {b}, rounded to three decimals?",
)


def build(seed: int, count: int) -> SliceSpec:
    """The slice."""
    return SliceSpec(
        name=NAME,
        summary="Long division: the quotient to three decimals",
        cases=make_cases(NAME, seed, count, _case),
        graders=(
            {
                "kind": "numeric",
                "name": "value",
                "source": "last_number",
                "tolerance": "0.0005",
                "title": "Final value",
                "check": "Within 0.0005 of the quotient",
            },
            {
                "kind": "step_check",
                "name": "steps_right",
                "title": "Steps",
                "check": "Every written step is right",
            },
        ),
        required=("value",),
    )


def _case(rng: random.Random, number: int) -> Case | None:
    divisor = rng.choice(
        (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
    )
    dividend = rng.randint(divisor + 1, rng.choice((99, 999, 9999)))
    wording = rng.randrange(len(_WORDINGS))
    if number == 0:
        dividend, divisor, wording = 23, 13, 0  # the example of the specification
    if dividend <= divisor or dividend % divisor == 0:
        return None
    return Case(
        id=case_id(NAME, number),
        slice=NAME,
        messages=user(_WORDINGS[wording].format(a=dividend, b=divisor)),
        expected={"answer": f"{dividend}/{divisor}"},
        tags={"digits": str(len(str(dividend)))},
    )


def _parts(case: Case) -> tuple[int, int, Decimal]:
    dividend, divisor = (int(part) for part in str(case.expected["answer"]).split("/"))
    return dividend, divisor, _rounded(Fraction(dividend, divisor))


def _rounded(value: Fraction) -> Decimal:
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return exact.quantize(Decimal("0.001"), rounding=ROUND_HALF_EVEN)


def _right(case: Case, ask: Ask) -> Answer:
    del ask
    dividend, divisor, value = _parts(case)
    whole = dividend // divisor
    working = f"{divisor} × {whole} = {divisor * whole}\n{dividend} - {divisor * whole} = {dividend - divisor * whole}"
    return said(case, f"{working}\n{dividend} ÷ {divisor} = {value}\n<answer>{value}</answer>")


def _wrong(case: Case, ask: Ask) -> Answer:
    """A clean working with one slip in it."""
    del ask
    dividend, divisor, value = _parts(case)
    whole = dividend // divisor
    slip = Decimal(pick(case, "slip", ("0.1", "0.01", "-0.1")))
    working = f"{divisor} goes into {dividend} {whole} times.\n{dividend} ÷ {divisor} = {value + slip}"
    return said(case, f"Let me work through this carefully.\n{working}\n<answer>{value + slip}</answer>")


SOURCE = SliceSource(build, _right, _wrong)
