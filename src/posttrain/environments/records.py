"""What a model is asked in a frozen world, and what it answered.

Here: frozen, torch-free records. Not here: where cases come from, how they are graded (``evaluation.graders``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Case:
    """One frozen situation."""

    id: str
    """Unique in its suite, stable across builds."""
    slice: str
    """The slice that the case belongs to."""
    messages: tuple[Mapping[str, Any], ...]
    """Chat messages in OpenAI's form, the last one the user's."""
    expected: Mapping[str, Any] = field(default_factory=dict)
    """What graders compare with, by their own keys: ``answer``, ``version``, ``tests``…"""
    tools: tuple[str, ...] = ()
    """Names of the suite's tools that are offered."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model made."""

    name: str
    arguments: Mapping[str, Any] | None
    """None where they were not a JSON object."""
    raw: str = ""
    """The arguments as the model wrote them."""
    reply: str | None = None
    """What the tool answered; None where it was never recorded or does not exist."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model did with a case: its final text and the calls on the way."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    """In the order in which they were made."""
    turns: int = 1
    """Times the model was asked: 1 plus the rounds of tool calls."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: Literal["stop", "length", "turns"] = "stop"
    """``length`` when a token limit cut the text, ``turns`` when the limit of tool rounds did."""
