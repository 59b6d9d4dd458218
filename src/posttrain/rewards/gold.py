"""The perfect completion: what every verifier of a recipe must give full marks.

Here: building it, and checking a recipe's own references with it before any training. Not here: when to stop
(``preflight`` of the training room). A verifier that needs a shape of its own adds it to ``gold_completion``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from posttrain.rewards.config import RewardConfig
from posttrain.rewards.pool import VerifierPool
from posttrain.rewards.records import AnswerSource, Sample, Score
from posttrain.rewards.registry import best_value

Encoder = Callable[[str], Sequence[int]]
"""Text to token ids."""
_TOLERANCE = 1e-9
"""A weighted sum of floats may differ from the best value in the last digit."""


@dataclass(frozen=True, slots=True)
class GoldFailure:
    """A reference whose perfect completion did not get full marks."""

    index: int
    """Position among the references."""
    reference: str
    completion: str
    score: Score


def gold_completion(reference: str, config: RewardConfig, *, think_prefilled: bool = False) -> str:
    """The completion that answers with ``reference`` in the form that all of ``config``'s verifiers want.

    The think block holds a few words, or as many as a length verifier asks for. With ``think_prefilled`` the
    opening tag is left to the prompt.
    """
    kinds = {item.verifier.kind for item in config.verifiers}
    sources: set[AnswerSource] = {
        item.verifier.answer_source for item in config.verifiers if item.verifier.kind == "accuracy"
    }
    free_form = any(
        item.verifier.kind == "think_format" and item.verifier.layout == "think" for item in config.verifiers
    )
    tagged = (
        bool(kinds & {"answer_tag", "tag_count"})
        or "tag" in sources
        or ("think_format" in kinds and not free_form)
    )
    boxed = "boxed" in sources or ("tag_or_boxed" in sources and not tagged)
    answer = rf"\boxed{{{reference}}}" if boxed else reference
    if tagged or not sources:
        answer = f"<answer> {answer} </answer>"
    words = max(
        (item.verifier.min_tokens for item in config.verifiers if item.verifier.kind == "length"), default=0
    )
    # Counting words: no n-gram of them repeats, whatever the repetition verifier's n.
    filler = "".join(f" {number}" for _, number in zip(range(words), count(1), strict=False))
    # A language verifier looks at words: numbers are in every language.
    said = "1 + 1 = 2" if "language_consistency" in kinds else "Work it out step by step."
    return f"{'' if think_prefilled else '<think>'} {said}{filler} </think> {answer}"


def gold_sample(
    reference: str, config: RewardConfig, *, think_prefilled: bool = False, encode: Encoder | None = None
) -> Sample:
    """``gold_completion`` as a Sample. Token ids and their count come from ``encode``; without it each word
    is a token."""
    text = gold_completion(reference, config, think_prefilled=think_prefilled)
    if encode is None:
        vocabulary: dict[str, int] = {}
        ids: Sequence[int] = [vocabulary.setdefault(word, len(vocabulary)) for word in text.split()]
    else:
        ids = encode(text)
    return Sample(
        text,
        reference,
        think_prefilled=think_prefilled,
        token_count=len(ids),
        language="en",
        extra={"completion_ids": list(ids)},
    )


def check_gold(
    pool: VerifierPool,
    references: Sequence[str],
    *,
    think_prefilled: bool = False,
    encode: Encoder | None = None,
) -> list[GoldFailure]:
    """The references whose perfect completion does not get ``best_value`` from the pool's own verifiers; []
    is good."""
    samples = [
        gold_sample(r, pool.config, think_prefilled=think_prefilled, encode=encode) for r in references
    ]
    best = best_value(pool.config)
    return [
        GoldFailure(index, references[index], samples[index].completion, score)
        for index, score in enumerate(pool.score_many(samples))
        if score.value is None or abs(score.value - best) > _TOLERANCE
    ]
