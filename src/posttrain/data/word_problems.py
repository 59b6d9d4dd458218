"""Procedural arithmetic word problems in English and Chinese, split by equation.

Here: problems with their exact solution chain. A chain is the numbers and operations of a problem, for example
``7 + 5 - 3``; the split into train and held-out is made on chains, so that a held-out problem shares its equation
with no training problem in either language. Not here: how a model writes about a problem (``base_text``).
To add a story: one line in ``_STORIES``; to add an operation: ``_apply`` and a story for it in both languages.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Language: TypeAlias = Literal["en", "zh"]
Operation: TypeAlias = Literal["+", "-", "*"]
Split: TypeAlias = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a chain: ``left operation right = result``."""

    left: int
    operation: Operation
    right: int

    @property
    def result(self) -> int:
        """The exact value."""
        return _apply(self.left, self.operation, self.right)


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question with the chain that answers it."""

    question: str
    language: Language
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The value after the last step."""
        return self.steps[-1].result

    @property
    def chain(self) -> str:
        """The equation, language-free: what the split is made on."""
        return str(self.steps[0].left) + "".join(f"{s.operation}{s.right}" for s in self.steps)


def _apply(left: int, operation: Operation, right: int) -> int:
    if operation == "+":
        return left + right
    if operation == "-":
        return left - right
    return left * right


NAMES: dict[Language, tuple[str, ...]] = {
    "en": ("Alice", "Ben", "Mia", "Tom", "Sara", "Leo", "Nina", "Max"),
    "zh": ("小明", "小红", "小华", "小丽", "小刚", "小芳", "小强", "小美"),
}
THINGS: dict[Language, tuple[str, ...]] = {
    "en": ("apples", "books", "coins", "pens", "eggs", "cards", "stamps", "shells"),
    "zh": ("苹果", "书", "硬币", "笔", "鸡蛋", "卡片", "邮票", "贝壳"),
}
_OPENINGS: dict[Language, tuple[str, ...]] = {
    "en": (
        "{name} has {n} {thing}.",
        "There are {n} {thing} in the box of {name}.",
        "{name} finds {n} {thing}.",
    ),
    "zh": ("{name}有{n}个{thing}。", "{name}的盒子里有{n}个{thing}。", "{name}找到{n}个{thing}。"),
}
_STORIES: dict[Language, dict[Operation, tuple[str, ...]]] = {
    "en": {
        "+": ("{name} buys {n} more.", "A friend gives {n} more.", "Then {n} are added."),
        "-": ("{name} gives away {n}.", "Then {n} are lost.", "{name} sells {n}."),
        "*": ("The number becomes {n} times as large.", "Now there are {n} times as many."),
    },
    "zh": {
        "+": ("{name}又买了{n}个。", "朋友又给了{n}个。", "又放进{n}个。"),
        "-": ("{name}送出{n}个。", "后来丢了{n}个。", "{name}卖了{n}个。"),
        "*": ("数量变成原来的{n}倍。", "现在是原来的{n}倍。"),
    },
}
_QUESTIONS: dict[Language, tuple[str, ...]] = {
    "en": ("How many {thing} now?", "How many {thing} are there now?"),
    "zh": ("现在有几个{thing}？", "现在一共有多少个{thing}？"),
}


def split_of(chain: str, heldout_share: float) -> Split:
    """Which side of the split a chain falls on: a fixed function of its text, the same in every run."""
    bucket = int.from_bytes(hashlib.sha256(chain.encode()).digest()[:4], "big") / 2**32
    return "heldout" if bucket < heldout_share else "train"


def make_problem(rng: random.Random, *, max_steps: int, max_value: int) -> WordProblem:
    """One problem of 1 to ``max_steps`` steps; every value on the way is between 0 and ``max_value``."""
    language: Language = rng.choice(("en", "zh"))
    steps: list[Step] = []
    value = rng.randint(2, max_value * 2 // 3)
    for _ in range(rng.randint(1, max_steps)):
        step = _make_step(rng, value, max_value)
        steps.append(step)
        value = step.result
    return WordProblem(_tell(rng, language, steps), language, tuple(steps))


def _make_step(rng: random.Random, value: int, max_value: int) -> Step:
    choices: list[Operation] = []
    if value < max_value:
        choices += ["+", "+"]
    if value > 1:
        choices += ["-", "-"]
    if 2 <= value <= max_value // 2:
        choices += ["*"]
    operation = rng.choice(choices)
    if operation == "+":
        right = rng.randint(1, min(max_value - value, max_value // 2))
    elif operation == "-":
        right = rng.randint(1, min(value - 1, max_value // 2)) if value > 1 else 1
    else:
        right = rng.randint(2, min(5, max_value // value))
    return Step(value, operation, right)


def _tell(rng: random.Random, language: Language, steps: list[Step]) -> str:
    words = {"name": rng.choice(NAMES[language]), "thing": rng.choice(THINGS[language])}
    parts = [rng.choice(_OPENINGS[language]).format(n=steps[0].left, **words)]
    parts += [rng.choice(_STORIES[language][s.operation]).format(n=s.right, **words) for s in steps]
    parts.append(rng.choice(_QUESTIONS[language]).format(**words))
    return (" " if language == "en" else "").join(parts)


def problems(
    seed: int, split: Split, *, max_steps: int, max_value: int, heldout_share: float
) -> Iterator[WordProblem]:
    """An endless stream of problems of one side of the split; texts may repeat."""
    rng = random.Random(f"word-problems/{split}/{seed}")
    while True:
        problem = make_problem(rng, max_steps=max_steps, max_value=max_value)
        if split_of(problem.chain, heldout_share) == split:
            yield problem
