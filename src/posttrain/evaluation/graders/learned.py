"""Graders that ask a model: a reward model, or a judge.

Here: one question an answer. Not here: the models (``engines``). They load when the first answer is graded. *Not
covered*: what such a model mistakes for quality; a slice that requires only these is one that fluent nonsense passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from posttrain.core.errors import ConfigError
from posttrain.engines.judging import Judge, JudgeRequest
from posttrain.engines.reward_scorer import RewardScorer
from posttrain.environments.records import Answer, Case
from posttrain.evaluation.graders import config as c
from posttrain.evaluation.graders.records import Grade, Metric
from posttrain.evaluation.graders.texts import Verdict


class RewardModel(Verdict):
    """A reward model's score is high enough."""

    usual_metric = "reward_model_pass"
    meaning = "The reward model's score is at least the threshold."
    config: c.RewardModelConfig

    def __init__(self, config: c.RewardModelConfig, load: Callable[[], RewardScorer] | None) -> None:
        super().__init__(config)
        if load is None:
            raise ConfigError(
                f"the grader {config.name!r} needs a reward model",
                hint="give `reward_model` to GradingResources",
            )
        self._load = load

    @cached_property
    def _scorer(self) -> RewardScorer:
        return self._load()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict and the score."""
        meaning = "Standardised score of the reward model."
        return (*super().metrics, Metric("reward_model_score", "float64", meaning))

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Score the final text after the case's conversation."""
        score = self._scorer.score([[_message(message) for message in case.messages]], [answer.text])[0]
        passed = score >= self.config.threshold
        return self.verdict(passed, "" if passed else f"score {score:.2f}", reward_model_score=score)


class LlmJudge(Verdict):
    """A judge's rating is high enough."""

    usual_metric = "llm_judge_pass"
    meaning = "The judge's rating is at least the threshold."
    config: c.LlmJudgeConfig

    def __init__(self, config: c.LlmJudgeConfig, load: Callable[[], tuple[Any, Any]] | None) -> None:
        super().__init__(config)
        if config.judge.kind == "model" and load is None:
            raise ConfigError(
                f"the grader {config.name!r} needs a judge model",
                hint="give `judge_model` to GradingResources",
            )
        self._load = load

    @cached_property
    def _judge(self) -> Judge:
        from posttrain.engines.judges import build_judge

        return build_judge(self.config.judge, self._load or _no_model)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict and the rating."""
        return (*super().metrics, Metric("llm_judge_value", "float64", "Rating of the judge, 0 to 1."))

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Ask the judge; None where it failed."""
        messages = tuple(_message(message) for message in case.messages)
        judgement = self._judge.judge([JudgeRequest(case.id, messages, answer.text)])[0]
        if judgement.value is None:
            return self.verdict(None, judgement.reason or "the judge failed", llm_judge_value=None)
        passed = judgement.value >= self.config.threshold
        reason = judgement.reason or ("" if passed else f"rating {judgement.value:.2f}")
        return self.verdict(passed, reason, llm_judge_value=judgement.value)


def _message(message: Any) -> dict[str, str]:
    return {"role": str(message["role"]), "content": str(message["content"])}


def _no_model() -> tuple[Any, Any]:
    raise AssertionError("an endpoint's judge loads no model")
