"""rewards: verifiers that score a completion, and the processes that run them.

One role: ``Verifier.score(sample) -> Score(value or None, parts, reason)``. A recipe's ``RewardConfig``
becomes one weighted verifier (``build_reward``), run with a wall clock in killable processes
(``VerifierPool``), and becomes TRL reward functions (``as_trl_rewards``). Names are loaded when they are
first used. Not here: learned reward models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.core.lazy import lazy_names

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

__all__ = [
    "ANSWER_KINDS",
    "R1_ZERO_REWARDS",
    "Accuracy",
    "AccuracyConfig",
    "AnswerSource",
    "AnswerTag",
    "Composed",
    "ErrorKind",
    "GoldFailure",
    "LanguageConsistencyConfig",
    "Layout",
    "Length",
    "Parsed",
    "Part",
    "Repetition",
    "RepetitionConfig",
    "RewardConfig",
    "RewardMonitor",
    "Sample",
    "Score",
    "SoftOverlong",
    "TagCount",
    "ThinkFormat",
    "ThinkFormatConfig",
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
    "completion_text",
    "error_kind",
    "final_part",
    "find_answer",
    "gold_completion",
    "gold_sample",
    "last_number",
    "opens_think",
    "parse_completion",
    "parse_number",
    "reasoning_of",
]

_HOMES = {
    "accuracy": ("Accuracy",),
    "compose": ("Composed", "Part"),
    "config": (
        "ANSWER_KINDS",
        "AccuracyConfig",
        "LanguageConsistencyConfig",
        "R1_ZERO_REWARDS",
        "RepetitionConfig",
        "RewardConfig",
        "ThinkFormatConfig",
        "VerifierConfig",
        "WeightedVerifier",
    ),
    "error_kinds": ("ErrorKind", "error_kind"),
    "formats": ("AnswerTag", "TagCount", "ThinkFormat"),
    "gold": ("GoldFailure", "check_gold", "gold_completion", "gold_sample"),
    "monitor": ("RewardMonitor",),
    "parsing": ("Parsed", "final_part", "find_answer", "opens_think", "parse_completion", "reasoning_of"),
    "penalties": ("Length", "Repetition", "SoftOverlong"),
    "pool": ("VerifierPool",),
    "quantities": ("last_number", "parse_number"),
    "records": ("AnswerSource", "Layout", "Sample", "Score", "Verifier"),
    "registry": ("best_value", "build_reward", "build_verifier"),
    "trl_adapter": ("TrlOptions", "TrlRewards", "as_trl_rewards", "completion_text"),
}


__getattr__ = lazy_names(__name__, _HOMES)
