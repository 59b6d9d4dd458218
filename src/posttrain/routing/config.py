"""Routing as data: rules, a learned router, a fallback; and how several answers become one.

Here: one class a way of matching, one a way of aggregating. Not here: what they do (``choose``, ``aggregate``). To add
a match: a class with a ``kind``, a line in ``Match``, a case in ``choose.matcher``.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, ValidationError, field_validator, model_validator

from posttrain.core.documents import Record
from posttrain.core.errors import ConfigError

PRODUCTION = "production"
"""What rules and aggregations call a route's production, whichever target that is now: a rollout that replaces it
changes no rule."""

ROUTED_TAGS = ("router:", "aggregate:")
"""How the tags begin by which a row says who decided; no client can give a request such a tag."""


class RegexMatch(Record):
    """A pattern is found in the beginning of the text.

    *Not covered*: patterns that take for ever. They come from who runs the gateway, never from a client, and see
    ``max_characters`` only; avoid a repeated group that itself repeats, such as ``(a+)+``.
    """

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)
    max_characters: int = Field(2_000, ge=1, le=20_000)

    @field_validator("pattern")
    @classmethod
    def _check(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern


class KeywordsMatch(Record):
    """Any of these words or phrases is in the text, found as guardrails find blocked terms."""

    kind: Literal["keywords"] = "keywords"
    words: tuple[str, ...] = Field(min_length=1, max_length=5_000)


class LengthMatch(Record):
    """The text has so many characters."""

    kind: Literal["length"] = "length"
    min_characters: int = Field(0, ge=0)
    max_characters: int | None = Field(None, ge=0)


class HeaderMatch(Record):
    """A request header has this value."""

    kind: Literal["header"] = "header"
    name: str = Field(min_length=1)
    """In any case."""
    value: str


class SliceMatch(Record):
    """The request is of this slice."""

    kind: Literal["slice"] = "slice"
    slice: str = Field(min_length=1)


Match: TypeAlias = Annotated[
    RegexMatch | KeywordsMatch | LengthMatch | HeaderMatch | SliceMatch, Field(discriminator="kind")
]


class RouteRule(Record):
    """Where all of ``match`` holds, ``target`` answers."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=+-]{0,39}$")
    """Stands in rows, as a part of a tag."""
    match: tuple[Match, ...] = Field(min_length=1)
    target: str = Field(min_length=1)


class RouterConfig(Record):
    """Rules first, in their order; then the learned router; then the fallback."""

    rules: tuple[RouteRule, ...] = ()
    model: str | None = None
    """File of a learned router."""
    fallback: str = Field(min_length=1)
    """Who answers where no rule matches and nothing is learned, or the learned router is unsure or fails."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        twice = [name for name, count in Counter(rule.name for rule in self.rules).items() if count > 1]
        if twice:
            raise ValueError(f"rules: {twice[0]!r} is there twice")
        return self

    def names(self) -> tuple[str, ...]:
        """Every target that it may choose, but for those that its learned router names."""
        return (self.fallback, *(rule.target for rule in self.rules))


class _Aggregation(Record):
    targets: tuple[str, ...] = Field(min_length=2, max_length=16)
    """Who is asked, all at once."""
    min_answers: int = Field(1, ge=1)
    """Fewer than these, and the request fails."""
    seconds: float = Field(60.0, gt=0)
    """How long each call may take; a target that takes longer is left out."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.min_answers > len(self.targets):
            raise ValueError(f"min_answers is {self.min_answers}, and {len(self.targets)} are asked")
        twice = [name for name, count in Counter(self.targets).items() if count > 1]
        if twice:
            raise ValueError(f"targets: {twice[0]!r} is there twice")
        return self

    def names(self) -> tuple[str, ...]:
        """Every target that it calls."""
        return self.targets


class Vote(_Aggregation):
    """The answer that most gave."""

    kind: Literal["vote"] = "vote"
    compare: Literal["text", "number", "tag"] = "text"
    """What is compared: all of the text without case and punctuation, its last number, or what its last
    ``<answer>`` says. Answers without such a thing do not vote."""
    tie: Literal["first", "shortest"] = "first"
    """Of equals: that of the target named first, or the shortest."""


class JudgePicks(_Aggregation):
    """A judge names the best."""

    kind: Literal["judge"] = "judge"
    judge: str = Field(min_length=1)
    """The target that judges."""

    def names(self) -> tuple[str, ...]:
        """Every target that it calls."""
        return (*self.targets, self.judge)


class Synthesise(_Aggregation):
    """One more model writes an answer from all of them."""

    kind: Literal["synthesise"] = "synthesise"
    writer: str = Field(min_length=1)
    """The target that writes."""

    def names(self) -> tuple[str, ...]:
        """Every target that it calls."""
        return (*self.targets, self.writer)


Aggregation: TypeAlias = Annotated[Vote | JudgePicks | Synthesise, Field(discriminator="kind")]


def read_router(data: Any) -> RouterConfig:
    """Routing from plain data. Raises ConfigError that names what to change."""
    try:
        return RouterConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise ConfigError(f"router: {place}: {first['msg']}", hint=f"change `router.{place}`") from error
