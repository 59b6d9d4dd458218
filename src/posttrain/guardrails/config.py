"""Guardrail rules as data.

Here: one class a rule, and reading them. Not here: what they do (``plan``, ``scan``). To add a rule: a class with a
``kind`` of its own, one line in ``Rule``, and its finder in ``plan.finders`` (places in the text) or
``scan.whole_answer`` (the text as a whole).

*Covered*: text that says what it says in the open. *Not covered*: meaning. A rule here finds an e-mail address and a
blocked word with its disguises; it does not find a name, a home address, a word that is spelled with digits or
spaces between its letters, or text inside an encoding (base64, ``\\u0040`` in the arguments of a tool call).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from posttrain.core.documents import Record
from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean

Where: TypeAlias = Literal["request", "response", "both"]
StreamMode: TypeAlias = Literal["buffer", "window", "audit"]
PersonalKind: TypeAlias = Literal["email", "phone", "iban", "card", "ip", "us_ssn", "passport"]
Source: TypeAlias = Literal["user", "tool"]

MAX_TERM_CHARACTERS = 100
"""A blocked term is no longer, because so much of an answer may be held back for it."""


class _Rule(Record):
    name: str = ""
    """What findings call it; default its kind."""
    where: Where = "response"
    """Whose text it looks at: the client's, the model's, or both."""

    @property
    def label(self) -> str:
        """Its name, else its kind."""
        return self.name or str(getattr(self, "kind"))  # noqa: B009 - every member of the union has one

    def looks_at(self, side: Literal["request", "response"]) -> bool:
        """Whether it looks at that side."""
        return self.where in (side, "both")


class PersonalDataRule(_Rule):
    """Personal data that has a form: ``personal`` says which and how well."""

    kind: Literal["personal_data"] = "personal_data"
    action: Literal["report", "redact", "block"] = "redact"
    kinds: tuple[PersonalKind, ...] = Field(default=get_args(PersonalKind), min_length=1)
    """What it looks for."""
    allow: tuple[str, ...] = ()
    """What is fine: whole values (``help@example.com``, ``+49 30 1234``), or an e-mail domain as ``@example.com``."""


class BlockedTermsRule(_Rule):
    """Words and phrases, in any case and width, with look-alike letters and invisible characters undone."""

    kind: Literal["blocked_terms"] = "blocked_terms"
    action: Literal["report", "redact", "block"] = "block"
    terms: tuple[str, ...] = Field(min_length=1, max_length=5_000)

    @field_validator("terms")
    @classmethod
    def _check(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        for term in terms:
            if not term.strip() or len(term) > MAX_TERM_CHARACTERS:
                raise ValueError(f"{term!r} has not 1 to {MAX_TERM_CHARACTERS} characters")
        return terms


class LengthRule(_Rule):
    """Too long or too short."""

    kind: Literal["length"] = "length"
    action: Literal["report", "block"] = "report"
    max_characters: int | None = Field(None, ge=1)
    """A stream is cut here where the action is ``block``."""
    min_characters: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    """By the server's own count, so it is known at the end only. Not for requests."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_characters is self.min_characters is self.max_tokens is None:
            raise ValueError("one of max_characters, min_characters, max_tokens is given")
        if (self.min_characters or 0) > (self.max_characters or self.min_characters or 0):
            raise ValueError("min_characters is above max_characters")
        return self


class JsonSchemaRule(_Rule):
    """The answer is JSON of a schema: the rule's own, else what the request's ``response_format`` asks for."""

    kind: Literal["json_schema"] = "json_schema"
    where: Literal["response"] = "response"
    action: Literal["report", "block"] = "report"
    json_schema: dict[str, Any] | None = None
    """Applied to every answer; default: applied where the request asked for JSON."""


class PromptInjectionRule(_Rule):
    """Phrases that try to give the model new orders: a marker, not a defence.

    *Not covered*: any attack that is worded otherwise. Use it to count and to look, and block where false alarms are
    cheap.
    """

    kind: Literal["prompt_injection"] = "prompt_injection"
    where: Literal["request"] = "request"
    action: Literal["report", "block"] = "report"
    sources: tuple[Source, ...] = Field(("user", "tool"), min_length=1)
    """Whose text: the user's, or what tools brought back."""
    extra: tuple[str, ...] = Field((), max_length=500)
    """More phrases, matched like blocked terms."""


Rule: TypeAlias = Annotated[
    PersonalDataRule | BlockedTermsRule | LengthRule | JsonSchemaRule | PromptInjectionRule,
    Field(discriminator="kind"),
]
"""Any rule, told apart by ``kind``."""


class GuardrailConfig(Record):
    """The rules of a gateway."""

    rules: tuple[Rule, ...] = ()
    stream: StreamMode = "window"
    """How streamed answers are scanned.

    ``window``: each character is sent once no rule can still find something that starts at it. ``buffer``: nothing is
    sent before the whole answer was scanned. ``audit``: everything is sent at once; findings are recorded only.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        twice = [name for name, count in Counter(rule.label for rule in self.rules).items() if count > 1]
        if twice:
            raise ValueError(f"rules: {twice[0]!r} is there twice; give each a `name`")
        return self


_RULES = {
    rule.model_fields["kind"].default: rule
    for rule in (PersonalDataRule, BlockedTermsRule, LengthRule, JsonSchemaRule, PromptInjectionRule)
}


def read_guardrails(data: Any) -> GuardrailConfig:
    """The rules from plain data. Raises ConfigError that names what to change."""
    for rule in data.get("rules") or () if isinstance(data, Mapping) else ():
        kind = rule.get("kind") if isinstance(rule, Mapping) else None
        if kind not in _RULES:
            raise ConfigError(
                f"guardrails: unknown kind of rule {kind!r}", hint=did_you_mean(str(kind), _RULES)
            )
    try:
        return GuardrailConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in _RULES]
        hint = f"change `guardrails.{'.'.join(place)}`" if place else "change `guardrails`"
        if first["type"] == "extra_forbidden":
            kinds = [part for part in first["loc"] if part in _RULES]
            model = _RULES[str(kinds[0])] if kinds else GuardrailConfig
            hint = did_you_mean(place[-1], model.model_fields)
        raise ConfigError(f"guardrails: {'.'.join(place)}: {first['msg']}", hint=hint) from error
