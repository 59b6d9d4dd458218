"""A reference that moves: what it does to the KL term, and exact resume in every segment, with adapters, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import Interrupted
from posttrain.training.reference import REFERENCE_FILE
from posttrain.training.stages.grpo import GrpoConfig, run_grpo
from tests.training.conftest import Bench

SMALL: dict[str, Any] = {
    "steps": 7,
    "prompts_per_step": 2,
    "completions": 8,
    "max_completion_tokens": 20,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "beta": 0.05,
    "reference_every": 3,
    "save_every": 1,
    "preflight": {"prompts": 2, "samples": 2, "max_dead_share": 1.0},
    # Spreads the rewards of every group, so that each step has a gradient.
    "rewards": {
        "verifiers": [
            {"verifier": {"kind": "accuracy"}},
            {"verifier": {"kind": "length", "min_tokens": 12, "max_tokens": 400}, "weight": 0.5},
        ]
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "adapters": {"lora": {"rank": 4, "dropout": 0.1}, "learning_rate": 2e-2},
    "bfloat16": {
        "lora": {"rank": 4, "dtype": "model"},
        "dtype": "bfloat16",
        "learning_rate": 2e-2,
        "steps": 4,
    },
    "reused": {"reuse": 2, "reference_every": 2, "save_every": 2, "steps": 6},
}


def grpo(kind: str, **changes: Any) -> GrpoConfig:
    return GrpoConfig.model_validate({**SMALL, **KINDS[kind], **changes})


def inputs(base: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {"model": base["model"], "prompts": base["train"], "heldout": base["heldout"]}


def rows(bench: Bench, outputs: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    table = pyarrow.parquet.read_table(bench.store.file(outputs["metrics"], "metrics.parquet"))
    found: list[dict[str, Any]] = table.to_pylist()
    return found


@pytest.fixture(scope="module")
def whole(shared_bench: Bench, tiny_base: Mapping[str, Artifact]) -> Mapping[str, Artifact]:
    return shared_bench.run(run_grpo, grpo("whole"), inputs(tiny_base), work="reference-whole").outputs


def test_the_penalty_begins_at_nothing_in_every_segment(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], whole: Mapping[str, Artifact]
) -> None:
    moved = [row["kl"] for row in rows(shared_bench, whole)]
    assert [moved[step] for step in (0, 3, 6)] == pytest.approx([0, 0, 0], abs=1e-7)
    assert all(moved[step] > 1e-5 for step in (1, 2, 4, 5))
    config = grpo("whole", reference_every=None)
    fixed = rows(shared_bench, shared_bench.run(run_grpo, config, inputs(tiny_base)).outputs)
    assert [row["kl"] for row in fixed[:3]] == moved[:3]
    assert all(row["kl"] > 1e-5 for row in fixed[3:])


def test_adapters_are_held_to_themselves(shared_bench: Bench, tiny_base: Mapping[str, Artifact]) -> None:
    """Without dropout, where policy and reference are compared exactly; merged as if there had been no reference."""
    config = grpo("adapters", lora={"rank": 4})
    done = shared_bench.run(run_grpo, config, inputs(tiny_base))
    moved = [row["kl"] for row in rows(shared_bench, done.outputs)]
    assert [moved[step] for step in (0, 3, 6)] == pytest.approx([0, 0, 0], abs=1e-7)
    assert all(moved[step] > 1e-5 for step in (1, 2, 4, 5))
    assert done.summary["merge_gap"] < 1e-4
    assert not any("adapter" in entry.path for entry in done.outputs["model"].files)


@pytest.mark.parametrize(
    ("kind", "stops"),
    [("whole", (2, 3, 5)), ("adapters", (3, 5)), ("bfloat16", (3,)), ("reused", (4,))],
)
def test_a_run_stopped_in_any_segment_ends_the_same(
    shared_bench: Bench,
    tiny_base: Mapping[str, Artifact],
    whole: Mapping[str, Artifact],
    kind: str,
    stops: tuple[int, ...],
) -> None:
    """In the first segment, right after a refresh, and in the middle of the second: one run that is stopped at each."""
    config, wired = grpo(kind), inputs(tiny_base)
    expected = (
        whole if kind == "whole" else shared_bench.run(run_grpo, config, wired, work=f"ref-{kind}").outputs
    )
    context = shared_bench.context("run_grpo", config, wired, work=f"ref-{kind}-stopped")
    resumed_from: list[int] = []
    for stop in stops:

        def watch(event: Any, stop: int = stop) -> None:
            context.stop.requested |= event.kind == "progress" and event.data["step"] >= stop
            if event.kind == "stage_resumed":
                resumed_from.append(event.data["from_step"])

        context.stop.requested = False
        with pytest.raises(Interrupted):
            run_grpo(config, wired, replace(context, events=watch))
        kept = {path.parent.name for path in Path(context.workdir).rglob(REFERENCE_FILE)}
        assert (f"checkpoint-{stop}" in kept) == (stop >= config.reference_every)
    context.stop.requested = False
    resumed = shared_bench.run(run_grpo, config, wired, work=f"ref-{kind}-stopped").outputs
    assert resumed_from == list(stops[:-1])
    assert {n: a.digest for n, a in resumed.items()} == {n: a.digest for n, a in expected.items()}


def test_a_damaged_reference_is_not_resumed_from(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], whole: Mapping[str, Artifact]
) -> None:
    config, wired = grpo("whole"), inputs(tiny_base)
    context = shared_bench.context("run_grpo", config, wired, work="reference-damaged")

    def stop_late(event: Any) -> None:
        context.stop.requested |= event.kind == "progress" and event.data["step"] >= 5

    with pytest.raises(Interrupted):
        run_grpo(config, wired, replace(context, events=stop_late))
    last = context.workdir / "trainer" / "checkpoint-5" / REFERENCE_FILE
    raw = bytearray(last.read_bytes())
    raw[-1] ^= 1
    last.write_bytes(raw)
    before = len(shared_bench.events)
    resumed = shared_bench.run(run_grpo, config, wired, work="reference-damaged").outputs
    again = [e.data["from_step"] for e in shared_bench.events[before:] if e.kind == "stage_resumed"]
    assert again == [4]
    assert resumed["model"].digest == whole["model"].digest


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"beta": 0.0}, "set `beta` above 0"),
        ({"reuse": 2, "save_every": 2, "steps": 6}, "change `reference_every`"),
        ({"reference_every": 0}, "reference_every"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        grpo("whole", **changes)
