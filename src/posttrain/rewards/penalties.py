"""Penalties on how much is written, and how often the same: values from 0.0 (nothing to say) down to -1.0.

Here: length, repetition and soft-overlong penalties, each with its formula and source. Not here: weights
(``compose``). Left out: cosine-scaled accuracy (Yeo et al. 2025) and Kimi's group-relative length reward,
which mix correctness or the rest of the group into one sample's penalty.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.rewards.records import NO_TOKEN_COUNT, NO_TOKEN_IDS, Sample, Score

_CJK = r"\u3040-\u30ff\u3400-\u9fff"
_WORDS = re.compile(rf"</?[a-z]+>|[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Length:
    """Keeps the number of tokens ``n`` inside a band.

    0 for ``min_tokens <= n <= max_tokens``; below ``-(min_tokens - n) / min_tokens``; above
    ``-min(1, (n - max_tokens) / max_tokens)``. The hinge form of the linear term of LCPO (Aggarwal & Welleck
    2025, arXiv:2503.04697), scaled to the band.
    """

    max_tokens: int
    name: str = "length"
    min_tokens: int = 0

    def score(self, sample: Sample) -> Score:
        """None without ``token_count``."""
        tokens = sample.token_count
        if tokens is None:
            return Score(None, {self.name: None}, NO_TOKEN_COUNT)
        if tokens < self.min_tokens:
            return _penalty(
                self.name, (self.min_tokens - tokens) / self.min_tokens, "shorter than min_tokens"
            )
        over = max(0, tokens - self.max_tokens)
        return _penalty(self.name, min(1.0, over / self.max_tokens), "longer than max_tokens")


@dataclass(frozen=True, slots=True)
class Repetition:
    """``-(1 - unique n-grams / n-grams)``: Yeo et al. 2025, appendix C.2 (arXiv:2502.03373), as in TRL and
    open-r1.

    ``word``: n-grams of lower-case words, tags, punctuation marks and single Chinese or Japanese characters, so
    that it works without spaces and without a tokenizer. ``token``: n-grams of ``extra["completion_ids"]``.
    """

    name: str = "repetition"
    ngram_size: int = 4
    unit: Literal["word", "token"] = "word"

    def score(self, sample: Sample) -> Score:
        """None where ``unit`` is ``token`` and the sample has no token ids."""
        units: Sequence[Hashable]
        if self.unit == "word":
            units = _WORDS.findall(sample.completion.lower())
        else:
            ids = sample.extra.get("completion_ids")
            if ids is None:
                return Score(None, {self.name: None}, NO_TOKEN_IDS)
            units = ids
        total = len(units) - self.ngram_size + 1
        if total <= 0:
            return _penalty(self.name, 0.0, "")
        unique = len({tuple(units[start : start + self.ngram_size]) for start in range(total)})
        return _penalty(self.name, 1 - unique / total, "repeats itself")


@dataclass(frozen=True, slots=True)
class SoftOverlong:
    """DAPO's soft overlong punishment (Yu et al. 2025, arXiv:2503.14476, equation 13), for ``n`` tokens:

    0 for ``n <= max_tokens - cache_tokens``; then ``((max_tokens - cache_tokens) - n) / cache_tokens`` down
    to -1 at ``max_tokens``; -1 beyond.
    """

    max_tokens: int
    cache_tokens: int
    name: str = "soft_overlong"

    def score(self, sample: Sample) -> Score:
        """None without ``token_count``."""
        if sample.token_count is None:
            return Score(None, {self.name: None}, NO_TOKEN_COUNT)
        over = sample.token_count - (self.max_tokens - self.cache_tokens)
        if over <= 0:
            return _penalty(self.name, 0.0, "")
        return _penalty(
            self.name, min(1.0, over / self.cache_tokens) if self.cache_tokens else 1.0, "overlong"
        )


def _penalty(name: str, size: float, reason: str) -> Score:
    value = -size if size else 0.0
    return Score(value, {name: value}, reason if size else "")
