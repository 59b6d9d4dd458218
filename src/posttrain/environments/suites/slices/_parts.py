"""What the generators of slices share.

Here: cases in a stable order with ids that never move, and the form of a scripted answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from posttrain.core.canonical import digest_bytes
from posttrain.environments.records import Answer, Case, ToolCall
from posttrain.environments.suites.slice_records import SliceSpec, call_key

Ask: TypeAlias = Callable[[str, Mapping[str, Any]], str | None]
"""Asks a tool; None where that was never recorded."""
_TRIES = 1000


@dataclass(frozen=True, slots=True)
class SliceSource:
    """A shipped slice: how it is made, and what a scripted policy answers to its cases."""

    build: Callable[[int, int], SliceSpec]
    """From a seed and the number of cases."""
    right: Callable[[Case, Ask], Answer]
    """An answer that passes every grader."""
    wrong: Callable[[Case, Ask], Answer]
    """An answer that reads well and breaks the slice's rule."""


def make_cases(
    name: str, seed: int, count: int, make: Callable[[random.Random, int], Case | None]
) -> tuple[Case, ...]:
    """``count`` cases whose questions all differ. The first ones do not change when ``count`` grows."""
    cases: list[Case] = []
    asked: set[str] = set()
    for number in range(count):
        for attempt in range(_TRIES):
            case = make(random.Random(f"{name}:{seed}:{number}:{attempt}"), number)
            question = str(case.messages[-1]["content"]) if case else ""
            if case and question not in asked:
                break
        else:
            raise ValueError(f"the slice {name!r} has only {number} different cases: ask for fewer")
        asked.add(question)
        cases.append(case)
    return tuple(cases)


def case_id(name: str, number: int) -> str:
    """The id of a slice's case."""
    return f"{name}-{number:04d}"


def user(text: str) -> tuple[Mapping[str, Any], ...]:
    """A conversation of one question."""
    return ({"role": "user", "content": text},)


def pick(case: Case, salt: str, choices: tuple[str, ...]) -> str:
    """One of ``choices``, the same for the same case on every machine."""
    return choices[int(digest_bytes(f"{salt}:{case.id}".encode())[-8:], 16) % len(choices)]


def said(case: Case, text: str, calls: Iterator[ToolCall] | tuple[ToolCall, ...] = ()) -> Answer:
    """An answer with its sizes: a token is a word here."""
    made = tuple(calls)
    read = sum(len(str(message["content"]).split()) for message in case.messages)
    return Answer(
        text=text,
        tool_calls=made,
        turns=1 + len(made),
        prompt_tokens=read + sum(len((call.reply or "").split()) for call in made),
        completion_tokens=len(text.split()),
    )


def called(ask: Ask, name: str, arguments: Mapping[str, Any]) -> ToolCall:
    """One call and its reply."""
    return ToolCall(name, dict(arguments), call_key(arguments), ask(name, arguments))
