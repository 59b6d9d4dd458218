"""A learned router as a file, and at work.

Here: features, the file, scoring. Not here: training (``train``). The file is one canonical JSON document with its
numbers as base64 of 32-bit floats: no pickle, so reading one runs nothing. Features are hashed words and pairs of
words (tf-idf) and a few facts of form; the score is a logistic regression, calibrated by Platt's method: the
probability that the small model's answer is worse than the big one's.

Scoring is plain Python: some tens of microseconds for a sentence, about a millisecond for the longest text it reads.
"""

from __future__ import annotations

import base64
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from math import exp, isfinite, log, log2, sqrt
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self
from zlib import crc32

from pydantic import Field, model_validator

from posttrain.core.atomic import write_atomic
from posttrain.core.documents import Digest, Document
from posttrain.core.errors import DataError
from posttrain.guardrails.fold import fold

FEATURES = 1
"""Version of :func:`features`; a file made with another is refused."""
MAX_CHARACTERS = 4_000
"""Of a text that are read: its beginning."""
_WORD = re.compile(r"\w+|[^\w\s]")


class Features(NamedTuple):
    """A text in numbers."""

    counts: dict[int, int]
    """Bucket to how often."""
    words: frozenset[int]
    """Hashes of its different words."""


def features(text: str, buckets: int) -> Features:
    """What the router sees of a text. Numbers are seen by their length, because what they are says little."""
    folded = fold(text[:MAX_CHARACTERS])
    tokens = [
        "0" * min(len(token), 4) if token.isdecimal() else token[:30] for token in _WORD.findall(folded)
    ]
    names = list(tokens)
    names += [f"{a} {b}" for a, b in pairwise(tokens)]
    numbers = sum(token[0] == "0" for token in tokens)
    names += [
        f"\0length {int(log2(1 + len(tokens)))}",
        f"\0numbers {min(numbers, 8)}",
        f"\0lines {int(log2(1 + folded.count(chr(10))))}",
    ]
    counts = Counter([crc32(name.encode()) % buckets for name in names])
    return Features(counts, frozenset(crc32(token.encode()) for token in tokens if token[0].isalpha()))


def pack(values: Iterable[float] | Iterable[int], kind: str) -> str:
    """Numbers as base64, little-endian; ``kind`` is ``f`` or ``I``."""
    packed = array(kind, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def unpack(text: str, kind: str) -> array[Any]:
    """The inverse of :func:`pack`. Raises ValueError."""
    values = array(kind)
    values.frombytes(base64.b64decode(text, validate=True))
    if sys.byteorder == "big":
        values.byteswap()
    return values


class RouterModel(Document):
    """A learned router."""

    record_kind: ClassVar[str] = "router_model"

    features: int = FEATURES
    """Version of the features."""
    buckets: int = Field(ge=16, le=1 << 20)
    weights: str
    """Of each bucket, packed."""
    idf: str
    """Of each bucket, packed."""
    words: str
    """Hashes of the words that training saw, packed."""
    bias: float
    slope: float
    """Platt's calibration: probability = 1 / (1 + exp(-(slope * score + intercept)))."""
    intercept: float
    threshold: float = Field(ge=0, le=1)
    """The big one is asked from this probability on."""
    small: str = Field(min_length=1)
    """Target that answers below it."""
    big: str = Field(min_length=1)
    small_cost: float = Field(ge=0)
    """Of one answer, in any unit."""
    big_cost: float = Field(ge=0)
    min_known_share: float = Field(0.5, ge=0, le=1)
    """Fewer of a text's words than these were seen in training: unsure."""
    rows: Digest
    """Of the rows that it was trained on."""
    policy: str
    """How the threshold was chosen, for people."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.features != FEATURES:
            raise ValueError(f"features: {self.features}, and this posttrain has {FEATURES}; train it again")
        for name in ("weights", "idf"):
            values = unpack(getattr(self, name), "f")
            if len(values) != self.buckets or not all(map(isfinite, values)):
                raise ValueError(f"{name}: not {self.buckets} finite numbers")
        unpack(self.words, "I")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises DataError."""
        try:
            return cls.from_json(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"cannot read the router {path}: {error.strerror}", hint="`posttrain router train` makes one"
            ) from error

    def write(self, path: Path) -> None:
        """Write it whole."""
        write_atomic(path, self.to_bytes() + b"\n")


class Score(NamedTuple):
    """What the learned router says."""

    probability: float
    """That the small one is worse."""
    target: str | None
    """None: unsure."""


class LearnedRouter:
    """A model at work."""

    def __init__(self, model: RouterModel) -> None:
        self._model = model
        self._weights = unpack(model.weights, "f")
        self._idf = unpack(model.idf, "f")
        self._words = frozenset(unpack(model.words, "I"))

    def score(self, text: str) -> Score:
        """Judge a text."""
        model = self._model
        seen = features(text, model.buckets)
        probability = platt(self.margin(seen), model.slope, model.intercept)
        known = len(seen.words & self._words)
        if not seen.words or known < model.min_known_share * len(seen.words):
            return Score(probability, None)
        return Score(probability, model.big if probability >= model.threshold else model.small)

    def margin(self, seen: Features) -> float:
        """The score before calibration."""
        weights, idf = self._weights, self._idf
        total = length = 0.0
        for bucket, count in seen.counts.items():
            value = (1.0 + log(count)) * idf[bucket]
            total += value * weights[bucket]
            length += value * value
        return total / sqrt(length) + self._model.bias if length else self._model.bias


def platt(margin: float, slope: float, intercept: float) -> float:
    """The calibrated probability."""
    value = slope * margin + intercept
    if value >= 0:
        return 1.0 / (1.0 + exp(-value))
    grown = exp(value)
    return grown / (1.0 + grown)
