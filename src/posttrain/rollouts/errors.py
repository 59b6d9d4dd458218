"""Errors of the rollouts room, beside those of ``core.errors``: one boundary, a step that is not allowed."""

from __future__ import annotations

from posttrain.core.errors import ServingError


class RolloutError(ServingError):
    """A step that the rollout's state or its contract does not allow now."""
