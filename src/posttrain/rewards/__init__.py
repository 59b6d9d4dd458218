"""rewards: verifiers that score a completion, and the processes that run them.

One role: ``Verifier.score(sample) -> Score(value or None, parts, reason)``. A recipe's ``RewardConfig``
becomes one weighted verifier (``build_reward``), run with a wall clock in killable processes
(``VerifierPool``), and becomes TRL reward functions (``as_trl_rewards``). Names are loaded when they are
first used. Not here: learned reward models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.rewards.accuracy import Accuracy
    from posttrain.rewards.compose import Composed, Part
    from posttrain.rewards.config import R1_ZERO_REWARDS, RewardConfig, VerifierConfig, WeightedVerifier
    from posttrain.rewards.error_kinds import ErrorKind, error_kind
    from posttrain.rewards.formats import AnswerTag, TagCount, ThinkFormat
    from posttrain.rewards.gold import GoldFailure, check_gold, gold_completion, gold_sample
    from posttrain.rewards.monitor import RewardMonitor
    from posttrain.rewards.parsing import Parsed, find_answer, opens_think, parse_completion
    from posttrain.rewards.penalties import Length, Repetition, SoftOverlong
    from posttrain.rewards.pool import VerifierPool
    from posttrain.rewards.records import AnswerSource, Layout, Sample, Score, Verifier
    from posttrain.rewards.registry import best_value, build_reward, build_verifier
    from posttrain.rewards.trl_adapter import TrlOptions, TrlRewards, as_trl_rewards

_HOMES = {
    "accuracy": ("Accuracy",),
    "compose": ("Composed", "Part"),
    "config": ("R1_ZERO_REWARDS", "RewardConfig", "VerifierConfig", "WeightedVerifier"),
    "error_kinds": ("ErrorKind", "error_kind"),
    "formats": ("AnswerTag", "TagCount", "ThinkFormat"),
    "gold": ("GoldFailure", "check_gold", "gold_completion", "gold_sample"),
    "monitor": ("RewardMonitor",),
    "parsing": ("Parsed", "find_answer", "opens_think", "parse_completion"),
    "penalties": ("Length", "Repetition", "SoftOverlong"),
    "pool": ("VerifierPool",),
    "records": ("AnswerSource", "Layout", "Sample", "Score", "Verifier"),
    "registry": ("best_value", "build_reward", "build_verifier"),
    "trl_adapter": ("TrlOptions", "TrlRewards", "as_trl_rewards"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "R1_ZERO_REWARDS",
    "Accuracy",
    "AnswerSource",
    "AnswerTag",
    "Composed",
    "ErrorKind",
    "GoldFailure",
    "Layout",
    "Length",
    "Parsed",
    "Part",
    "Repetition",
    "RewardConfig",
    "RewardMonitor",
    "Sample",
    "Score",
    "SoftOverlong",
    "TagCount",
    "ThinkFormat",
    "TrlOptions",
    "TrlRewards",
    "Verifier",
    "VerifierConfig",
    "VerifierPool",
    "WeightedVerifier",
    "as_trl_rewards",
    "best_value",
    "build_reward",
    "build_verifier",
    "check_gold",
    "error_kind",
    "find_answer",
    "gold_completion",
    "gold_sample",
    "opens_think",
    "parse_completion",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
