"""R1's language consistency: the share of the reasoning's words that are in the language of the prompt.

Here: the verifier. Not here: how a word's language is told (``data.languages``). Source: DeepSeek-R1 (arXiv:2501.12948,
section 2.3.2), which adds this share to the accuracy reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.data.languages import target_language_share, warm_up
from posttrain.rewards.parsing import reasoning_of
from posttrain.rewards.records import NO_LANGUAGE, Sample, Score


@dataclass(frozen=True, slots=True)
class LanguageConsistency:
    """From 0 to 1. A part without words (numbers only, or empty) scores 1: nothing in it is in another language, and
    whether there is any reasoning is for the format verifier to say."""

    name: str = "language_consistency"
    target: str = "prompt"
    """``prompt``: the sample's own language; else a fixed tag."""
    part: Literal["reasoning", "whole"] = "reasoning"

    def score(self, sample: Sample) -> Score:
        """None where the language is that of the prompt and the sample does not say it."""
        language = sample.language if self.target == "prompt" else self.target
        if language is None:
            return Score(None, {self.name: None}, NO_LANGUAGE)
        text = reasoning_of(sample.completion) if self.part == "reasoning" else sample.completion
        share = target_language_share(text, language, question=sample.prompt)
        value = 1.0 if share is None else share
        return Score(
            value, {self.name: value}, "" if value == 1.0 else f"{1 - value:.0%} in another language"
        )

    def warm_up(self) -> None:
        """Load the language identifier before any sample's clock runs."""
        warm_up()
