"""Prompts of all kinds in one reinforcement run: which are drawn when, and who scores them.

Here: the order of prompts (``reasoning`` prompts all the way, open ones only in the last part of the steps, as R1
limits its preference signal), and reward models as TRL reward functions for open prompts. Not here: verifiers
(``rewards``), the reward models themselves (``reward_model``, ``engines.reward_scorer``), the guard against
over-optimisation (``guard``), the trainer (``grpo``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.core.errors import ConfigError
from posttrain.data.prompts import PromptRow
from posttrain.rewards.trl_adapter import completion_text
from posttrain.training.guard import GuardConfig

if TYPE_CHECKING:
    from posttrain.engines.reward_scorer import RewardScorer


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


@dataclass(frozen=True, slots=True)
class Routed:
    """What a trainer needs beside the verifiers."""

    preference: PreferenceConfig
    rewards: list[PreferenceReward]
    weights: list[float]
    order: list[PromptRow]
    """The prompts of the whole run, in the order of training."""


def route(
    preference: PreferenceConfig,
    scorers: Mapping[str, RewardScorer],
    order: list[PromptRow],
    *,
    think_prefilled: bool,
) -> Routed:
    """Reward functions for the reward models named ``helpful`` and ``harmless``, beside the order of the prompts."""
    weights = {"helpful": preference.helpful_weight, "harmless": preference.harmless_weight}
    rewards = [
        PreferenceReward(name, scorer, clip=preference.clip, think_prefilled=think_prefilled)
        for name, scorer in scorers.items()
    ]
    return Routed(preference, rewards, [weights[name] for name in scorers], order)


def check_routing(
    names: Sequence[str], prompts: Sequence[PromptRow], config: PreferenceConfig | None
) -> None:
    """Refuse open prompts that nobody scores, and reward models that nobody asked for."""
    if config is None and names:
        raise ConfigError(
            f"the input {names[0]!r} is given, and the stage has no `preference`",
            hint="set `preference: {}` for the defaults, or remove the input",
        )
    if config is not None and not names:
        raise ConfigError(
            "`preference` is set, and the stage has neither the input `helpful` nor `harmless`",
            hint="add the output `model` of a `reward_model` stage as an input",
        )
    open_rows = sum(row.task != "reasoning" for row in prompts)
    if open_rows and config is None:
        raise ConfigError(
            f"{open_rows} of {len(prompts)} prompts have no answer to check, and no reward model is given",
            hint="add the inputs `helpful` or `harmless` with `preference`, or take these prompts out",
        )
