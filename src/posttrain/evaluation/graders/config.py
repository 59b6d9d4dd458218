"""What a slice says about its graders.

Here: data only, pydantic only. Not here: behaviour; ``registry`` builds it. To add a grader: a class with its own
``kind`` here, an entry in ``GraderConfig``, and one builder in ``registry``.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean
from posttrain.engines.judging import JudgeConfig
from posttrain.environments.sandbox import SandboxConfig
from posttrain.rewards.records import AnswerSource


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Grader(_Config):
    name: str = Field(default="", pattern=r"^[a-z0-9_]*$")
    """Unique in its slice; by default the kind."""
    title: str = ""
    """What tables call it; by default the name."""
    check: str = ""
    """What is checked, in a few words, for tables."""
    pass_note: str = ""
    """What tables note of a pass."""
    metric: str | None = None
    """The column of its verdict; by default what the kind is usually called in promotion rules."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name"):
            return {**data, "name": data.get("kind", cls.model_fields["kind"].default)}
        return data


class ExactConfig(_Grader):
    """The final text equals the expected one, white space at its ends aside."""

    kind: Literal["exact"] = "exact"
    expects: str = "answer"
    """Key of ``case.expected``."""
    source: Literal["text", "tag"] = "text"
    """The whole final text, or what stands in its last answer tag."""
    ignore_case: bool = False


class NumericConfig(_Grader):
    """The final number equals the expected one within a tolerance, compared as exact fractions."""

    kind: Literal["numeric"] = "numeric"
    expects: str = "answer"
    source: AnswerSource = "tag"
    """Where the number stands, as for the ``accuracy`` verifier."""
    tolerance: Decimal = Field(default=Decimal(0), ge=0)
    """Largest absolute difference that is still right."""


class RegexConfig(_Grader):
    """A pattern is found in the final text, or is not."""

    kind: Literal["regex"] = "regex"
    pattern: str
    present: bool = True
    """False: the pattern must not be found."""
    ignore_case: bool = True

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return _compiled(value)


class JsonSchemaConfig(_Grader):
    """The final text holds JSON that is valid by a schema."""

    kind: Literal["json_schema"] = "json_schema"
    schema_: dict[str, Any] = Field(alias="schema")
    """JSON Schema, draft 2020-12 unless it says otherwise."""
    source: Literal["text", "block"] = "text"
    """The whole text, or its last fenced code block."""

    @field_validator("schema_")
    @classmethod
    def _is_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from posttrain.evaluation.graders.schemas import check_schema

        check_schema(value)
        return value


class ToolCallSchemaConfig(_Grader):
    """Every call names an offered tool, with arguments that are valid by its schema."""

    kind: Literal["tool_call_schema"] = "tool_call_schema"
    min_calls: int = Field(default=0, ge=0)
    order: tuple[str, ...] = ()
    """Tools that must have been called in this order, others between them allowed."""


class UnitTestsConfig(_Grader):
    """The answer's Python code runs in the sandbox and passes tests.

    All blocks that are marked as Python, in order, are one program. Tests are functions ``test_*(run)`` in the text
    that ``case.expected[expects]`` holds; ``run`` has ``namespace``, ``stdout`` and ``source``.
    """

    kind: Literal["unit_tests"] = "unit_tests"
    expects: str = "tests"
    files: tuple[str, ...] = ()
    """Files of the slice that the code may import or read."""
    sandbox: SandboxConfig = SandboxConfig()


class VersionMatchConfig(_Grader):
    """The answer cites a version, and installs nothing else of the package.

    ``3.2.1``, ``v3.2.1`` and ``==3.2.1`` are citations of 3.2.1; ``3.2.10``, ``13.2.1`` and ``3.2.1rc1`` are not. Where
    ``package`` is given, every ``pip install`` of it has to pin this version, and no other version of it is pinned.
    """

    kind: Literal["version_match"] = "version_match"
    version: str = Field(pattern=r"^\d+(\.\d+)*$")
    package: str | None = None


class DeprecationConfig(_Grader):
    """The answer uses no deprecated name: in code by its syntax tree, in prose as a name that is recommended."""

    kind: Literal["deprecation"] = "deprecation"
    names: tuple[str, ...] = Field(min_length=1)
    """``function`` or ``Class.method``; a method counts on any object, whose class code does not say."""


