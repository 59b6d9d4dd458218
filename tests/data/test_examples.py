"""Demonstrations and mixtures: what is written, what is refused, what the cards say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import ConfigError, DataError
from posttrain.data.cold_start import ColdStartConfig, demonstrate, run_cold_start
from posttrain.data.examples import (
    EXAMPLES_FILE,
    ExampleRow,
    check_examples,
    examples_to_jsonl,
    read_examples,
)
from posttrain.data.mix_examples import MixExamplesConfig, run_mix_examples
from posttrain.data.prompt_sources import PromptsConfig, run_prompts
from posttrain.data.word_problems import Step, WordProblem
from posttrain.rewards import Sample, build_reward
from posttrain.rewards.config import R1_ZERO_REWARDS
from tests.training.conftest import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def rows_of(bench: Bench, artifact: Artifact) -> list[ExampleRow]:
    return read_examples(bench.store.view(artifact) / EXAMPLES_FILE)


def test_the_apples_of_the_seed() -> None:
    """Alice has 3 apples and buys 2 more: an explicit chain, then the answer alone."""
    problem = WordProblem("Alice has 3 apples and buys 2 more. How many now?", "en", (Step(3, "+", 2),))
    text = demonstrate(problem)
    assert text == "<think>Start with 3. Add 3+2=5. The answer is 5.</think><answer>5</answer>"
    assert build_reward(R1_ZERO_REWARDS).score(Sample(text, "5")).parts == {"accuracy": 1.0, "format": 1.0}


def test_demonstrations_are_right_formed_and_apart_from_the_held_out_set(bench: Bench) -> None:
    prompts = bench.run(run_prompts, PromptsConfig(train=32, heldout=64))
    made = bench.run(run_cold_start, ColdStartConfig(count=200), {"heldout": prompts.outputs["heldout"]})
    rows = rows_of(bench, made.outputs["examples"])
    assert len(rows) == len({row.id for row in rows}) == 200
    assert {row.language for row in rows} == {"en", "zh"}
    reward = build_reward(R1_ZERO_REWARDS)
    for row in rows:
        answer = row.response.split("<answer>")[1].split("<")[0]
        assert reward.score(Sample(row.response, answer)).value == pytest.approx(1.1)
    held = {json.loads(line)["question"] for line in bench.store.read_bytes(
        prompts.outputs["heldout"], "prompts.jsonl").splitlines()}  # fmt: skip
    assert not held & {row.messages[-1]["content"] for row in rows}


def test_worked_answers_become_demonstrations(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "worked.jsonl"
    row = {"question": "Two boxes of 24?", "answer": "2*24 = <<2*24=48>>48 in all.\n#### 1,048"}
    path.write_text(json.dumps(row) + "\n")
    config = ColdStartConfig.model_validate({"source": {"kind": "worked", "paths": [str(path)]}})
    (example,) = rows_of(bench, bench.run(run_cold_start, config).outputs["examples"])
    assert example.response == "<think>\n2*24 = 48 in all.\n</think>\n<answer> 1048 </answer>"
    path.write_text(json.dumps({"question": "Two?", "answer": "2"}) + "\n")
    with pytest.raises(DataError, match="no worked answer"):
        bench.run(run_cold_start, config.model_copy(update={"seed": 1}))


def test_long_worked_answers_are_left_out_where_the_source_says_so(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "worked.jsonl"
    answers = ["2*24 = <<2*24=48>>48\n#### 48", "One box has 24, and the other one has 24, too.\n#### 48"]
    path.write_text("".join(json.dumps({"q": f"{n}?", "a": text}) + "\n" for n, text in enumerate(answers)))
    source = {"kind": "worked", "paths": [str(path)], "question": "q", "answer": "a", "max_characters": 12}
    config = ColdStartConfig.model_validate({"source": source})
    (row,) = rows_of(bench, bench.run(run_cold_start, config).outputs["examples"])
    assert row.response == "<think>\n2*24 = 48\n</think>\n<answer> 48 </answer>"


def test_demonstrations_in_one_language(bench: Bench) -> None:
    source = {"kind": "word_problems", "languages": ["zh"]}
    made = bench.run(run_cold_start, ColdStartConfig.model_validate({"source": source, "count": 20}))
    assert {row.language for row in rows_of(bench, made.outputs["examples"])} == {"zh"}


def example(number: int, task: str = "reasoning") -> ExampleRow:
    return ExampleRow(f"e{number}", ({"role": "user", "content": f"q{number}"},), f"r{number}", task)


def stored(bench: Bench, name: str, rows: list[ExampleRow]) -> Artifact:
    with bench.store.writer("dataset", meta={"name": name}) as writer:
        writer.add_bytes(EXAMPLES_FILE, examples_to_jsonl(rows))
        return writer.commit()


def test_a_mix_keeps_its_ratio_and_counts_what_is_left(bench: Bench) -> None:
    sets = {
        "sets.reasoning": stored(bench, "a", [example(n) for n in range(90)]),
        "sets.open": stored(bench, "b", [example(n, "open") for n in range(20)]),
    }
    made = bench.run(run_mix_examples, MixExamplesConfig(ratio={"reasoning": 3, "open": 1}), sets)
    rows = rows_of(bench, made.outputs["examples"])
    assert [sum(row.task == task for row in rows) for task in ("reasoning", "open")] == [60, 20]
    assert made.summary["reasoning"] == {"taken": 60, "left": 30}
    assert len({row.id for row in rows}) == 80
    assert "left" in bench.store.read_bytes(made.outputs["examples"], "README.md").decode()
    small = bench.run(
        run_mix_examples, MixExamplesConfig(ratio={"reasoning": 3, "open": 1}, max_rows=8), sets
    )
    assert [r.task for r in rows_of(bench, small.outputs["examples"])].count("open") == 2


def test_a_ratio_for_a_set_that_is_not_there(bench: Bench) -> None:
    sets = {"sets.reasoning": stored(bench, "a", [example(1)])}
    with pytest.raises(ConfigError, match="'reasonin'") as failure:
        bench.run(run_mix_examples, MixExamplesConfig(ratio={"reasonin": 1}), sets)
    assert "reasoning" in str(failure.value.hint)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "empty"),
        ([example(1), example(1)], "appears twice"),
        ([ExampleRow("a", ({"role": "assistant", "content": "x"},), "r")], "user's turn"),
        ([ExampleRow("a", ({"role": "user", "content": "x"},), " ")], "empty response"),
    ],
)
def test_bad_examples_are_refused(rows: list[ExampleRow], text: str) -> None:
    with pytest.raises(DataError, match=text):
        check_examples(rows, "these")
