"""Stage ``best_of_n``: of several replies to a prompt, the one that a reward model scores highest, as an example.

Here: ``rejection_sample`` with other defaults: no rules, one reply kept, a reward model as the judge. What is sampled,
kept and recorded, and how it resumes, is that stage's. *Covered*: equal scores (the first sample is kept), replies that
the reward model cannot score (they rank in the middle, are never rejected, and are counted). *Not covered*: a reward
model that likes the wrong thing; the best of many replies finds its mistakes, and finds more of them as ``samples``
grows.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext, StageResult
from posttrain.engines.judging import ReplyJudgeConfig, RewardModelJudgeConfig
from posttrain.training.rejection_rules import Rules
from posttrain.training.stages.rejection_sample import RejectionSampleConfig, run_rejection_sample


class BestOfNConfig(RejectionSampleConfig):
    """Config of the ``best_of_n`` stage."""

    samples: int = Field(8, ge=2)
    """Completions drawn for each prompt: the n."""
    rules: Rules | None = None
    """Null leaves the choice to the judge; ``{minimum: {}}`` takes out cut-off replies and fenced code before."""
    judge: ReplyJudgeConfig = RewardModelJudgeConfig()
    """Who scores; a language model can, too."""


def run_best_of_n(
    config: BestOfNConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Sample and keep the best. Inputs: ``model``, ``prompts``, and ``reward_model`` (an output ``model`` of the stage
    ``reward_model``); ``judge_model`` for a judge of kind ``model``.

    Outputs and errors are those of :func:`~posttrain.training.stages.rejection_sample.run_rejection_sample`.
    """
    return run_rejection_sample(config, inputs, context)