class WordLimitConfig(_Grader):
    """The number of words, white space between them, is within limits."""

    kind: Literal["word_limit"] = "word_limit"
    max_words: int = Field(ge=1)
    """The largest number that passes: "under 120 words" is 119."""
    min_words: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _band(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words {self.min_words} is above max_words {self.max_words}: lower min_words"
            )
        return self


class Rule(_Config):
    """One rule of a rule set."""

    name: str
    must: tuple[str, ...] = ()
    """Patterns of which at least one has to be found."""
    must_not: tuple[str, ...] = ()
    """Patterns of which none may be found."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.must and not self.must_not:
            raise ValueError(f"the rule {self.name!r} has no patterns: add `must` or `must_not`")
        for pattern in (*self.must, *self.must_not):
            _compiled(pattern)
        return self


class RuleSetConfig(_Grader):
    """Named rules about the final text, and other graders whose failures count as broken rules."""

    kind: Literal["rule_set"] = "rule_set"
    rules: tuple[Rule, ...] = ()
    counts: tuple[str, ...] = ()
    """Names of other graders of the slice."""
    allowed: int = Field(default=0, ge=0)
    """Violations that still pass."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.rules and not self.counts:
            raise ValueError("the rule set is empty: add `rules` or `counts`")
        return self


class StepsConfig(_Grader):
    """How many times the model was asked until its final answer."""

    kind: Literal["steps"] = "steps"
    max_steps: int | None = Field(default=None, ge=1)
    """None measures only."""


class StepCheckConfig(_Grader):
    """Every equation of the working (``13 × 1 = 13``, ``23 - 13 = 10``, ``23 / 13 = 1.769``) is right as far as it is
    written out: a rounded result is right when it rounds so."""

    kind: Literal["step_check"] = "step_check"
    min_steps: int = Field(default=0, ge=0)
    """Equations that there have to be."""


class AnswerTagConfig(_Grader):
    """Exactly one ``<answer>…</answer>``, with something in it, last."""

    kind: Literal["answer_tag"] = "answer_tag"


class OneLanguageConfig(_Grader):
    """The reasoning keeps to the language of the case, its tag ``language``; letters of other scripts count."""

    kind: Literal["one_language"] = "one_language"


class RewardModelConfig(_Grader):
    """A learned scorer says at least so much, in its own standard deviations."""

    kind: Literal["reward_model"] = "reward_model"
    threshold: float = 0.0


class LlmJudgeConfig(_Grader):
    """A judge model says at least so much, from 0 to 1."""

    kind: Literal["llm_judge"] = "llm_judge"
    judge: JudgeConfig
    threshold: float = Field(default=0.5, ge=0, le=1)


GraderConfig: TypeAlias = Annotated[
    ExactConfig
    | NumericConfig
    | RegexConfig
    | JsonSchemaConfig
    | ToolCallSchemaConfig
    | UnitTestsConfig
    | VersionMatchConfig
    | DeprecationConfig
    | WordLimitConfig
    | RuleSetConfig
    | StepsConfig
    | StepCheckConfig
    | AnswerTagConfig
    | OneLanguageConfig
    | RewardModelConfig
    | LlmJudgeConfig,
    Field(discriminator="kind"),
]
"""Any grader, told apart by ``kind``."""

_ADAPTER: TypeAdapter[GraderConfig] = TypeAdapter(GraderConfig)
KINDS: tuple[str, ...] = tuple(
    item.model_fields["kind"].default
    for item in GraderConfig.__origin__.__args__  # type: ignore[attr-defined]
)
"""Every kind of grader."""


def read_grader(data: Any) -> GraderConfig:
    """A grader's config from plain data. Raises ConfigError that names what to change."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of grader {kind!r}", hint=did_you_mean(str(kind), KINDS))
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "it"
        name = data.get("name") or kind
        known = next(c for c in GraderConfig.__origin__.__args__ if c.model_fields["kind"].default == kind)  # type: ignore[attr-defined]
        hint = (
            did_you_mean(place, known.model_fields)
            if first["type"] == "extra_forbidden"
            else f"change `{place}`"
        )
        raise ConfigError(f"the grader {name!r}: {place}: {first['msg']}", hint=hint) from error


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern
