"""Exact search over frozen documents: every score is a whole number, and ties are broken by id.

Here: building an index (BM25, Robertson and Zaragoza 2009) and searching it. Not here: which tool searches which
documents (``tools``). The weight of a term in a document is computed once, when the index is built, in decimal
arithmetic, whose logarithm is correctly rounded on every machine, and kept as a whole number of millionths; a score is
a sum of those. So there is no approximate neighbour graph that depends on threads, and no float whose last bit decides.

*Covered*: the same index bytes on every machine, the same results for every order of documents and every hash seed.
*Not covered*: meaning; a query finds the words that stand in it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import NamedTuple

from posttrain.core.canonical import canonical_json
from posttrain.core.errors import DataError

INDEX_SCHEMA = 1
SCALE = 1_000_000
"""Weights are kept in units of one millionth."""
_K1, _B, _REST_OF_B = Decimal("1.2"), Decimal("0.75"), Decimal("0.25")
_DECIMAL = Context(prec=34, rounding=ROUND_HALF_EVEN)
# Not \w: what counts as a letter beyond ASCII changes between versions of Python.
_TERM = re.compile(r"[a-z0-9_]+|[^\x00-\x7f]")


class Hit(NamedTuple):
    """One document that was found."""

    id: str
    score: int
    """In millionths; only the order means something."""


@dataclass(frozen=True, slots=True)
class Index:
    """Documents ready to be searched."""

    documents: tuple[str, ...]
    """Ids, sorted."""
    postings: Mapping[str, tuple[tuple[int, int], ...]]
    """Term to (position of the document, weight), by position."""

    def search(self, query: str, limit: int) -> list[Hit]:
        """The best ``limit`` documents that hold a term of ``query``: by score, then by id."""
        scores: Counter[int] = Counter()
        for term in terms(query):
            for position, weight in self.postings.get(term, ()):
                scores[position] += weight
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        return [Hit(self.documents[position], score) for position, score in ranked[:limit]]

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same documents give the same bytes."""
        postings = {term: [list(posting) for posting in postings] for term, postings in self.postings.items()}
        value = {
            "schema": INDEX_SCHEMA,
            "kind": "bm25",
            "k1": str(_K1),
            "b": str(_B),
            "scale": SCALE,
            "documents": list(self.documents),
            "postings": postings,
        }
        return canonical_json(value) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """The inverse of :meth:`to_bytes`. Raises DataError."""
        try:
            value = json.loads(data)
            if (value["schema"], value["kind"], value["scale"]) != (INDEX_SCHEMA, "bm25", SCALE):
                raise DataError(f"an index of schema {value['schema']!r} and kind {value['kind']!r}")
            postings = {t: tuple((d, w) for d, w in p) for t, p in value["postings"].items()}
            return cls(tuple(value["documents"]), postings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"not a search index: {error!r}") from error


def build_index(documents: Mapping[str, str]) -> Index:
    """The index of ``documents``, id to text."""
    ids = tuple(sorted(documents))
    counts = [Counter(terms(documents[name])) for name in ids]
    lengths = [sum(count.values()) for count in counts]
    total = sum(lengths)
    found: dict[str, list[tuple[int, int]]] = {}
    for position, count in enumerate(counts):
        for term, number in count.items():
            found.setdefault(term, []).append((position, number))
    postings = {}
    for term in sorted(found):
        rarity = _rarity(len(ids), len(found[term]))
        weights = (
            (position, _weight(rarity, number, length=lengths[position] * len(ids), total=total))
            for position, number in found[term]
        )
        postings[term] = tuple(weights)
    return Index(ids, postings)


def terms(text: str) -> list[str]:
    """The words of a text: runs of ASCII letters and digits in lower case, and every other character by itself."""
    # str.lower would map characters beyond ASCII by the tables of this version of Python.
    lowered = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)
    return _TERM.findall(lowered)


def _rarity(documents: int, holding: int) -> Decimal:
    """``ln(1 + (N - n + 0.5) / (n + 0.5))``, always above 0."""
    ratio = _DECIMAL.divide(Decimal(2 * (documents - holding) + 1), Decimal(2 * holding + 1))
    return _DECIMAL.ln(_DECIMAL.add(Decimal(1), ratio))


def _weight(rarity: Decimal, number: int, *, length: int, total: int) -> int:
    """BM25's weight of a term that a document holds ``number`` times; ``length / total`` is the document's
    length in mean lengths."""
    relative = _DECIMAL.divide(Decimal(length), Decimal(total))
    norm = _DECIMAL.multiply(_K1, _DECIMAL.fma(_B, relative, _REST_OF_B))
    gain = _DECIMAL.divide(Decimal(number), _DECIMAL.add(Decimal(number), norm))
    scaled = _DECIMAL.multiply(_DECIMAL.multiply(rarity, gain), Decimal(SCALE))
    return int(_DECIMAL.to_integral_value(scaled))
