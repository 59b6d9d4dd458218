"""Prompt sets: what is refused, and that their file round-trips."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import DataError
from posttrain.data.prompts import (
    PromptRow,
    check_disjoint,
    check_prompts,
    question_id,
    read_prompts,
    to_jsonl,
)

APPLES = PromptRow("a", "Alice has 3 apples and buys 2 more. How many now?", "5 apples")
PEARS = PromptRow("b", "Ben has 4 pears.", "4", "en", "Think.", {"steps": "1"})

texts = st.text(st.characters(codec="utf-8"), max_size=40)


@given(
    st.lists(st.builds(PromptRow, id=texts, question=texts, answer=texts, tags=st.dictionaries(texts, texts)))
)
def test_rows_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[PromptRow]) -> None:
    path = tmp_path_factory.mktemp("rows") / "prompts.jsonl"
    path.write_bytes(to_jsonl(rows))
    assert read_prompts(path) == rows


def test_messages_hold_the_system_message_only_where_there_is_one() -> None:
    assert [m["role"] for m in APPLES.messages()] == ["user"]
    assert [m["role"] for m in PEARS.messages()] == ["system", "user"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "training prompts are empty"),
        ([PromptRow("x", "  ", "1")], "'x' has an empty question"),
        ([PromptRow("x", "How many?", "")], "'x' has an empty answer"),
        (
            [APPLES, PromptRow("c", "ALICE has 3  apples and buys 2 more. How many now?", "5")],
            "'a' and 'c' ask the same question",
        ),
    ],
)
def test_unusable_sets_are_refused(rows: list[PromptRow], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_prompts(rows, "training")
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_an_overlap_is_refused_whatever_its_spacing_and_case() -> None:
    check_disjoint([APPLES], [PEARS])
    with pytest.raises(DataError, match="1 held-out prompts are also training prompts"):
        check_disjoint([APPLES], [PEARS, PromptRow("z", APPLES.question.upper() + " ", "5")])


def test_ids_are_of_the_normal_form() -> None:
    assert question_id("How  many?") == question_id("how many?")
    assert question_id("How many?") != question_id("How much?")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(to_jsonl([APPLES]) + b'{"id": "only"}\n')
    with pytest.raises(DataError, match="line 2 is not a prompt row"):
        read_prompts(path)
