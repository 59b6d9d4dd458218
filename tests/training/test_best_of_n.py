"""Best of n by a reward model: the highest score is kept, and a judge that fails rejects nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import ConfigError, ModelError
from posttrain.data.examples import EXAMPLES_FILE, ExampleRow, read_examples
from posttrain.data.preference_sources import PreferencesConfig, run_preferences
from posttrain.data.prompts import PROMPTS_FILE, read_prompts
from posttrain.engines.judges import RewardModelJudge
from posttrain.engines.judging import JudgeRequest
from posttrain.engines.reward_scorer import NOTHING_SAID, RewardScorer
from posttrain.training.rejection_rules import Candidate
from posttrain.training.stages.best_of_n import BestOfNConfig, run_best_of_n
from posttrain.training.stages.rejection_sample import REJECTED_FILE, RejectionSampleConfig, choose
from posttrain.training.stages.reward_model import RewardModelConfig, run_reward_model
from tests.training.conftest import Bench

SAMPLES = 6
ASKED = ({"role": "user", "content": "What colour is grass?"},)


def best_of(**changes: Any) -> BestOfNConfig:
    return BestOfNConfig.model_validate({"samples": SAMPLES, "max_completion_tokens": 24, **changes})


@pytest.fixture(scope="module")
def reward_model(shared_bench: Bench, tiny_base: Mapping[str, Artifact]) -> Artifact:
    source = {"source": {"kind": "procedural", "aspect": "harmless"}, "train": 96, "heldout": 60}
    pairs = shared_bench.run(run_preferences, PreferencesConfig.model_validate(source)).outputs
    config = RewardModelConfig.model_validate({"aspects": ("harmless",), "epochs": 1, "learning_rate": 2e-3})
    inputs = {"model": tiny_base["model"], "preferences": pairs["train"], "heldout": pairs["heldout"]}
    return shared_bench.run(run_reward_model, config, inputs).outputs["model"]


def wired(base: Mapping[str, Artifact], reward_model: Artifact) -> dict[str, Artifact]:
    return {"model": base["model"], "prompts": base["train"], "reward_model": reward_model}


def changed(bench: Bench, artifact: Artifact, change: Any) -> Artifact:
    """A copy of a model artifact after ``change`` of its folder."""
    with bench.store.writer("model") as writer:
        for path in bench.store.view(artifact).iterdir():
            writer.path(path.name).write_bytes(path.read_bytes())
        change(writer.directory)
        return writer.commit()


def kept_and_rejected(
    bench: Bench, outputs: Mapping[str, Artifact]
) -> tuple[list[ExampleRow], list[dict[str, Any]]]:
    rows = read_examples(bench.store.view(outputs["examples"]) / EXAMPLES_FILE)
    lines = bench.store.read_bytes(outputs["rejected"], REJECTED_FILE).splitlines()
    return rows, [json.loads(line) for line in lines]


def test_the_best_by_the_reward_model_is_kept_of_every_prompt(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], reward_model: Artifact
) -> None:
    done = shared_bench.run(run_best_of_n, best_of(), wired(tiny_base, reward_model))
    kept, rejected = kept_and_rejected(shared_bench, done.outputs)
    prompts = {
        row.id: row for row in read_prompts(shared_bench.store.view(tiny_base["train"]) / PROMPTS_FILE)
    }
    assert len(kept) == len(prompts)
    assert len(kept) + len(rejected) == SAMPLES * len(prompts)
    # Scored once more, one by one and by itself.
    scorer = RewardScorer.load(shared_bench.store.view(reward_model))
    best = {row.id.rsplit("-", 1)[0]: scorer.score([row.messages], [row.response])[0] for row in kept}
    others = [
        (row["prompt"], scorer.score([prompts[row["prompt"]].messages()], [row["text"]])[0])
        for row in rejected
        if not row["reason"].startswith("empty")
    ]
    assert all(value <= best[prompt] + 1e-3 for prompt, value in others)
    everything = [*best.values(), *(value for _, value in others)]
    assert sum(best.values()) / len(best) > sum(everything) / len(everything) + 0.1
    assert {row["reason"].split(":")[0] for row in rejected} <= {"not the best", "duplicate", "empty"}
    assert done.summary["judge_failures"] == 0
    card = shared_bench.store.read_bytes(done.outputs["examples"], "README.md").decode()
    assert card.startswith("# Examples: best of n\n")


def test_a_floor_is_in_standard_deviations(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], reward_model: Artifact
) -> None:
    floor = -0.2
    done = shared_bench.run(run_best_of_n, best_of(min_judgement=floor), wired(tiny_base, reward_model))
    kept, rejected = kept_and_rejected(shared_bench, done.outputs)
    low = [row["judgement"] for row in rejected if row["reason"] == "judged low"]
    passed = [row["judgement"] for row in rejected if row["reason"].startswith(("not the best", "duplicate"))]
    assert low
    assert max(low) < floor <= min(passed)
    scorer = RewardScorer.load(shared_bench.store.view(reward_model))
    scores = scorer.score([row.messages for row in kept], [row.response for row in kept])
    assert min(scores) >= floor - 1e-3


def test_a_reward_model_without_scores_rejects_nothing(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], reward_model: Artifact
) -> None:
    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["score.weight"] *= float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    spoilt = changed(shared_bench, reward_model, spoil)
    done = shared_bench.run(run_best_of_n, best_of(min_judgement=2.0), wired(tiny_base, spoilt))
    kept, rejected = kept_and_rejected(shared_bench, done.outputs)
    assert len(kept) == 24
    assert not [row for row in rejected if row["reason"] == "judged low"]
    assert all(row.tags["judged"] == "failed" for row in kept)
    empty = sum(row["reason"].startswith("empty") for row in rejected)
    assert done.summary["judge_failures"] == SAMPLES * 24 - empty
    assert {row["judge_note"] for row in rejected if row["judge_note"]} == {"judge failed: the score is nan"}


def test_what_is_too_long_has_no_score(shared_bench: Bench, reward_model: Artifact) -> None:
    def shorten(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 60}))

    short = RewardScorer.load(shared_bench.store.view(changed(shared_bench, reward_model, shorten)))
    whole = RewardScorer.load(shared_bench.store.view(reward_model))
    replies = ["Green.", "Green, " * 40, "", "It is green."]
    requests = [JudgeRequest(str(n), ASKED, reply) for n, reply in enumerate(replies)]
    found = RewardModelJudge(short).judge(requests)
    expected = whole.score([ASKED] * 4, replies)
    assert found[1].value is None
    assert "longer than the reward model's positions" in found[1].reason
    assert [found[n].value for n in (0, 2, 3)] == pytest.approx([expected[n] for n in (0, 2, 3)], abs=1e-4)
    assert found[2].value == NOTHING_SAID


def judged(sample: int, value: float | None) -> Candidate:
    note = "judge failed: down" if value is None else ""
    return Candidate("p", sample, f"reply {sample}", 5, truncated=False, judgement=value, judge_note=note)


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ([1.0, 2.0, 2.0, -1.0], [1, 2, 0, 3]),  # equal scores by sample
        ([-2.0, None, -1.0, -3.0], [2, 0, 1, 3]),  # below 0, too, a failure is in the middle and no winner
        ([None, 5.0, 9.0], [2, 0, 1]),
        ([None, None], [0, 1]),
    ],
)
def test_order(values: list[float | None], order: list[int]) -> None:
    group = [judged(sample, value) for sample, value in enumerate(values)]
    kept, rejected = choose(RejectionSampleConfig(keep=len(group)), group)
    assert [candidate.sample for candidate in kept] == order
    assert not rejected


def test_what_is_refused(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], reward_model: Artifact
) -> None:
    inputs = wired(tiny_base, reward_model)
    with pytest.raises(ConfigError, match="needs the input `reward_model`"):
        shared_bench.run(
            run_best_of_n, best_of(), {name: inputs[name] for name in ("model", "prompts")}, work="missing"
        )
    with pytest.raises(ModelError, match="is not a reward model"):
        shared_bench.run(
            run_best_of_n, best_of(), {**inputs, "reward_model": tiny_base["model"]}, work="no-scorer"
        )
    for changes in ({"min_judgement": -1}, {"min_judgement": 1.5, "judge": {"kind": "model"}}):
        with pytest.raises(ValueError, match=r"outside 0 to 1.*change `min_judgement`"):
            RejectionSampleConfig.model_validate(changes)
    assert best_of(min_judgement=-1).min_judgement == -1
