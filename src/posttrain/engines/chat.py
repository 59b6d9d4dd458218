"""Chats with tools: what a model is asked in one turn and what it answers.

Here: frozen, torch-free records, the one-method contract, and tool calls in the Hermes form that stand in a text. Not
here: the engines (``chat_engines``), what a tool answers (``environments.tools``). To add an engine: a class with
``chat`` and ``batch_size``.

A request that gets no answer is a ``ChatFailure``: data, never an exception, and never an empty answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from posttrain.engines.records import Sampling

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A tool call as a model wrote it."""

    name: str
    """Empty where the call could not be read."""
    arguments: str
    """The text of the arguments; JSON where the model did well."""

    def parsed(self) -> dict[str, Any] | None:
        """The arguments; None where they are no JSON object."""
        try:
            value = json.loads(self.arguments, parse_constant=_not_json)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn that a model is asked for."""

    case: str
    """Which case it belongs to: what a scripted policy goes by."""
    sample: int
    """0-based number of the answer within its case."""
    messages: tuple[Mapping[str, Any], ...]
    """The conversation so far in OpenAI's form, tool calls and their replies included."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tools in OpenAI's form."""
    seed: int = 0
    """Of this turn's draw."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One turn of a model."""

    text: str
    """Without the tool calls."""
    calls: tuple[WrittenCall, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: Literal["stop", "length"] = "stop"
    """``length`` when a token limit cut it."""
    seconds: float | None = None
    """How long it took, where that says something about the model; None in a replay."""


@dataclass(frozen=True, slots=True)
class ChatFailure:
    """A turn that was asked for and did not come."""

    reason: str


Turn: TypeAlias = ChatReply | ChatFailure


class ChatEngine(Protocol):
    """Anything that takes turns in chats."""

    @property
    def batch_size(self) -> int:
        """Requests that it wants at once; which ones stand together may decide the last bits of its results."""
        ...

    def chat(self, requests: Sequence[ChatRequest], sampling: Sampling) -> list[Turn]:
        """One turn a request, in order. ``sampling.seed`` is not used: each request has its own."""
        ...


def split_calls(written: str) -> tuple[str, tuple[WrittenCall, ...]]:
    """Text and tool calls of an answer in the Hermes form, ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``."""
    calls = tuple(_read_call(match[1].strip()) for match in _CALL.finditer(written))
    return (_CALL.sub("", written).strip(), calls) if calls else (written, ())


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_call(text: str) -> WrittenCall:
    try:
        value = json.loads(text)
        name, arguments = value["name"], value.get("arguments", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return WrittenCall("", text)
    if not isinstance(name, str):
        return WrittenCall("", text)
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return WrittenCall(name, written)
