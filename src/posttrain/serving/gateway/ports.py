"""What the hot path asks of others, as it sees them.

Here: protocols with as few methods as will do. Not here: what stands behind them (``serving.access``,
``serving.guardrails``). The gateway works with none of them; where one is configured, no route goes past it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from posttrain.serving.gateway.replies import ApiError


class Principal(Protocol):
    """Who asks, as a key told."""

    @property
    def tenant(self) -> str:
        """Whose key it is."""
        ...

    def may_use(self, model: str) -> bool:
        """Whether this key may ask for a public model name."""
        ...


class AccessCheck(Protocol):
    """Keys, scopes and budgets."""

    def check(self, authorization: bytes | None, endpoint: str) -> Principal | ApiError:
        """Who asks, or what they are told instead; called before the body is read."""
        ...

    def charge(self, principal: Principal, tokens: int) -> None:
        """Tokens that an answer took, known afterwards."""
        ...

    def reload(self) -> None:
        """Read the keys again."""
        ...


class ScanEnd(NamedTuple):
    """What a scan says of a whole answer."""

    tail: str
    """Text that was held back and may go out now."""
    blocked: bool
    """The answer may not be given, or not go on."""
    audit: Mapping[str, Any]
    """For the row: what was really scanned."""


class AnswerScan(Protocol):
    """Looks at the text of one answer as it comes."""

    def feed(self, text: str) -> str:
        """What of it, and of what was held back, may go out now."""
        ...

    @property
    def blocked(self) -> bool:
        """Nothing more may go out."""
        ...

    def end(self, tokens: int | None) -> ScanEnd:
        """The answer is whole."""
        ...
