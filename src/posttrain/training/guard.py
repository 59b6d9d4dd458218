"""The guard against over-optimisation: a reward model is a proxy, and what pleases it may be worse.

Here: when a run is to be stopped, as a pure function. Not here: looking at held-out prompts (``callbacks``).
*Covered*: a policy that trades right answers for pleasing ones. *Not covered*: open replies that please the reward
model and no person; the win rate on held-out prompts is for that.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field


class GuardConfig(BaseModel):
    """Stops when the reward models' score rises while accuracy on held-out prompts falls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(10, ge=1)
    """Steps between two looks at the held-out prompts."""
    prompts: int = Field(64, ge=1)
    """Held-out prompts with a checkable answer, one sampled completion each."""
    max_drop: float = Field(0.1, gt=0, le=1)
    """Largest fall of held-out accuracy since the preference signal began."""
    min_rise: float = Field(0.1, ge=0)
    """Rise of the mean preference reward, in standard deviations, from which a fall counts as over-optimisation."""


def over_optimised(guard: GuardConfig, preference_means: Sequence[float], held_out: Sequence[float]) -> str:
    """What went wrong, in words; empty while nothing did.

    ``preference_means`` is the mean preference reward of each step since the signal began, ``held_out`` the accuracy at
    each look, the first one before it began.
    """
    if len(held_out) < 2 or len(preference_means) < 2:
        return ""
    part = max(1, len(preference_means) // 4)
    rise = sum(preference_means[-part:]) / part - sum(preference_means[:part]) / part
    fall = held_out[0] - held_out[-1]
    if rise < guard.min_rise or fall <= guard.max_drop:
        return ""
    return (
        f"the reward model's score rose by {rise:.2f} standard deviations while held-out accuracy fell from "
        f"{held_out[0]:.1%} to {held_out[-1]:.1%}"
    )
