"""Prompts of all kinds in one reinforcement run: which are drawn when, and who scores them.

Here: the order of prompts (``reasoning`` prompts all the way, open ones only in the last part of the steps, as R1
limits its preference signal), reward models as TRL reward functions for open prompts, and the guard that stops a run
in which the reward model is pleased while a held-out measure falls. Not here: verifiers (``rewards``), the reward
models themselves (``reward_model``, ``engines.reward_scorer``), the trainer (``grpo``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.core.errors import ConfigError
from posttrain.data.prompts import PromptRow
from posttrain.rewards.trl_adapter import completion_text

if TYPE_CHECKING:
    from posttrain.engines.reward_scorer import RewardScorer


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


class PreferenceConfig(BaseModel):
    """How reward models take part (inputs ``helpful`` and ``harmless``, one or both)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    last_share: float = Field(0.25, gt=0, le=1)
    """Share of the steps, at the end, in which open prompts and their reward take part (R1: 400 of 1,700)."""
    open_share: float = Field(0.5, gt=0, lt=1)
    """Share of the prompts of these steps that are open."""
    helpful_weight: float = Field(1.0, ge=0)
    harmless_weight: float = Field(1.0, ge=0)
    clip: float = Field(3.0, gt=0)
    """Scores, in standard deviations of the calibration set, are cut here on both sides."""
    guard: GuardConfig | None = GuardConfig()
    """Null trains without looking."""

    def first_step(self, steps: int) -> int:
        """Steps without the preference signal, before the first one with it."""
        return steps - max(1, round(steps * self.last_share))


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many prompts there are to draw."""

    rounds: int
    """Generation rounds of the run."""
    prompts: int
    """Prompts of a round."""
    quiet_rounds: int
    """Rounds before the preference signal begins."""
    open_share: float


def schedule_prompts(rows: Sequence[PromptRow], schedule: Schedule, seed: int) -> list[PromptRow]:
    """The prompts of the whole run in order, ``rounds * prompts`` of them; each kind in shuffled passes.

    Raises ConfigError where one of the two kinds is missing.
    """
    kinds = {
        name: [row for row in rows if (row.task == "reasoning") == (name == "reasoning")]
        for name in ("reasoning", "open")
    }
    for name, members in kinds.items():
        if not members:
            raise ConfigError(
                f"there are no {name} prompts, and `preference` needs both kinds",
                hint="mix a source of each kind in the `prompts` stage",
            )
    endless = {name: _passes(members, f"{name}/{seed}") for name, members in kinds.items()}
    order: list[PromptRow] = []
    for number in range(schedule.rounds):
        count = 0 if number < schedule.quiet_rounds else max(1, round(schedule.prompts * schedule.open_share))
        order += [next(endless["open"]) for _ in range(count)]
        order += [next(endless["reasoning"]) for _ in range(schedule.prompts - count)]
    return order


def _passes(rows: Sequence[PromptRow], name: str) -> Iterator[PromptRow]:
    rng = random.Random(f"routing/{name}")
    while True:
        order = list(rows)
        rng.shuffle(order)
        yield from order


class PreferenceReward:
    """A reward model as a TRL reward function: standardised scores of open prompts, None for the others."""

    def __init__(self, name: str, scorer: RewardScorer, *, clip: float, think_prefilled: bool) -> None:
        self.__name__ = name
        self._scorer = scorer
        self._clip = clip
        self._think_prefilled = think_prefilled

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], task: Sequence[str], **_: Any
    ) -> list[float | None]:
        places = [place for place, kind in enumerate(task) if kind != "reasoning"]
        scores = self._scorer.score(
            [prompts[place] for place in places],
            [completion_text(completions[place])[0] for place in places],
            think_prefilled=self._think_prefilled,
        )
        values: list[float | None] = [None] * len(task)
        for place, score in zip(places, scores, strict=True):
            values[place] = None if score is None else max(-self._clip, min(self._clip, score))
        return values


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
