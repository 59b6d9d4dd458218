"""A tiny recipe at its smallest: real stages, a store in a temporary folder, one torch thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

# Before torch loads: tests share few cores, and spinning threads starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext, StageResult
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.canonical import digest_json
from posttrain.core.events import Event
from posttrain.core.quiet import quiet_libraries

quiet_libraries()


class Bench:
    """A store with a way to run one stage in it, as the runner would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = ArtifactStore(root / "home")
        self.events: list[Event] = []

    def context(self, kind: str, config: Any, inputs: Mapping[str, Artifact], work: str = "") -> StageContext:
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        key = digest_json({"kind": kind, "config": config.model_dump(mode="json"), "inputs": digests})
        workdir = self.root / "work" / (work or key.removeprefix("sha256:"))
        workdir.mkdir(parents=True, exist_ok=True)
        return StageContext(
            store=self.store,
            stage=kind,
            kind=kind,
            key=key,
            workdir=workdir,
            input_digests=digests,
            events=self.events.append,
        )

    def run(
        self,
        stage: Callable[..., StageResult],
        config: Any,
        inputs: Mapping[str, Artifact] | None = None,
        work: str = "",
    ) -> StageResult:
        inputs = inputs or {}
        return stage(config, inputs, self.context(stage.__name__, config, inputs, work))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="session")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One store for tests that only read what others made."""
    return Bench(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def tiny_base(shared_bench: Bench) -> dict[str, Artifact]:
    """A base model after a few steps (it knows the form, not the sums) and small prompt sets."""
    from posttrain.data.prompt_sources import PromptsConfig, run_prompts
    from posttrain.training.stages.pretrain_tiny import run_pretrain_tiny

    prompts = shared_bench.run(run_prompts, PromptsConfig(train=24, heldout=8))
    base = shared_bench.run(run_pretrain_tiny, small_pretraining())
    return {"model": base.outputs["model"], **{k: prompts.outputs[k] for k in ("train", "heldout")}}


def small_pretraining(**changes: Any) -> Any:
    """A base in about ten seconds: the steps that learn the form."""
    from posttrain.training.stages.pretrain_tiny import PretrainTinyConfig

    small = {
        "problems": {"max_steps": 1, "max_value": 10},
        "text": {
            "careful_share": 1.0,
            "careless_share": 0.0,
            "form_slip_share": 0.2,
            "open_share": 0.0,
            "judged_share": 0.0,
        },
        "hidden_size": 64,
        "intermediate_size": 128,
        "layers": 2,
        "heads": 2,
        "vocab_size": 512,
        "steps": 60,
        "batch_tokens": 1024,
        "learning_rate": 8e-3,
        "save_every": 20,
    }
    return PretrainTinyConfig.model_validate({**small, **changes})
