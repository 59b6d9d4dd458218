"""Prompt sources: keys, mixing, duplicates, near-duplicates of held-out questions, solved examples."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.stage import StageContext, StageResult
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.errors import DataError
from posttrain.data.prompt_sources import PromptsConfig, run_prompts
from posttrain.data.prompts import PROMPTS_FILE, Overlap, PromptRow, read_prompts

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARED = DATA / "math-word-problems"


def draw(tmp_path: Path, **config: Any) -> dict[str, list[PromptRow]]:
    store = ArtifactStore(tmp_path / "home")
    context = StageContext(store, "prompts", "prompts", "sha256:" + "0" * 64, tmp_path / "work")
    result: StageResult = run_prompts(PromptsConfig.model_validate(config), {}, context)
    return {name: read_prompts(store.view(a) / PROMPTS_FILE) for name, a in result.outputs.items()}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_keys_are_joined_and_worked_answers_cut(tmp_path: Path) -> None:
    rows = [{"Body": f"Amy has {n} cats", "Question": "How many?", "Answer": float(n)} for n in range(6)]
    rows.append({"Body": "Ben has 9 dogs.", "Question": "How many?", "Answer": "He has 9.\n#### 9"})
    source = {"kind": "jsonl", "paths": [write(tmp_path / "a.jsonl.gz", rows)], "question": "Body+Question"}
    sets = draw(tmp_path, source={**source, "answer": "Answer"}, train=9, heldout=3)
    drawn = {row.question: row.answer for row in [*sets["train"], *sets["heldout"]]}
    assert len(sets["train"]) == 4 and len(sets["heldout"]) == 3
    assert drawn["Amy has 2 cats. How many?"] == "2"
    assert drawn["Ben has 9 dogs. How many?"] == "9"


def test_a_mix_takes_sources_in_turn_with_their_own_keys(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"input": f"What is {n} plus one?", "target": n + 1} for n in range(20)])
    b = write(tmp_path / "b.jsonl", [{"q": f"What is {n} minus one?", "a": n - 1} for n in range(20)])
    mix = [
        {"kind": "jsonl", "paths": [a], "question": "input", "answer": "target"},
        {"kind": "jsonl", "paths": [b], "question": "q", "answer": "a"},
    ]
    sets = draw(tmp_path, source={"kind": "mix", "sources": mix}, train=10, heldout=8)
    for name, half in (("heldout", 4), ("train", 5)):
        assert Counter(row.tags["source"] for row in sets[name]) == {"a": half, "b": half}
    again = draw(tmp_path, source={"kind": "mix", "sources": mix}, train=10, heldout=8, seed=7)
    assert again["heldout"] == sets["heldout"]
    assert again["train"] != sets["train"]


@pytest.mark.parametrize("kind", ["jsonl", "mix"])
def test_a_question_twice_is_refused_or_dropped_as_the_source_says(tmp_path: Path, kind: str) -> None:
    rows = [{"question": f"What is {n // 2} plus one?", "answer": "1"} for n in range(12)]
    jsonl = {"kind": "jsonl", "paths": [write(tmp_path / "a.jsonl", rows)]}
    source = {"kind": "mix", "sources": [jsonl]} if kind == "mix" else jsonl
    with pytest.raises(DataError, match="ask the same question"):
        draw(tmp_path, source=source, train=12, heldout=1)
    sets = draw(tmp_path, source={**source, "duplicates": "drop"}, train=12, heldout=1)
    assert len(sets["train"]) == 5


def test_near_duplicates_of_held_out_questions_are_left_out_of_training(tmp_path: Path) -> None:
    same = [f"Tom had {n} red apples in the big basket and gave {n - 1} of them away." for n in range(2, 12)]
    other = [
        "A train leaves the town at noon. How far is it at two?",
        "Mia reads eight pages a day. When is the book done?",
        "Nine birds sit on a wire above the road, then four leave.",
    ]
    held = write(tmp_path / "held.jsonl", [{"question": same[0], "answer": "1"}])
    train = write(tmp_path / "train.jsonl", [{"question": q, "answer": "1"} for q in [*same[1:], *other]])
    config = {
        "source": {"kind": "jsonl", "paths": [train]},
        "heldout_source": {"kind": "jsonl", "paths": [held]},
        "train": 20,
        "heldout": 1,
    }
    assert len(draw(tmp_path, **config)["train"]) == 12
    assert sorted(row.question for row in draw(tmp_path, **config, max_overlap=0.5)["train"]) == sorted(other)


def test_overlap_is_a_share_of_the_shorter_question() -> None:
    overlap = Overlap(["one two three four five six 7 eight"])
    assert overlap.share("One two three four five six 99 eight.") == 1.0
    assert overlap.share("one two three four and then some") == pytest.approx(1 / 4)
    assert overlap.share("nothing of it stands here at all") == 0.0


def test_solved_examples_come_before_every_question_and_are_never_drawn(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} plus one?", "answer": str(n + 1)} for n in range(6)]
    shot = {"question": "what is 3 plus  one?", "answer": "<think> 3 + 1 = 4 </think> <answer> 4 </answer>"}
    source = {"kind": "jsonl", "paths": [write(tmp_path / "a.jsonl", rows)]}
    sets = draw(tmp_path, source=source, train=9, heldout=2, shots=[shot], system="Be brief.")
    drawn = [*sets["train"], *sets["heldout"]]
    assert "What is 3 plus one?" not in {row.question for row in drawn}
    assert len(drawn) == 5
    for row in drawn:
        roles = [(m["role"], m["content"]) for m in row.messages()]
        assert roles == [
            ("system", "Be brief."),
            ("user", shot["question"]),
            ("assistant", shot["answer"]),
            ("user", row.question),
        ]


def test_long_and_foreign_questions_are_left_out_where_the_source_says_so(tmp_path: Path) -> None:
    asked = [
        "Write a riddle about the sea.",
        "如何证明拉格朗日中值定理",
        "Schreibe bitte einen kurzen Brief an meine Nachbarin über den Garten.",
        "What does 如何 mean in English, and how is it said?",
        "Tell me" + " a very long story about the sea" * 20,
    ]
    path = write(tmp_path / "a.jsonl", [{"turns": [text, "And now?"]} for text in asked])
    source = {"kind": "jsonl", "paths": [path], "question": "turns.0", "task": "open"}

    def questions(**limits: Any) -> set[str]:
        sets = draw(tmp_path, source={**source, **limits}, train=9, heldout=1)
        return {row.question for rows in sets.values() for row in rows}

    assert questions() == set(asked)
    assert questions(max_characters=100) == {text for text in asked if len(text) <= 100}
    assert questions(max_characters=100, foreign="drop") == {asked[0], asked[3]}


@pytest.mark.parametrize("kind", ["word_problems", "open_tasks"])
def test_procedural_sources_keep_to_the_languages_that_are_asked_for(tmp_path: Path, kind: str) -> None:
    both = draw(tmp_path, source={"kind": kind}, train=60, heldout=20)
    one = draw(tmp_path, source={"kind": kind, "languages": ["en"]}, train=60, heldout=20)
    assert {row.language for row in both["train"]} == {"en", "zh"}
    assert {row.language for rows in one.values() for row in rows} == {"en"}
    english = [row for row in both["train"] if row.language == "en"]
    assert one["train"][: len(english)] == english


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "jsonl", "paths": ["absent.jsonl"]}, "cannot read absent.jsonl"),
        ({"kind": "reasoning_gym", "tasks": ["no_such_task"]}, "no_such_task"),
    ],
)
def test_a_source_that_cannot_be_read_says_which(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw(tmp_path, source=source, train=2, heldout=2)


def test_a_wrong_key_names_the_setting_and_the_keys_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"input": "What?", "target": 1}])
    with pytest.raises(DataError, match=r"no key 'question'; its keys are input, target") as caught:
        draw(tmp_path, source={"kind": "jsonl", "paths": [path]}, train=1, heldout=1)
    assert "source.question" in caught.value.hint


def test_reasoning_gym_gives_disjoint_sets(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    sets = draw(tmp_path, source={"kind": "reasoning_gym", "tasks": ["chain_sum"]}, train=40, heldout=20)
    questions = [row.question for row in [*sets["train"], *sets["heldout"]]]
    assert len(set(questions)) == 60


def test_multiarith_and_svamp_stay_apart(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("the folder of real data is not there")
    multiarith, svamp = SHARED / "mawps_multiarith.jsonl", SHARED / "svamp_test.jsonl.gz"
    mix = [
        {"kind": "jsonl", "paths": [str(multiarith)], "question": "input", "answer": "target"},
        {"kind": "jsonl", "paths": [str(svamp)], "question": "Body+Question", "answer": "Answer"},
    ]
    source = {"kind": "mix", "sources": mix, "duplicates": "drop"}
    sets = draw(tmp_path, source=source, train=2000, heldout=300, max_overlap=0.5)
    assert set(Counter(row.tags["source"] for row in sets["heldout"]).values()) == {150}
    assert len(sets["train"]) > 500
    overlap = Overlap(row.question for row in sets["heldout"])
    assert max(overlap.share(row.question) for row in sets["train"]) < 0.5


@pytest.mark.parametrize(
    ("file", "question", "rows"),
    [
        ("mt-bench/mt_bench_question.jsonl", "turns.0", 80),
        ("arena-hard-v2/question.jsonl.gz", "prompt", 740),
        ("ifeval/ifeval_input_data.jsonl.gz", "prompt", 540),
    ],
)
def test_real_open_prompts(tmp_path: Path, file: str, question: str, rows: int) -> None:
    if not (DATA / file).is_file():
        pytest.skip("the folder of real data is not there")
    source = {"kind": "jsonl", "paths": [str(DATA / file)], "question": question, "task": "open"}
    source["duplicates"] = "drop"
    sets = draw(tmp_path, source=source, train=2000, heldout=20)
    assert len(sets["heldout"]) == 20
    assert len(sets["train"]) >= rows - 20
    assert {row.task for row in sets["train"]} == {"open"}
    short = draw(tmp_path, source={**source, "max_characters": 160, "foreign": "drop"}, train=2000, heldout=9)
    assert 20 < len(short["train"]) < len(sets["train"])
    assert max(len(row.question) for row in short["train"]) <= 160
