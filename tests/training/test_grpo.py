"""The GRPO stage on a tiny model: what it leaves, exact resume, LoRA, KL, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import DataError, HealthError, Interrupted, PreflightError
from posttrain.core.events import Event
from posttrain.training.stages.grpo import GrpoConfig, run_grpo
from tests.training.conftest import Bench

SMALL: dict[str, Any] = {
    "steps": 4,
    "prompts_per_step": 2,
    "completions": 4,
    "max_completion_tokens": 24,
    "save_every": 2,
    "preflight": {"prompts": 4, "samples": 2, "max_dead_share": 1.0},
}


def grpo(**changes: Any) -> GrpoConfig:
    return GrpoConfig.model_validate({**SMALL, **changes})


def inputs(base: dict[str, Artifact]) -> dict[str, Artifact]:
    return {"model": base["model"], "prompts": base["train"], "heldout": base["heldout"]}


@pytest.fixture(scope="module")
def trained(shared_bench: Bench, tiny_base: dict[str, Artifact]) -> dict[str, Artifact]:
    return dict(shared_bench.run(run_grpo, grpo(), inputs(tiny_base), work="trained").outputs)


def test_every_step_and_completion_is_recorded(shared_bench: Bench, trained: dict[str, Artifact]) -> None:
    import pyarrow.parquet

    metrics = pyarrow.parquet.read_table(shared_bench.store.file(trained["metrics"], "metrics.parquet"))
    assert metrics["step"].to_pylist() == [1, 2, 3, 4]
    assert {"reward", "rewards/accuracy/mean", "rewards/format/mean", "entropy"} <= set(metrics.column_names)
    assert not [name for name in metrics.column_names if "time" in name]
    samples = pyarrow.parquet.read_table(shared_bench.store.file(trained["samples"], "samples.parquet"))
    assert samples.num_rows == 4 * 8
    assert {"step", "prompt", "completion", "accuracy", "format", "advantage"} <= set(samples.column_names)
    assert {entry.path for entry in trained["figures"].files} >= {"reward.svg", "completions-mean-length.svg"}


def test_training_changed_the_weights(trained: dict[str, Artifact], tiny_base: dict[str, Artifact]) -> None:
    def weights(artifact: Artifact) -> str:
        return next(entry.digest for entry in artifact.files if entry.path == "model.safetensors")

    assert weights(trained["model"]) != weights(tiny_base["model"])


def test_a_stopped_run_resumes_to_the_same_bytes(
    shared_bench: Bench, tiny_base: dict[str, Artifact], trained: dict[str, Artifact]
) -> None:
    context = shared_bench.context("run_grpo", grpo(), inputs(tiny_base), work="stopped")
    seen: list[Event] = []

    def stop_at_three(event: Event) -> None:
        seen.append(event)
        if event.kind == "progress" and event.data["step"] == 3:
            context.stop.requested = True

    object.__setattr__(context, "events", stop_at_three)
    with pytest.raises(Interrupted):
        run_grpo(grpo(), inputs(tiny_base), context)
    context.stop.requested = False
    object.__setattr__(context, "events", seen.append)
    resumed = run_grpo(grpo(), inputs(tiny_base), context).outputs
    assert [e.data["from_step"] for e in seen if e.kind == "stage_resumed"] == [2]
    assert {n: a.files for n, a in resumed.items()} == {n: a.files for n, a in trained.items()}


def test_a_half_written_checkpoint_is_not_resumed(
    shared_bench: Bench, tiny_base: dict[str, Artifact], trained: dict[str, Artifact]
) -> None:
    context = shared_bench.context("run_grpo", grpo(), inputs(tiny_base), work="torn")
    torn = context.workdir / "trainer" / "checkpoint-2"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"half of a")
    outputs = run_grpo(grpo(), inputs(tiny_base), context).outputs
    assert outputs["model"].files == trained["model"].files


def test_lora_is_merged_into_a_plain_model(shared_bench: Bench, tiny_base: dict[str, Artifact]) -> None:
    from posttrain.engines.model_folder import load_model

    config = grpo(steps=2, lora={"rank": 4, "alpha": 8}, learning_rate=5e-3)
    result = shared_bench.run(run_grpo, config, inputs(tiny_base))
    names = {entry.path for entry in result.outputs["model"].files}
    assert "model.safetensors" in names
    assert not any("adapter" in name for name in names)
    merged = load_model(shared_bench.store.view(result.outputs["model"])).state_dict()
    base = load_model(shared_bench.store.view(tiny_base["model"])).state_dict()
    assert merged.keys() == base.keys()
    assert any(not merged[name].equal(base[name]) for name in base)


def test_kl_is_measured_where_beta_is_above_zero(shared_bench: Bench, tiny_base: dict[str, Artifact]) -> None:
    import pyarrow.parquet

    result = shared_bench.run(run_grpo, grpo(steps=2, beta=0.05), inputs(tiny_base))
    table = pyarrow.parquet.read_table(shared_bench.store.file(result.outputs["metrics"], "metrics.parquet"))
    assert all(value is not None for value in table["kl"].to_pylist())


def test_a_health_limit_stops_the_stage_and_says_why(
    shared_bench: Bench, tiny_base: dict[str, Artifact]
) -> None:
    strict = {"window": 1, "min_entropy": {"value": 99.0, "action": "stop"}}
    with pytest.raises(HealthError, match="min_entropy") as caught:
        shared_bench.run(run_grpo, grpo(health=strict), inputs(tiny_base))
    assert "learning_rate" in str(caught.value.hint)


def test_prompts_that_teach_nothing_are_refused(shared_bench: Bench, tiny_base: dict[str, Artifact]) -> None:
    from posttrain.data.prompts import PromptRow, to_jsonl

    impossible = [PromptRow(str(i), f"What is {i} bananas of time?", "987654321") for i in range(4)]
    with shared_bench.store.writer("dataset", meta={"format": "prompts"}) as writer:
        writer.add_bytes("prompts.jsonl", to_jsonl(impossible))
        prompts = writer.commit()
    config = grpo(preflight={"prompts": 4, "samples": 2})
    with pytest.raises(PreflightError, match="4 of 4 prompts are all-pass or all-fail"):
        shared_bench.run(run_grpo, config, {"model": tiny_base["model"], "prompts": prompts})


def test_prompts_that_overlap_the_heldout_set_are_refused(
    shared_bench: Bench, tiny_base: dict[str, Artifact]
) -> None:
    overlapping = {"model": tiny_base["model"], "prompts": tiny_base["train"], "heldout": tiny_base["train"]}
    with pytest.raises(DataError, match="24 held-out prompts are also training prompts"):
        shared_bench.run(run_grpo, grpo(), overlapping)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"micro_batch": 3}, "micro_batch"),
        ({"reuse": 2, "save_every": 3, "steps": 6}, "save_every"),
        ({"reuse": 2, "save_every": 2, "steps": 5}, "steps"),
    ],
)
def test_settings_that_cannot_be_resumed_exactly_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"change `{key}`"):
        grpo(**changes)


def test_completions_are_scored_and_kept_as_they_were_written(
    shared_bench: Bench, trained: dict[str, Artifact], tiny_base: dict[str, Artifact]
) -> None:
    """A tokenizer that can take answers apart must not make TRL hand over a rebuilt text."""
    import pyarrow.parquet

    from posttrain.engines.model_folder import load_tokenizer
    from posttrain.rewards import R1_ZERO_REWARDS, Sample, build_reward

    assert load_tokenizer(shared_bench.store.view(tiny_base["model"])).response_template is not None
    assert load_tokenizer(shared_bench.store.view(trained["model"])).response_template is not None
    reward = build_reward(R1_ZERO_REWARDS)
    rows = pyarrow.parquet.read_table(
        shared_bench.store.file(trained["samples"], "samples.parquet")
    ).to_pylist()
    assert any("<think>" in row["completion"] for row in rows)
    for row in rows:
        assert row["format"] == reward.score(Sample(row["completion"], "0")).parts["format"]
