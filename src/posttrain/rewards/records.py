"""The records of the rewards room: what is scored, and what a score is.

Here: frozen, picklable data without any heavy import, the ``Verifier`` role, and the reasons for which a
sample has no value. Not here: any rule. A new reason for "no value" is a constant here, so that counters stay
small and comparable.

``Score.value`` is None when a sample *could not be scored* (a hung or crashed verification, an unreadable
reference). That is never a zero: a zero is what the model earned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

TIMEOUT = "timeout"
"""The wall clock of the sample ran out and the worker was killed."""
CRASH = "crash"
"""The worker died while it scored the sample."""
MEMORY = "memory"
"""Scoring the sample took an eighth or more of the worker's memory limit, or met the limit."""
NO_REFERENCE = "no reference"
"""The sample has no reference to compare with."""
UNREADABLE_REFERENCE = "reference is not a number"
"""The reference is not a plain number and the mode is ``numeric``."""
UNREADABLE_FORMULA = "reference is neither a number nor a formula"
"""The reference is prose, a word or a letter, or math-verify cannot read it."""
NO_MATH_VERIFY = "math-verify is not installed"
"""A formula has to be compared, and the library for it is missing."""
NO_TOKEN_COUNT = "no token count"
"""The verifier needs the number of completion tokens and the sample has none."""
NO_TOKEN_IDS = "no token ids"
"""The verifier needs the completion's token ids (``extra["completion_ids"]``) and the sample has none."""

NO_LANGUAGE = "no language"
"""The verifier compares with the language of the prompt and the sample does not say it."""

Layout: TypeAlias = Literal["think_answer", "think"]
"""``<think>…</think> <answer>…</answer>`` (R1-Zero), or ``<think>…</think>`` and then free text (R1's cold
start)."""
AnswerSource: TypeAlias = Literal["tag", "boxed", "last_number", "tag_or_boxed"]
"""Where the final answer is read from; see ``parsing.find_answer``."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion with what is needed to score it."""

    completion: str
    """The text that the model wrote, special tokens such as end-of-turn removed, think and answer tags
    kept."""
    reference: str | None = None
    """The ground truth as written in the data, for example ``8`` or ``5 apples``."""
    prompt: str = ""
    """The question as text; names that stand in it belong to no language."""
    think_prefilled: bool = field(default=False, kw_only=True)
    """Whether the prompt already ended in ``<think>``, so that the completion starts inside the think
    block."""
    token_count: int | None = field(default=None, kw_only=True)
    """Completion tokens, the end token included."""
    truncated: bool = field(default=False, kw_only=True)
    """Whether generation ended at the length limit rather than at a stop token."""
    language: str | None = field(default=None, kw_only=True)
    """Language of the prompt, a tag such as ``en`` or ``zh``."""
    open_ended: bool = field(default=False, kw_only=True)
    """Whether the prompt has no answer to check: verifiers of the answer and of its form do not apply."""
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Anything else a verifier needs, picklable; ``completion_ids`` is the list of token ids."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one verifier, or a composition of them, said about one sample."""

    value: float | None
    """The score, finite; None where the sample could not be scored."""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """Unweighted value by verifier name."""
    reason: str = ""
    """Why the value is what it is; empty for full marks. For None it is one of this module's constants, or
    one of them after ``<verifier>: ``, or ``error: <exception class>``."""


class Verifier(Protocol):
    """A rule that scores a completion. Deterministic, without side effects, picklable."""

    @property
    def name(self) -> str:
        """What its part is called in scores, metrics and tables."""
        ...

    def score(self, sample: Sample) -> Score:
        """Score one sample. No wall clock here: ``pool.VerifierPool`` adds it."""
        ...
