"""From configuration to verifiers.

Here: one builder a kind, and what each kind's best value is. To add a verifier, see ``config``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain.core.errors import MissingDependencyError
from posttrain.rewards import latex
from posttrain.rewards.accuracy import Accuracy
from posttrain.rewards.compose import Composed, Part
from posttrain.rewards.config import ANSWER_KINDS, RewardConfig, VerifierConfig
from posttrain.rewards.formats import AnswerTag, TagCount, ThinkFormat
from posttrain.rewards.language import LanguageConsistency
from posttrain.rewards.penalties import Length, Repetition, SoftOverlong
from posttrain.rewards.records import Verifier

_BUILDERS: dict[str, Callable[..., Verifier]] = {
    "accuracy": Accuracy,
    "think_format": ThinkFormat,
    "answer_tag": AnswerTag,
    "tag_count": TagCount,
    "length": Length,
    "repetition": Repetition,
    "soft_overlong": SoftOverlong,
    "language_consistency": LanguageConsistency,
}
_PENALTIES = frozenset({"length", "repetition", "soft_overlong"})


def build_verifier(config: VerifierConfig, name: str | None = None) -> Verifier:
    """The verifier that ``config`` describes, called ``name`` (by default its kind).

    Raises MissingDependencyError where it needs a library that is not installed.
    """
    if config.kind == "accuracy" and config.mode == "latex" and not latex.is_installed():
        raise MissingDependencyError(
            "the accuracy verifier's mode 'latex' needs math-verify",
            hint="pip install 'posttrain[train]', or set the verifier's mode to numeric",
        )
    fields: dict[str, Any] = config.model_dump(exclude={"kind"})
    return _BUILDERS[config.kind](name=name or config.kind, **fields)


def build_reward(config: RewardConfig) -> Composed:
    """All verifiers of ``config`` as one, with their weights."""
    return Composed(
        tuple(
            Part(
                build_verifier(item.verifier, item.part_name),
                item.weight,
                item.required,
                of_answer=item.verifier.kind in ANSWER_KINDS,
            )
            for item in config.verifiers
        )
    )


def best_value(config: RewardConfig) -> float:
    """The value of a perfect completion: 1.0 for each score, 0.0 for each penalty, weighted."""
    return float(sum(item.weight for item in config.verifiers if item.verifier.kind not in _PENALTIES))
