"""Final RL: prompts of all kinds, rows routed to their scorers, and a guard that looks at held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow.parquet
import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import ConfigError, HealthError, Interrupted
from posttrain.data.prompt_sources import PromptsConfig, run_prompts
from posttrain.data.prompts import PROMPTS_FILE, read_prompts
from posttrain.training.backends.trl_callbacks import GUARD_ACCURACY, GuardCallback
from posttrain.training.guard import GuardConfig
from posttrain.training.stages.grpo import GrpoConfig, run_grpo
from tests.training.conftest import Bench


@pytest.fixture(scope="module")
def wired(shared_bench: Bench, tiny_base: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Mixed prompts, and an untrained reward model of each aspect: its scores only have to be scores."""
    from posttrain.data.preference_sources import PreferencesConfig, run_preferences
    from posttrain.training.stages.reward_model import RewardModelConfig, run_reward_model

    sources = [{"kind": "word_problems", "max_steps": 1, "max_value": 10}, {"kind": "open_tasks"}]
    mixed = {"source": {"kind": "mix", "sources": sources}, "train": 40, "heldout": 8}
    prompts = shared_bench.run(run_prompts, PromptsConfig.model_validate(mixed)).outputs
    models = {}
    for aspect in ("helpful", "harmless"):
        source = {"kind": "procedural", "aspect": aspect}
        pairs = shared_bench.run(
            run_preferences,
            PreferencesConfig.model_validate({"source": source, "train": 16, "heldout": 16, "ties": 0}),
        ).outputs
        config = RewardModelConfig.model_validate({"aspects": [aspect], "epochs": 1})
        inputs = {"model": tiny_base["model"], "preferences": pairs["train"], "heldout": pairs["heldout"]}
        models[aspect] = shared_bench.run(run_reward_model, config, inputs).outputs["model"]
    return {
        "model": tiny_base["model"],
        "prompts": prompts["train"],
        "heldout": tiny_base["heldout"],
        **models,
    }


def config(**changes: Any) -> GrpoConfig:
    small = {
        "steps": 6,
        "prompts_per_step": 4,
        "completions": 4,
        "max_completion_tokens": 24,
        "save_every": 2,
        "preflight": {"prompts": 4, "samples": 2, "max_dead_share": 1.0},
        "health": {"min_entropy": {"value": 0.0, "action": "off"}},
        "preference": {"last_share": 0.5, "guard": {"every": 2, "prompts": 4, "max_drop": 1.0}},
        "rewards": {
            "verifiers": [
                {"verifier": {"kind": "accuracy", "mode": "numeric"}},
                {"verifier": {"kind": "language_consistency"}, "weight": 0.2, "name": "language"},
            ]
        },
    }
    return GrpoConfig.model_validate({**small, **changes})


def test_rows_go_to_their_scorers_and_a_stopped_run_ends_the_same(
    shared_bench: Bench, wired: dict[str, Artifact]
) -> None:
    whole = shared_bench.run(run_grpo, config(), wired, work="final-whole")
    rows = pyarrow.parquet.read_table(
        shared_bench.store.file(whole.outputs["samples"], "samples.parquet")
    ).to_pylist()
    assert len(rows) == 6 * 16
    early = [row for row in rows if row["step"] <= 3]
    late = [row for row in rows if row["step"] > 3]
    assert all(row["helpful"] is None and row["accuracy"] is not None for row in early)
    open_rows = [row for row in late if row["accuracy"] is None]
    assert len(open_rows) == len(late) / 2
    for row in open_rows:
        assert -3 <= row["helpful"] <= 3
        assert -3 <= row["harmless"] <= 3
        assert 0 <= row["language"] <= 1
    assert all(row["helpful"] is None for row in late if row["accuracy"] is not None)

    context = shared_bench.context("run_grpo", config(), wired, work="final-stopped")

    def stop_late(event: Any) -> None:
        context.stop.requested |= event.kind == "progress" and event.data["step"] >= 5

    with pytest.raises(Interrupted):
        run_grpo(config(), wired, replace(context, events=stop_late))
    again = shared_bench.run(run_grpo, config(), wired, work="final-stopped")
    assert {n: a.digest for n, a in again.outputs.items()} == {n: a.digest for n, a in whole.outputs.items()}


def test_open_prompts_come_from_a_set_of_their_own(shared_bench: Bench, wired: dict[str, Artifact]) -> None:
    def prompts(kind: str, **more: Any) -> Artifact:
        settings = {"source": {"kind": kind}, "train": 12, "heldout": 4, **more}
        return shared_bench.run(run_prompts, PromptsConfig.model_validate(settings)).outputs["train"]

    shots = [{"question": "1 and 1?", "answer": "<think>1+1=2.</think><answer>2</answer>"}]
    sums, chats = prompts("word_problems", shots=shots), prompts("open_tasks")
    done = shared_bench.run(run_grpo, config(steps=2), {**wired, "prompts": sums, "open_prompts": chats})
    rows = pyarrow.parquet.read_table(
        shared_bench.store.file(done.outputs["samples"], "samples.parquet")
    ).to_pylist()
    asked = {
        name: {row.question for row in read_prompts(shared_bench.store.view(artifact) / PROMPTS_FILE)}
        for name, artifact in (("sums", sums), ("chats", chats))
    }
    assert {row["prompt"] for row in rows if row["helpful"] is None} <= asked["sums"]
    assert {row["prompt"] for row in rows if row["helpful"] is not None} <= asked["chats"]
    assert sum(row["helpful"] is not None for row in rows if row["step"] == 2) == 8


@pytest.mark.parametrize(
    ("changes", "drop", "text"),
    [
        ({"preference": None}, ("helpful", "harmless"), "no reward model is given"),
        ({"preference": None}, (), "has no `preference`"),
        ({}, ("helpful", "harmless"), "neither the input"),
        ({}, ("heldout",), "no held-out prompts to look at"),
    ],
)
def test_what_does_not_fit_is_refused(
    shared_bench: Bench,
    wired: dict[str, Artifact],
    changes: dict[str, Any],
    drop: tuple[str, ...],
    text: str,
) -> None:
    kept = {name: artifact for name, artifact in wired.items() if name not in drop}
    with pytest.raises(ConfigError, match=text):
        shared_bench.run(run_grpo, config(**changes), kept)


def test_the_guard_stops_a_run_that_pleases_and_gets_worse(bench: Bench) -> None:
    import torch
    from transformers import TrainerState

    looks = iter([0.8, 0.8, 0.5])
    context = bench.context("grpo", config(), {})
    guard = GuardCallback(
        GuardConfig(every=2), context, lambda _: next(looks), first_step=2, weights={"helpful": 1.0}
    )
    state, model = TrainerState(), torch.nn.Linear(1, 1)
    before = torch.get_rng_state()
    for step in range(6):
        state.global_step = step
        guard.on_step_begin(None, state, None, model=model)
        state.log_history.append(
            {"step": step + 1, "rewards/helpful/mean": step / 2 if step >= 2 else float("nan")}
        )
    state.global_step = 6
    with pytest.raises(HealthError, match=r"held-out accuracy fell from 80\.0% to 50\.0%") as failure:
        guard.on_step_begin(None, state, None, model=model)
    assert "preference.helpful_weight" in str(failure.value.hint)
    assert [row["step"] for row in state.log_history if GUARD_ACCURACY in row] == [2, 4, 6]
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
