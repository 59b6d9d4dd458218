"""Rows of a small made-up evaluation, the same every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from posttrain.evaluation.heldout.records import CaseRow

MODEL = "sha256:" + "a" * 64
OTHER_MODEL = "sha256:" + "b" * 64
SUITE = "sha256:" + "c" * 64


def make_row(case: int = 0, **changes: Any) -> CaseRow:
    """A right, well-formed answer to case ``case``, with ``changes``."""
    fields: dict[str, Any] = {
        "case_id": f"case-{case:03d}",
        "sample_index": 0,
        "mode": "greedy",
        "question": f"What is {case} + 2?",
        "reference": str(case + 2),
        "completion": f"<think> {case} + 2 = {case + 2} </think> <answer> {case + 2} </answer>",
        "correct": True,
        "correct_anywhere": True,
        "format_ok": True,
        "mixed_language": False,
        "language": "en",
        "think_tokens": 10,
        "completion_tokens": 20,
        "truncated": False,
    }
    return CaseRow(**{**fields, **changes})


def make_rows(rate: int, *, cases: int = 40, samples: int = 4, fmt: int = 100) -> list[CaseRow]:
    """Greedy and sampled rows of which ``rate`` percent have the right number and ``fmt`` percent the format.

    Which ones is a fixed pattern, so that a higher rate keeps every right answer of a lower one.
    """
    rows = []
    for case in range(cases):
        language = "zh" if case % 2 else "en"
        for index in range(-1, samples):
            right = (case * 37 + index * 11) % 100 < rate
            kept = (case * 13 + index * 29) % 100 < fmt
            kind = None if right and kept else "wrong_number" if kept else "no_answer_tag"
            rows.append(
                make_row(
                    case,
                    mode="greedy" if index < 0 else "sampled",
                    sample_index=max(0, index),
                    correct=right and kept,
                    correct_anywhere=right,
                    format_ok=kept,
                    language=language,
                    error_kind=kind,
                    think_tokens=5 + case % 7 + max(0, index),
                    tags={"steps": 2 + case % 3},
                )
            )
    return rows


@pytest.fixture(scope="session")
def row() -> Callable[..., CaseRow]:
    """``make_row``."""
    return make_row


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[CaseRow]]:
    """``make_rows``."""
    return make_rows


@pytest.fixture(scope="session")
def digests() -> tuple[str, str, str]:
    """A model, another model, a suite."""
    return MODEL, OTHER_MODEL, SUITE
