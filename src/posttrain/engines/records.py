"""What a generation engine is asked and what it answers.

Here: frozen, torch-free records and the one-method contract. Not here: any engine (``transformers_engine``). To add an
engine: a class with ``generate`` in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Conversation: TypeAlias = Sequence[Mapping[str, str]]
"""Chat messages with ``role`` and ``content``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. Training wants ``top_p`` 1 and ``top_k`` 0: anything else biases the ratio."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy: the most likely token each time."""
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    """Completions per conversation."""
    seed: int = 0
    prefix: str = ""
    """What every completion begins with, for example ``<think>``; it is part of the completion's text."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1 or self.samples < 1:
            raise ValueError("sampling needs temperature >= 0, max_new_tokens >= 1 and samples >= 1")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("greedy decoding gives one completion; set samples to 1 or temperature above 0")


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of a model."""

    text: str
    """Decoded without control tokens; think and answer tags are kept."""
    tokens: int
    """Generated tokens, the end-of-turn token included."""
    finish: Literal["stop", "length"]
    """``stop`` at an end token, ``length`` when ``max_new_tokens`` cut it."""


class Engine(Protocol):
    """Anything that completes conversations."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """``sampling.samples`` completions for each conversation, in order; progress is (done, total)."""
        ...
