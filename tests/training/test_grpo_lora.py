"""LoRA in the type of the weights, on the upper layers only, with a think block that the template opens."""

from __future__ import annotations

import re
from typing import Any

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.engines.model_folder import load_model
from posttrain.training.stages.grpo import GrpoConfig, run_grpo
from posttrain.training.stages.import_model import ImportModelConfig, run_import_model
from tests.training.conftest import Bench


@pytest.fixture(scope="module")
def prefilled(shared_bench: Bench, tiny_base: dict[str, Artifact]) -> Artifact:
    folder = str(shared_bench.store.view(tiny_base["model"]))
    config = {"source": {"kind": "folder", "path": folder}, "think_prefill": True, "dtype": "bfloat16"}
    return shared_bench.run(run_import_model, ImportModelConfig.model_validate(config)).outputs["model"]


@pytest.mark.parametrize("adapters", ["float32", "model"])
def test_only_the_upper_layers_change(
    shared_bench: Bench, tiny_base: dict[str, Artifact], prefilled: Artifact, adapters: str
) -> None:
    import pyarrow.parquet
    import torch

    config: dict[str, Any] = {
        "steps": 2,
        "prompts_per_step": 2,
        "completions": 8,
        "max_completion_tokens": 24,
        "save_every": 1,
        "learning_rate": 5e-2,
        "warmup_steps": 0,
        "dtype": "bfloat16",
        "lora": {"rank": 4, "first_layer": 1, "dtype": adapters},
        "rewards": {
            "verifiers": [
                {"verifier": {"kind": "accuracy"}},
                {"verifier": {"kind": "think_format"}, "weight": 0.1, "name": "format"},
                # Spreads the rewards of every group, so that each step has a gradient.
                {"verifier": {"kind": "length", "min_tokens": 24, "max_tokens": 400}, "weight": 0.5},
            ]
        },
        "preflight": {"prompts": 4, "samples": 2, "max_dead_share": 1.0},
    }
    outputs = shared_bench.run(
        run_grpo,
        GrpoConfig.model_validate(config),
        {"model": prefilled, "prompts": tiny_base["train"], "heldout": tiny_base["heldout"]},
    ).outputs
    before = load_model(shared_bench.store.view(prefilled), dtype="bfloat16").state_dict()
    after = load_model(shared_bench.store.view(outputs["model"]), dtype="bfloat16").state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(re.match(r"model\.layers\.1\..*proj\.weight", name) for name in changed)
    samples = pyarrow.parquet.read_table(shared_bench.store.file(outputs["samples"], "samples.parquet"))
    # Read without the tag that the template put in, no completion at all could have the form.
    assert 1.0 in samples["format"].to_pylist()
