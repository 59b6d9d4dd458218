"""What the hot path asks of others, as it sees them.

Here: protocols with as few methods as will do. Not here: what stands behind them (``serving.access``). The gateway
works without; where a key file is configured, no route goes past it.
"""

from __future__ import annotations

from typing import Protocol

from posttrain.serving.access.records import Principal, Refusal


class AccessCheck(Protocol):
    """Keys, scopes and budgets."""

    def check(self, authorization: bytes | None, scope: str, model: str | None) -> Principal | Refusal:
        """Who asks, or what they are told instead; called before the body is read, when no model is known yet."""
        ...

    def allows(self, principal: Principal, model: str) -> bool:
        """Whether this key may ask for a public model name."""
        ...

    def charge(self, principal: Principal, tokens: int) -> None:
        """Tokens that an answer took, known afterwards."""
        ...

    def reload(self) -> int:
        """Read the keys again; where that fails they stay as they were."""
        ...
