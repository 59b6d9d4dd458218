"""Exact search: whole numbers, ties by id, the same bytes whatever the order and the hash seed."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.environments.retrieval import SCALE, Index, build_index, terms

documents = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.text("ab C漢.", max_size=20), min_size=1
)


def test_the_scores_are_bm25() -> None:
    texts = {"a": "cache cache miss it", "b": "cache", "c": "nothing of the kind here"}
    index = build_index(texts)
    mean = (4 + 1 + 5) / 3

    def bm25(number: int, length: int) -> float:
        rarity = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
        return rarity * number * 2.2 / (number + 1.2 * (0.25 + 0.75 * length / mean)) / 2.2

    assert [(hit.id, hit.score) for hit in index.search("Cache", 5)] == [
        ("b", round(SCALE * bm25(1, 1))),
        ("a", round(SCALE * bm25(2, 4))),
    ]


def test_ties_are_broken_by_id() -> None:
    index = build_index(dict.fromkeys(("z", "b", "a", "m"), "the same text"))
    assert [hit.id for hit in index.search("same", 3)] == ["a", "b", "m"]
    assert len({hit.score for hit in index.search("same", 4)}) == 1


@given(documents, st.text("ab c漢", max_size=10))
def test_the_order_of_documents_changes_nothing(texts: dict[str, str], query: str) -> None:
    index = build_index(texts)
    turned = build_index(dict(reversed(texts.items())))
    assert turned.to_bytes() == index.to_bytes()
    assert Index.from_bytes(index.to_bytes()) == index
    hits = index.search(query, 10)
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.id))
    assert all(isinstance(hit.score, int) and hit.score > 0 for hit in hits)
    assert hits == index.search(" ".join(reversed(query.split(" "))), 10)


def test_words_are_the_same_in_every_version_of_python() -> None:
    assert terms("SDK_v3.2.1, ÜBER 漢字") == ["sdk_v3", "2", "1", "Ü", "ber", "漢", "字"]
    assert build_index({"a": ""}).search("a", 3) == []


def test_the_bytes_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from posttrain.environments.retrieval import build_index;"
        "from posttrain.core.canonical import digest_bytes;"
        "print(digest_bytes(build_index({str(n): f'word{n % 7} text{n % 3}' for n in range(50)}).to_bytes()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(found) == 1


def test_what_is_no_index_is_refused() -> None:
    for data in (b"", b"{}", b"[]", build_index({"a": "b"}).to_bytes().replace(b'"bm25"', b'"hnsw"')):
        with pytest.raises(DataError):
            Index.from_bytes(data)
