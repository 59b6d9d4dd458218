"""What a sampled completion must satisfy to become an example, before anyone judges it.

Here: the rules of ``rejection_sample``, the record of a sampled completion, and the first rule that it breaks. Not
here: sampling and judging. To add a rule: a key of :class:`Rules` and a line in ``_complaints``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.data.prompts import PromptRow, normal_question
from posttrain.rewards.config import (
    ANSWER_KINDS,
    AccuracyConfig,
    LanguageConsistencyConfig,
    RepetitionConfig,
    RewardConfig,
    ThinkFormatConfig,
    WeightedVerifier,
)
from posttrain.rewards.parsing import final_part

Target: TypeAlias = Literal["whole", "final"]
"""What becomes an example's response: everything, or what follows the think block."""
_RULES = RewardConfig(
    verifiers=(
        WeightedVerifier(verifier=AccuracyConfig()),
        WeightedVerifier(verifier=ThinkFormatConfig(), name="format"),
        WeightedVerifier(verifier=LanguageConsistencyConfig(), name="language"),
        WeightedVerifier(verifier=RepetitionConfig(), name="repetition"),
    )
)


class Rules(BaseModel):
    """What a completion must satisfy before anyone judges it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verifiers: RewardConfig = _RULES
    """Verifiers; open prompts meet only those that need neither an answer nor a form."""
    minimum: Mapping[str, float] = Field(
        default_factory=lambda: {"accuracy": 1.0, "format": 1.0, "language": 0.98, "repetition": -0.25}
    )
    """Part name to the lowest value that passes; parts without an entry are not looked at."""
    max_tokens: int | None = Field(None, ge=1)
    """Longer completions are rejected; by default only those that ran into ``max_completion_tokens``."""
    code_blocks: bool = False
    """Whether fenced code may stand in a completion."""

    @model_validator(mode="after")
    def _known_parts(self) -> Rules:
        known = {item.part_name for item in self.verifiers.verifiers}
        unknown = sorted(set(self.minimum) - known)
        if unknown:
            raise ValueError(
                f"`minimum` names {unknown[0]!r}, which is no verifier of the rules: {sorted(known)}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled completion and what became of it."""

    prompt: str
    """Id of the prompt."""
    sample: int
    text: str
    """As the model wrote it, an opened think block included."""
    tokens: int
    truncated: bool
    reason: str = ""
    """Why it is no example; empty while nothing speaks against it."""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    unscored: str = ""
    """Why a verifier had no value."""
    judgement: float | None = None
    judge_note: str = ""
    """What the judge said, or why it could not."""


def broken_rule(rules: Rules, row: PromptRow, candidate: Candidate, target: Target) -> str:
    """The first rule that the candidate breaks, in words that begin with the rule's name; empty for none."""
    return next(_complaints(rules, row, candidate, target), "")


def _complaints(rules: Rules, row: PromptRow, candidate: Candidate, target: Target) -> Iterator[str]:
    text = candidate.text
    if candidate.truncated or (rules.max_tokens is not None and candidate.tokens > rules.max_tokens):
        yield f"length: {candidate.tokens} tokens{', cut off' if candidate.truncated else ''}"
    if empty := empty_target(text, target):
        yield empty
    if row.task == "simple" and "think>" in text:
        yield "thinking: a simple prompt wants a direct answer"
    if target == "final" and "<answer>" in text:
        yield "form: an answer tag in an open reply"
    if not rules.code_blocks and "```" in text:
        yield "code block: fenced code where none is wanted"
    for item in rules.verifiers.verifiers:
        name = item.part_name
        if name not in rules.minimum or (row.task != "reasoning" and item.verifier.kind in ANSWER_KINDS):
            continue
        value = candidate.parts.get(name)
        if value is None:
            yield f"unscored: {name}: {candidate.unscored}"
        elif value < rules.minimum[name]:
            yield f"{name}: {value:g} is below {rules.minimum[name]:g}"
    if target == "final" and "think>" in target_of(text, target):
        yield "form: a think tag in the reply"


def target_of(text: str, target: Target) -> str:
    """What a completion would teach."""
    return final_part(text) if target == "final" else text


def empty_target(text: str, target: Target) -> str:
    """Why a completion would teach nothing, whatever the rules; empty where it would teach something."""
    if target_of(text, target).strip():
        return ""
    return "empty: nothing follows the think block" if target == "final" else "empty: the reply is blank"


def copied_shot(text: str, shots: Iterable[str]) -> str:
    """Why a completion that says again what an example before it said is not the model's own; empty for any other."""
    said = normal_question(final_part(text))
    copied = any(normal_question(final_part(shot)) in said for shot in shots)
    return "copied: the reply of an example that was shown" if copied else ""
