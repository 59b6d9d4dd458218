"""The reward model: what it learns, what it is measured by, and how its scores are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import DataError, Interrupted, ModelError
from posttrain.data.preference_sources import PreferencesConfig, run_preferences
from posttrain.data.preferences import (
    PREFERENCES_FILE,
    PreferenceRow,
    check_preferences,
    is_tie,
    read_preferences,
)
from posttrain.data.prompts import normal_question
from posttrain.engines.reward_scorer import NOTHING_SAID, RewardModelRecord, RewardScorer
from posttrain.training.stages.reward_model import (
    RewardModelConfig,
    calibration,
    reward_model_report,
    run_reward_model,
)
from tests.training.conftest import Bench

DATA = Path(__file__).parents[3] / "shared" / "data" / "pandalm" / "testset-v1-even.json.gz"


def small(**changes: Any) -> RewardModelConfig:
    settings = {
        "aspects": ("harmless",),
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "save_every": 5,
    }
    return RewardModelConfig.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def pairs(shared_bench: Bench) -> Mapping[str, Artifact]:
    config = PreferencesConfig.model_validate(
        {"source": {"kind": "procedural", "aspect": "harmless"}, "train": 96, "heldout": 60, "ties": 40}
    )
    return shared_bench.run(run_preferences, config).outputs


def wired(base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {"model": base["model"], "preferences": pairs["train"], "heldout": pairs["heldout"]}


def rows_of(bench: Bench, artifact: Artifact) -> list[PreferenceRow]:
    return read_preferences(bench.store.view(artifact) / PREFERENCES_FILE)


@pytest.fixture(scope="module")
def trained(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]
) -> Mapping[str, Artifact]:
    return shared_bench.run(run_reward_model, small(), wired(tiny_base, pairs), work="rm-whole").outputs


def test_it_learns_the_planted_rule(shared_bench: Bench, trained: Mapping[str, Artifact]) -> None:
    report = json.loads(shared_bench.store.read_bytes(trained["report"], "reward_model_report.json"))
    assert report["pair_accuracy"]["n"] == 60
    assert report["pair_accuracy"]["low"] > 0.6
    assert report["length_bias"]["n"] == 40
    assert 0 <= report["calibration"]["expected_error"] < 0.5


def test_scores_are_standardised_on_the_held_out_replies(
    shared_bench: Bench, trained: Mapping[str, Artifact], pairs: Mapping[str, Artifact]
) -> None:
    scorer = RewardScorer.load(shared_bench.store.view(trained["model"]))
    rows = rows_of(shared_bench, pairs["heldout"])
    scores = scorer.score(
        [r.messages for r in rows] * 2, [r.chosen for r in rows] + [r.rejected for r in rows]
    )
    mean = sum(scores) / len(scores)
    assert mean == pytest.approx(0, abs=1e-3)
    assert sum((s - mean) ** 2 for s in scores) / len(scores) == pytest.approx(1, abs=1e-2)
    assert scorer.record.scored_part == "whole"
    assert scorer.record.calibration == pairs["heldout"].digest


def test_helpfulness_is_scored_on_the_final_part_only(
    shared_bench: Bench, trained: Mapping[str, Artifact]
) -> None:
    whole = RewardScorer.load(shared_bench.store.view(trained["model"]))
    final = RewardScorer(whole._model, whole._tokenizer, replace(whole.record, scored_part="final"))
    asked = [{"role": "user", "content": "What colour is grass?"}]
    replies = ["<think>Go away.</think>Grass is green.", "<think>The colour.</think>Grass is green."]
    one, two = final.score([asked, asked], replies)
    assert one == pytest.approx(two)
    rude, polite = whole.score([asked, asked], replies)
    assert rude != pytest.approx(polite)
    assert final.score([asked], ["<think>Grass is"]) == [NOTHING_SAID]
    begun, direct = (
        final.score([asked], ["a</think>Grass."], think_prefilled=True),
        final.score([asked], ["Grass."]),
    )
    assert begun == pytest.approx(direct)


def test_a_stopped_run_ends_the_same(
    shared_bench: Bench,
    tiny_base: Mapping[str, Artifact],
    pairs: Mapping[str, Artifact],
    trained: Mapping[str, Artifact],
) -> None:
    inputs = wired(tiny_base, pairs)
    context = shared_bench.context("run_reward_model", small(), inputs, work="rm-stopped")

    def stop_late(event: Any) -> None:
        context.stop.requested |= event.kind == "progress" and event.data["step"] >= 7

    with pytest.raises(Interrupted):
        run_reward_model(small(), inputs, replace(context, events=stop_late))
    resumed = shared_bench.run(run_reward_model, small(), inputs, work="rm-stopped").outputs
    assert {n: a.digest for n, a in resumed.items()} == {n: a.digest for n, a in trained.items()}


def test_adapters_are_merged_and_their_dropout_is_kept(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]
) -> None:
    made = [
        shared_bench.run(
            run_reward_model, small(epochs=1, lora={"rank": 4, "dropout": dropout}), wired(tiny_base, pairs)
        ).outputs["model"]
        for dropout in (0.0, 0.3)
    ]
    assert not any("adapter" in entry.path for artifact in made for entry in artifact.files)
    weights = [next(e.digest for e in a.files if e.path == "model.safetensors") for a in made]
    assert weights[0] != weights[1]


def test_what_is_refused(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], pairs: Mapping[str, Artifact]
) -> None:
    with pytest.raises(DataError, match="training pairs ask a held-out question"):
        shared_bench.run(
            run_reward_model, small(), {**wired(tiny_base, pairs), "preferences": pairs["heldout"]}
        )
    with pytest.raises(DataError, match="longer than 16 tokens"):
        shared_bench.run(run_reward_model, small(max_tokens=16), wired(tiny_base, pairs))
    with pytest.raises(DataError, match="the training preferences are empty"):
        shared_bench.run(run_reward_model, small(aspects=("helpful",)), wired(tiny_base, pairs))
    with pytest.raises(ModelError, match="is not a reward model"):
        RewardScorer.load(shared_bench.store.view(tiny_base["model"]))
    with pytest.raises(DataError, match="prefers a reply to itself"):
        check_preferences([PreferenceRow("a", ({"role": "user", "content": "x"},), "r", "r")], "these")


def row(number: int, chosen: str, rejected: str, tie: bool = False) -> PreferenceRow:
    asked = ({"role": "user", "content": f"q{number}"},)
    return PreferenceRow(f"p{number}", asked, chosen, rejected, tags={"tie": "yes"} if tie else {})


def test_the_report_shows_a_scorer_that_likes_length() -> None:
    rows = [row(n, "long reply", "short") for n in range(10)] + [
        row(n, "short", "long reply") for n in range(10)
    ]
    rows += [row(n, "long reply", "short", tie=True) for n in range(8)]
    scored = [(float(len(r.chosen)), float(len(r.rejected))) for r in rows]
    report = reward_model_report(rows, scored, RewardModelRecord("whole", ("helpful",), 0.0, 1.0, "sha256:0"))
    assert report["pair_accuracy"]["value"] == 0.5
    assert report["longer_preferred"]["value"] == 1.0
    assert report["shorter_preferred"]["value"] == 0.0
    assert report["length_bias"]["value"] == 1.0
    assert report["length_bias"]["low"] == pytest.approx(0.6306, abs=1e-4)  # Clopper-Pearson of 8 in 8


def test_calibration_of_known_predictions() -> None:
    import math

    sure = calibration([50.0] * 20)
    assert sure == {"expected_error": pytest.approx(0, abs=1e-12), "brier": pytest.approx(0, abs=1e-12)}
    three_in_four = [math.log(3)] * 75 + [-math.log(3)] * 25
    found = calibration(three_in_four)
    assert found["expected_error"] == pytest.approx(0, abs=1e-9)
    assert found["brier"] == pytest.approx(0.1875)
    assert calibration([-50.0] * 20)["brier"] == pytest.approx(1)


def test_pairs_from_a_file(tmp_path: Path, shared_bench: Bench) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [{"q": f"question {n % 5}", "good": f"g{n}", "bad": f"b{n}"} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"kind": "jsonl", "paths": [str(path)], "prompt": "q", "chosen": "good", "rejected": "bad"}
    config = PreferencesConfig.model_validate({"source": source, "train": 50, "heldout": 6})
    made = shared_bench.run(run_preferences, config).outputs
    sides = [
        {normal_question(r.messages[-1]["content"]) for r in rows_of(shared_bench, made[s])} for s in made
    ]
    assert not sides[0] & sides[1]
    bad = PreferencesConfig.model_validate({"source": {**source, "chosen": "best"}, "train": 5, "heldout": 2})
    with pytest.raises(DataError, match="no text under 'best'"):
        shared_bench.run(run_preferences, bad)


def test_pairs_in_one_language(bench: Bench) -> None:
    source = {"kind": "procedural", "languages": ["en"]}
    config = PreferencesConfig.model_validate({"source": source, "train": 20, "heldout": 20, "ties": 5})
    for artifact in bench.run(run_preferences, config).outputs.values():
        assert {row.language for row in rows_of(bench, artifact)} == {"en"}


@pytest.mark.skipif(not DATA.exists(), reason="the PandaLM data are not here")
def test_pandalm(shared_bench: Bench) -> None:
    config = PreferencesConfig.model_validate(
        {"source": {"kind": "pandalm", "path": str(DATA)}, "train": 500, "heldout": 100}
    )
    made = shared_bench.run(run_preferences, config).outputs
    train, heldout = (rows_of(shared_bench, made[side]) for side in ("train", "heldout"))
    assert len(train) > 250
    assert sum(is_tie(r) for r in heldout) > 20
    assert not any(is_tie(r) for r in train)
    held = {r.messages[-1]["content"] for r in heldout}
    assert not held & {r.messages[-1]["content"] for r in train}
