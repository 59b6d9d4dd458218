"""Keys, their budgets, and what a check answers.

Here: frozen records. Not here: the file (``keys``), checking (``check``). No record in here holds a secret: a key is
kept as the SHA-256 of its salt and secret. A slow hash such as scrypt protects passwords that people choose; a secret
of 32 random bytes cannot be guessed however fast the hash is, and a slow one would cost every request.

To add a scope: its name in ``Scope``, and the route that asks for it.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal, NamedTuple, Self, TypeAlias, get_args

from pydantic import Field, model_validator

from posttrain.core.documents import Document, Record

Scope: TypeAlias = Literal["chat", "completions", "feedback", "models", "metrics"]
"""What a key may be used for."""
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Budgets(Record):
    """How much a key may use. What is not given is not limited."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    """Prompt and completion, counted when an answer has ended: what is in flight is not counted yet."""
    tokens_per_day: int | None = Field(None, ge=1)

    @property
    def limited(self) -> bool:
        """Whether anything is limited."""
        return not self.requests_per_minute is self.tokens_per_minute is self.tokens_per_day is None


class SecretHash(Record):
    """A secret that can be recognised and not read."""

    salt: str
    """16 random bytes, hex."""
    sha256: str
    """Of the salt's bytes and the secret's text, hex."""


class KeyRecord(Record):
    """One key."""

    id: str = Field(pattern=r"^[0-9a-z]{12}$")
    """Part of the key, and no secret."""
    slot: int = Field(ge=0)
    """Its place in the shared counters; never used again for another key."""
    tenant: str = Field(min_length=1)
    """Whose it is; logged as a salted hash."""
    name: str = ""
    """For people."""
    scopes: tuple[Scope, ...] = Field(("chat", "completions", "feedback", "models"), min_length=1)
    models: tuple[str, ...] | None = None
    """Public names it may ask for; None: all."""
    budgets: Budgets = Budgets()
    created_at: str
    """RFC 3339, UTC."""
    expires_at: float | None = None
    """Seconds since 1970."""
    disabled: bool = False
    secret: SecretHash
    previous: SecretHash | None = None
    """After a rotation: the secret before it, good until ``previous_until``."""
    previous_until: float | None = None
    """Seconds since 1970."""


class KeyList(Document):
    """The key file."""

    record_kind: ClassVar[str] = "access_keys"

    keys: tuple[KeyRecord, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, values in (
            ("id", [key.id for key in self.keys]),
            ("slot", [key.slot for key in self.keys]),
        ):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"keys: the {what} {twice[0]!r} is there twice")
        return self


class Principal(NamedTuple):
    """Who asks."""

    tenant: str
    key_id: str
    """Empty in open mode."""
    slot: int
    """Of its counters; -1 where nothing is counted."""


class Refusal(NamedTuple):
    """Why a request is not served, in the terms of HTTP and of OpenAI's errors."""

    status: int
    code: str
    """``invalid_api_key``, ``insufficient_scope``, ``model_not_allowed``, ``rate_limit_exceeded``…"""
    message: str
    """For the client; no part of what it sent is in it."""
    retry_after: float | None = None
    """Seconds."""
