"""Every row of the table in design/020-rewards.md is what the verifiers say."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from posttrain.rewards import Accuracy, AnswerTag, Sample, TagCount, ThinkFormat, error_kind

DESIGN = Path(__file__).resolve().parents[2] / "design" / "020-rewards.md"
VERIFIERS = {
    "`think_answer`": ThinkFormat(),
    "`think`": ThinkFormat(layout="think"),
    "`answer_tag`": AnswerTag(),
    "`tag_count`": TagCount(),
    "`accuracy`": Accuracy(mode="numeric"),
}


class Case(NamedTuple):
    name: str
    sample: Sample
    stated: dict[str, float]
    kind: str


def read_table() -> list[Case]:
    lines = DESIGN.read_text(encoding="utf-8").split("## Stated scores")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, cases = rows[0], rows[2:]
    found = []
    for row in cases:
        cells = dict(zip(header, row, strict=True))
        text = "" if cells["completion"] == "(empty)" else cells["completion"][1:-1].replace("⏎", "\n")
        flags = {"think_prefilled": cells["flag"] == "prefilled", "truncated": cells["flag"] == "truncated"}
        stated = {name: float(cells[name]) for name in VERIFIERS}
        found.append(Case(cells["case"], Sample(text, "8", **flags), stated, cells["error kind"]))
    return found


CASES = read_table()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_stated_scores(case: Case) -> None:
    for name, verifier in VERIFIERS.items():
        score = verifier.score(case.sample)
        assert score.value == case.stated[name], (name, score)
        assert score.parts == {verifier.name: score.value}
        assert bool(score.reason) == (score.value != 1.0), "anything short of full marks says why"
    assert error_kind(case.sample) == case.kind


def test_the_table_covers_what_was_asked() -> None:
    wanted = "empty think|doubled|nested|outside the tag|different answers|before `<think>`|after `</answer>`"
    wanted += "|never closed|answer before think|blank answer|truncated|empty completion|prefilled|good form"
    for words in wanted.split("|"):
        assert any(words in case.name for case in CASES), words


@pytest.mark.parametrize("name", ["`think_answer`", "`think`"])
def test_think_format_is_all_or_nothing(name: str) -> None:
    assert {case.stated[name] for case in CASES} == {0.0, 1.0}
