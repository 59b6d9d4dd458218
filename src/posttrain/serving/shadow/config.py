"""Who judges shadow answers.

Here: frozen, torch-free configs. Not here: judging (``judge``). To add a kind: a config with its own ``kind``, a place
in :data:`ShadowJudge`, a case in ``judge.open_judge``.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from posttrain.core.documents import Record
from posttrain.engines.judging import EndpointJudgeConfig


class EndpointJudge(Record):
    """A model behind any OpenAI-compatible URL, asked in both orders."""

    kind: Literal["endpoint"] = "endpoint"
    name: str = Field("judge", min_length=1)
    """What verdicts call it."""
    judge: EndpointJudgeConfig


class RewardModelJudge(Record):
    """A reward model of the store: the higher score wins; there is no order to be swayed by."""

    kind: Literal["reward_model"] = "reward_model"
    name: str = Field("reward-model", min_length=1)
    """What verdicts call it."""
    model: str
    """Reference of the reward model's artifact."""
    tie: float = Field(0.05, ge=0)
    """Standard deviations by which scores must differ to be no tie."""


ShadowJudge: TypeAlias = Annotated[EndpointJudge | RewardModelJudge, Field(discriminator="kind")]
