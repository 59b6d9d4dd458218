"""Rejection sampling: which completions become examples, why the others do not, and that nothing is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import ConfigError, Interrupted, StageError
from posttrain.data.examples import EXAMPLES_FILE, read_examples
from posttrain.data.prompt_sources import PromptsConfig, run_prompts
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, read_prompts
from posttrain.training.rejection_rules import Candidate, Rules, broken_rule, copied_shot, target_of
from posttrain.training.stages.rejection_sample import (
    REJECTED_FILE,
    RejectionSampleConfig,
    choose,
    run_rejection_sample,
)
from tests.engines.test_endpoint_judges import Server
from tests.training.conftest import Bench

THOUGHT = """There are not many written records, but Moby Dick could serve as some
inspiration. It was written before the Civil War, so...
..."""
WHALE = f"<think>{THOUGHT}</think>\nHere is a story about captain Ahab..."
SUM = PromptRow("s", "Alice has 3 apples and buys 2 more. How many now?", "5")
STORY = PromptRow("w", "Write a story about 1800s whale hunting", "", task="open")
HELLO = PromptRow("h", "Hello!", "", task="simple")
GOOD = {"accuracy": 1.0, "format": 1.0, "language": 1.0, "repetition": 0.0}


def candidate(text: str, parts: Mapping[str, float | None] = GOOD, **more: Any) -> Candidate:
    return Candidate("s", 0, text, 9, truncated=False, parts=parts, **more)


def test_the_whale_story_of_the_seed_keeps_its_final_part() -> None:
    assert target_of(WHALE, "final") == "Here is a story about captain Ahab..."
    assert broken_rule(Rules(), STORY, candidate(WHALE), "final") == ""


def test_the_greeting_of_the_seed_is_answered_directly() -> None:
    assert broken_rule(Rules(), HELLO, candidate("Hi! Happy to be of assistance."), "final") == ""
    thought = candidate("<think>A greeting.</think>Hi! Happy to be of assistance.")
    assert broken_rule(Rules(), HELLO, thought, "final").startswith("thinking:")


@pytest.mark.parametrize(
    ("text", "parts", "rule"),
    [
        ("<think>3+2=5</think><answer>6</answer>", {"accuracy": 0.0}, "accuracy"),
        ("<think>3+2=5<answer>5</answer>", {"format": 0.0}, "format"),
        ("<think>加3+2=5 with words</think><answer>5</answer>", {"language": 0.3}, "language"),
        ("<think>Add. Add. Add.</think><answer>5</answer>", {"repetition": -0.6}, "repetition"),
        ("<think>```python\n3+2\n```</think><answer>5</answer>", {}, "code block"),
        ("<think>3+2</think><answer>5</answer>", {"accuracy": None}, "unscored"),
    ],
)
def test_each_rule_says_why(text: str, parts: Mapping[str, float | None], rule: str) -> None:
    assert broken_rule(Rules(), SUM, candidate(text, GOOD | parts), "whole").split(":")[0] == rule
    assert broken_rule(Rules(), SUM, candidate(text, GOOD), "whole") == "" or rule == "code block"


def test_length_and_emptiness() -> None:
    cut = replace(candidate("<think>and so on"), truncated=True)
    assert broken_rule(Rules(), SUM, cut, "whole") == "length: 9 tokens, cut off"
    assert broken_rule(Rules(max_tokens=8), SUM, candidate("x"), "whole") == "length: 9 tokens"
    assert broken_rule(Rules(), STORY, candidate("<think>never closed"), "final").startswith("empty")
    with pytest.raises(ValueError, match="no verifier of the rules"):
        Rules(minimum={"acuracy": 1.0})


def test_the_best_is_kept_and_a_failed_judgement_ranks_in_the_middle() -> None:
    def judged(sample: int, text: str, value: float | None, note: str = "") -> Candidate:
        return Candidate("p", sample, text, 5, truncated=False, judgement=value, judge_note=note)

    group = [
        judged(0, "a", 0.2),
        judged(1, "b", None, "judge failed"),
        judged(2, "c", 0.9),
        judged(3, "c", 0.8),
    ]
    kept, rejected = choose(RejectionSampleConfig(keep=2), group)
    assert [c.text for c in kept] == ["c", "b"]
    assert Counter(c.reason.split(":")[0] for c in rejected) == {"duplicate": 1, "not the best": 1}
    only, _ = choose(RejectionSampleConfig(), [judged(0, "a", None, "judge failed: HTTP 500")])
    assert [c.text for c in only] == ["a"]


def small(**changes: Any) -> RejectionSampleConfig:
    settings = {"samples": 4, "max_completion_tokens": 24, "shard_prompts": 8}
    return RejectionSampleConfig.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def prompts(shared_bench: Bench) -> Artifact:
    source = {"kind": "word_problems", "max_steps": 1, "max_value": 10}
    config = PromptsConfig.model_validate({"source": source, "train": 40, "heldout": 4})
    return shared_bench.run(run_prompts, config).outputs["train"]


LOOSE = {"minimum": {"format": 1.0}}
"""The tiny base of the tests knows the form, not the sums."""


def test_sampling_in_shards_resumes_where_it_was(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], prompts: Artifact
) -> None:
    inputs = {"model": tiny_base["model"], "prompts": prompts}
    config = small(rules=LOOSE)
    whole = shared_bench.run(run_rejection_sample, config, inputs, work="rs-whole")
    store = shared_bench.store
    rows = read_examples(store.view(whole.outputs["examples"]) / EXAMPLES_FILE)
    rejected = [
        json.loads(line) for line in store.read_bytes(whole.outputs["rejected"], REJECTED_FILE).splitlines()
    ]
    asked = read_prompts(store.view(prompts) / PROMPTS_FILE)
    assert len(rows) + len(rejected) == 4 * len(asked)
    assert all(row["reason"] for row in rejected)
    assert all("</think>" in row.response for row in rows)
    assert max(Counter(row.id.rsplit("-", 1)[0] for row in rows).values()) == 1
    card = store.read_bytes(whole.outputs["examples"], "README.md").decode()
    assert f"from {4 * len(asked)} completions" in card

    context = shared_bench.context("run_rejection_sample", config, inputs, work="rs-stopped")

    def stop_late(event: Any) -> None:
        context.stop.requested |= event.kind == "progress" and event.data["step"] >= 2

    with pytest.raises(Interrupted):
        run_rejection_sample(config, inputs, replace(context, events=stop_late))
    assert len(list(context.workdir.glob("shard-*.json"))) == 2
    again = shared_bench.run(run_rejection_sample, config, inputs, work="rs-stopped")
    assert {n: a.digest for n, a in again.outputs.items()} == {n: a.digest for n, a in whole.outputs.items()}


def test_open_prompts_think_first_and_simple_ones_do_not(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact]
) -> None:
    config = PromptsConfig.model_validate({"source": {"kind": "open_tasks"}, "train": 24, "heldout": 8})
    prompts = shared_bench.run(run_prompts, config).outputs["train"]
    rules = {"minimum": {}}
    config = small(rules=rules, think_first=True, target="final", judge={"kind": "model"})
    with pytest.raises(ConfigError, match="judge_model"):
        shared_bench.run(run_rejection_sample, config, {"model": tiny_base["model"], "prompts": prompts})
    inputs = {"model": tiny_base["model"], "prompts": prompts, "judge_model": tiny_base["model"]}
    done = shared_bench.run(run_rejection_sample, config, inputs)
    rows = read_examples(shared_bench.store.view(done.outputs["examples"]) / EXAMPLES_FILE)
    assert rows
    assert {row.task for row in rows} <= {"open", "simple"}
    assert [row.response for row in rows if "think>" in row.response] == []


def test_thinking_is_shown_to_the_sampler_and_left_out_of_the_example(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact]
) -> None:
    source = {"kind": "open_tasks", "kinds": ["fact", "small_talk"]}
    prompts = shared_bench.run(
        run_prompts, PromptsConfig.model_validate({"source": source, "train": 24, "heldout": 4})
    ).outputs["train"]
    inputs = {"model": tiny_base["model"], "prompts": prompts}
    shots = [{"question": "Why?", "answer": "<think>A reason.</think>Because it is so."}]

    def sampled(**changes: Any) -> tuple[dict[str, list[str]], list[Any]]:
        config = small(rules={"minimum": {}}, think_first=True, target="final", max_prompts=12, **changes)
        done = shared_bench.run(run_rejection_sample, config, inputs)
        kept = read_examples(shared_bench.store.view(done.outputs["examples"]) / EXAMPLES_FILE)
        lines = shared_bench.store.read_bytes(done.outputs["rejected"], REJECTED_FILE).splitlines()
        texts: dict[str, list[str]] = {}
        for row in map(json.loads, lines):
            texts.setdefault(row["prompt"], []).append(row["text"])
        assert done.summary["sampled"] == 4 * 12
        return texts, kept

    shown, kept = sampled(think_shots=shots)
    plain, _ = sampled()
    rows = read_prompts(shared_bench.store.view(prompts) / PROMPTS_FILE)[:12]
    assert all(len(example.messages) == 1 for example in kept)
    for task in ("open", "simple"):
        ids = [row.id for row in rows if row.task == task]
        assert ids
        assert ([shown.get(i) for i in ids] == [plain.get(i) for i in ids]) == (task == "simple")
    with pytest.raises(ValueError, match="think_first"):
        small(think_shots=shots)


def test_the_reply_of_a_shown_example_is_not_the_models_own() -> None:
    shots = ["<think> One sentence. </think> In the evening the sea turns to gold.", "Grass is green."]
    assert copied_shot("<think> A riddle. </think>\nin the evening  the sea turns to gold.", shots)
    assert copied_shot("Well: grass is green.", shots)
    assert not copied_shot("<think> Grass is green. </think> A leaf is, too.", shots)
    assert not copied_shot("Anything.", [])


def test_without_rules_an_empty_reply_is_still_no_example(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact]
) -> None:
    source = PromptsConfig.model_validate({"source": {"kind": "open_tasks"}, "train": 24, "heldout": 8})
    prompts = shared_bench.run(run_prompts, source).outputs["train"]
    config = small(rules=None, think_first=True, target="final", max_completion_tokens=6)
    done = shared_bench.run(run_rejection_sample, config, {"model": tiny_base["model"], "prompts": prompts})
    assert done.summary["rejected"]["empty"] > 0
    rows = read_examples(shared_bench.store.view(done.outputs["examples"]) / EXAMPLES_FILE)
    assert len(rows) + sum(done.summary["rejected"].values()) == done.summary["sampled"]


@pytest.fixture
def flaky() -> Iterator[Server]:
    """A judge that breaks down after some answers: 500, garbage, silence."""
    count = iter(range(10**6))

    def script(_: str) -> list[Any]:
        number = next(count)
        return [["Yes"], ["No"], [500], ["GARBAGE"], [2.5], ["maybe", "who knows"]][number % 6]  # type: ignore[list-item]

    server = Server(script)
    yield server
    server.close()


def test_a_judge_that_breaks_down_rejects_nothing(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], prompts: Artifact, flaky: Server
) -> None:
    endpoint = {
        "base_url": flaky.url,
        "model": "m",
        "timeout_seconds": 1.0,
        "max_attempts": 1,
        "concurrency": 8,
    }
    config = small(rules=LOOSE, judge={"kind": "endpoint", "endpoint": endpoint}, min_judgement=0.5, keep=4)
    inputs = {"model": tiny_base["model"], "prompts": prompts}
    done = shared_bench.run(run_rejection_sample, config, inputs)
    store = shared_bench.store
    rejected = [
        json.loads(line) for line in store.read_bytes(done.outputs["rejected"], REJECTED_FILE).splitlines()
    ]
    low = [row for row in rejected if row["reason"] == "judged low"]
    assert low
    assert all(row["judgement"] == 0.0 for row in low)
    assert done.summary["judge_failures"] > 0
    rows = read_examples(store.view(done.outputs["examples"]) / EXAMPLES_FILE)
    assert sum(row.tags.get("judged") == "failed" for row in rows) > 0
    assert len(rows) + len(rejected) == done.summary["sampled"]


def test_nothing_kept_is_an_error_that_says_why(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], prompts: Artifact
) -> None:
    config = small(rules={"minimum": {"accuracy": 1.0}, "max_tokens": 1}, samples=1)
    with pytest.raises(StageError, match=r"none of 40 completions was kept; reasons: \{'length': 40\}"):
        shared_bench.run(run_rejection_sample, config, {"model": tiny_base["model"], "prompts": prompts})
