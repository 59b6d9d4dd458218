"""What a recipe says about rewards.

Here: data only, pydantic only. Not here: behaviour; ``registry`` builds it. To add a verifier: a class with
its own ``kind`` here, an entry in ``VerifierConfig``, and one builder in ``registry``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.rewards.records import AnswerSource, Layout


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AccuracyConfig(_Config):
    """Whether the final answer is right: 1.0 or 0.0; no value where the reference cannot be read."""

    kind: Literal["accuracy"] = "accuracy"
    mode: Literal["auto", "numeric", "latex"] = "auto"
    """``numeric`` compares plain numbers exactly and needs nothing installed; ``auto`` adds math-verify for
    formulas; ``latex`` uses math-verify for everything."""
    answer_source: AnswerSource = "tag"
    """Where the answer stands: ``tag``, ``boxed``, ``tag_or_boxed``, or the ``last_number`` after the think
    block."""


class ThinkFormatConfig(_Config):
    """Whether the completion keeps to its layout: 1.0 or 0.0."""

    kind: Literal["think_format"] = "think_format"
    layout: Layout = "think_answer"
    """``think_answer``: think block, answer tag, nothing else. ``think``: think block, then free text."""


class AnswerTagConfig(_Config):
    """Whether there is exactly one answer tag, at the end: 1.0 or 0.0."""

    kind: Literal["answer_tag"] = "answer_tag"


class TagCountConfig(_Config):
    """0.25 for each of the four tags that stands exactly once."""

    kind: Literal["tag_count"] = "tag_count"


class LengthConfig(_Config):
    """A penalty down to -1 outside a band of completion tokens."""

    kind: Literal["length"] = "length"
    min_tokens: int = Field(default=0, ge=0)
    max_tokens: int = Field(gt=0)

    @model_validator(mode="after")
    def _band(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}: "
                "lower min_tokens or raise max_tokens"
            )
        return self


class RepetitionConfig(_Config):
    """A penalty down to -1 for the share of n-grams that repeat."""

    kind: Literal["repetition"] = "repetition"
    ngram_size: int = Field(default=4, ge=2, le=64)
    unit: Literal["word", "token"] = "word"


class SoftOverlongConfig(_Config):
    """DAPO's penalty: 0 until ``cache_tokens`` before ``max_tokens``, then linear to -1."""

    kind: Literal["soft_overlong"] = "soft_overlong"
    max_tokens: int = Field(gt=0)
    """The longest completion; the trainer's ``max_completion_length``."""
    cache_tokens: int = Field(ge=0)
    """How many tokens before the end the penalty starts."""

    @model_validator(mode="after")
    def _cache_fits(self) -> Self:
        if self.cache_tokens > self.max_tokens:
            raise ValueError(
                f"cache_tokens {self.cache_tokens} is above max_tokens {self.max_tokens}: lower cache_tokens"
            )
        return self


class LanguageConsistencyConfig(_Config):
    """The share of words that are in the language of the prompt: 1.0 for all of them, 0.0 for none."""

    kind: Literal["language_consistency"] = "language_consistency"
    target: str = Field(default="prompt", pattern=r"^(prompt|[a-z]{2,3})$")
    """``prompt``: the language that the prompt is tagged with; or a fixed tag such as ``en``."""
    part: Literal["reasoning", "whole"] = "reasoning"
    """Which text is looked at: the think block, or everything."""


VerifierConfig: TypeAlias = Annotated[
    AccuracyConfig
    | ThinkFormatConfig
    | AnswerTagConfig
    | TagCountConfig
    | LengthConfig
    | RepetitionConfig
    | SoftOverlongConfig
    | LanguageConsistencyConfig,
    Field(discriminator="kind"),
]
"""Any verifier, told apart by ``kind``."""


ANSWER_KINDS = frozenset({"accuracy", "think_format", "answer_tag", "tag_count"})
"""Verifiers of the answer and of its form: they do not apply to open-ended prompts."""


class WeightedVerifier(_Config):
    """One verifier of a reward."""

    verifier: VerifierConfig
    weight: float = Field(default=1.0, ge=0)
    """0 measures without rewarding."""
    name: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    """What the part is called in tables and metrics; by default the verifier's ``kind``."""
    required: bool = True
    """Whether a sample has no reward at all where this verifier has no value."""

    @property
    def part_name(self) -> str:
        """``name``, or the verifier's kind."""
        return self.name or self.verifier.kind


class RewardConfig(_Config):
    """How completions are rewarded, and how verification is run."""

    verifiers: tuple[WeightedVerifier, ...] = Field(min_length=1)
    timeout_seconds: float = Field(default=5.0, gt=0, le=600)
    """Wall clock for all verifiers of one sample; beyond it the sample has no value."""
    workers: int = Field(default=2, ge=1, le=256)
    """Verifier processes."""
    worker_memory_mib: int = Field(default=2048, ge=512)
    """Address space that one verifier process may take on top of its interpreter's."""
    max_none_rate: float = Field(default=0.05, ge=0, le=1)
    """Training stops where more than this share of samples has no value."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        names = [verifier.part_name for verifier in self.verifiers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two verifiers are called {doubled[0]!r}: give one of them another `name`")
        if all(verifier.weight == 0 for verifier in self.verifiers):
            raise ValueError("every verifier has weight 0: raise the `weight` of at least one")
        return self


R1_ZERO_REWARDS = RewardConfig(
    verifiers=(
        WeightedVerifier(verifier=AccuracyConfig(), weight=1.0),
        WeightedVerifier(verifier=ThinkFormatConfig(), weight=0.1, name="format"),
    )
)
"""DeepSeek-R1-Zero's two verifiers: the answer is right, and it stands in its place."""
