"""Several verifiers as one, with weights.

Here: the weighted sum and what a missing part does to it. Not here: any rule. The sum is linear: scaling
every weight scales the value.

A missing part. Where a ``required`` verifier (the default) has no value, the sample has none: a sum without
accuracy would lie below every complete sum of its group and punish the policy for a verification that hung.
Where a part that is not required is None ("does not apply to this prompt"), the other parts are summed; use
that only where it is None for the whole group of a prompt. For an open-ended prompt the parts that check the answer
or its form are left out, and a sum of nothing is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.rewards.records import Sample, Score, Verifier


@dataclass(frozen=True, slots=True)
class Part:
    """One verifier in a composition."""

    verifier: Verifier
    weight: float = 1.0
    required: bool = True
    """Whether the whole sample has no value where this part has none."""
    of_answer: bool = False
    """Whether it checks the answer or its form, so that it does not apply to open-ended prompts."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A verifier whose value is the weighted sum of its parts."""

    parts: tuple[Part, ...]
    name: str = "reward"

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts, in order."""
        return tuple(part.verifier.name for part in self.parts)

    def warm_up(self) -> None:
        """Load what scoring needs, before any sample's clock runs."""
        for part in self.parts:
            warm_up = getattr(part.verifier, "warm_up", None)
            if warm_up is not None:
                warm_up()

    def score(self, sample: Sample) -> Score:
        """Score ``sample`` with every part. ``parts`` holds the unweighted values, ``reason`` every part's
        reason."""
        parts = [part for part in self.parts if not (sample.open_ended and part.of_answer)]
        scores = [part.verifier.score(sample) for part in parts]
        values = dict.fromkeys(self.part_names) | {
            part.verifier.name: score.value for part, score in zip(parts, scores, strict=True)
        }
        missing = next((i for i, s in enumerate(scores) if s.value is None and parts[i].required), None)
        if missing is None and scores and all(score.value is None for score in scores):
            missing = 0
        if missing is not None:
            return Score(None, values, f"{parts[missing].verifier.name}: {scores[missing].reason}")
        total = sum(p.weight * s.value for p, s in zip(parts, scores, strict=True) if s.value is not None)
        reasons = [f"{p.verifier.name}: {s.reason}" for p, s in zip(parts, scores, strict=True) if s.reason]
        return Score(float(total), values, "; ".join(reasons))
