"""Real stages that write real artifacts in milliseconds: what the runner is tested on.

``TOY_STAGES`` is handed to the functions that take a stage table. The stages count, add and report;
``toy_train`` writes a checkpoint at every step and resumes from it, as a trainer does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult, StageSpec
from posttrain.core.errors import HealthError


class NumbersConfig(StageConfig):
    """Makes a dataset of numbers."""

    count: int = Field(default=8, ge=1, le=1000)
    seed: int = 0
    source: Path | None = None

    def external_files(self) -> Mapping[str, Path]:
        return {"source": self.source} if self.source else {}


class Linear(StageConfig):
    kind: Literal["linear"] = "linear"
    slope: float = 1.0


class Power(StageConfig):
    kind: Literal["power"] = "power"
    exponent: int = 2


class Guard(StageConfig):
    timeout_seconds: float = Field(default=1.0, gt=0)
    rules: list[Annotated[Linear | Power, Field(discriminator="kind")]] = Field(
        default_factory=lambda: [Linear(), Power(exponent=3)]
    )


class TrainConfig(StageConfig):
    """Sums the dataset ``steps`` times."""

    steps: int = Field(default=4, ge=1)
    mode: Literal["slow", "fast"] = "fast"
    seed: int = 0
    pause_seconds: float = 0.0
    fail_at: int | None = None
    crash_at: int | None = None
    deaf: bool = False
    """Never look at the stop request."""
    wrong_output: Literal["", "kind", "missing", "extra"] = ""
    guard: Guard = Guard()

    @model_validator(mode="after")
    def _failures_are_reached(self) -> TrainConfig:
        if self.fail_at is not None and self.fail_at > self.steps:
            raise ValueError(
                f"fail_at is {self.fail_at}, after the last of {self.steps} steps; lower fail_at"
            )
        return self


class ReportConfig(StageConfig):
    title: str = "toy"


def run_numbers(config: NumbersConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    writer = context.writer("dataset", "rows", {"rows": config.count})
    with writer:
        rows = config.source.read_text() if config.source else ""
        writer.add_json(
            "rows.json", {"rows": list(range(config.seed, config.seed + config.count)), "text": rows}
        )
        return StageResult({"rows": writer.commit()})


def run_train(config: TrainConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    rows = json.loads(context.store.read_bytes(inputs["data"], "rows.json"))["rows"]
    checkpoint = context.workdir / "checkpoint.json"
    state = {"step": 0, "sum": 0}
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
        context.emit("stage_resumed", key=context.key, from_step=state["step"])
    for step in range(state["step"] + 1, config.steps + 1):
        if not config.deaf:
            context.stop.check()
        if step == config.fail_at:
            raise HealthError("the sum went up while the mean fell", hint="lower rl.steps")
        if step == config.crash_at:
            raise ZeroDivisionError("a bug in the stage")
        time.sleep(config.pause_seconds)
        state = {"step": step, "sum": state["sum"] + sum(rows) * config.seed + step}
        _write_checkpoint(checkpoint, state)
        context.emit(
            "progress", step=step, total=config.steps, reward=step / config.steps, tokens_per_second=100.0
        )
    return _train_outputs(config, context, state)


def _write_checkpoint(path: Path, state: Mapping[str, int]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(state))
    partial.replace(path)


def _train_outputs(config: TrainConfig, context: StageContext, state: Mapping[str, int]) -> StageResult:
    outputs = {}
    with context.writer("dataset" if config.wrong_output == "kind" else "model", "model") as writer:
        for part in range(4):  # several files, so that a kill can fall between two of them
            writer.add_json(f"part-{part}.json", {"part": part, "sum": state["sum"]})
            time.sleep(config.pause_seconds / 4)
        outputs["model"] = writer.commit()
    if config.wrong_output != "missing":
        with context.writer("metrics", "metrics") as writer:
            writer.add_json("metrics.json", {"sum": state["sum"]})
            outputs["metrics"] = writer.commit()
    if config.wrong_output == "extra":
        outputs["surprise"] = outputs["metrics"]
    return StageResult(outputs, summary={"sum": state["sum"]})


def run_report(config: ReportConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    with context.writer("report", "report") as writer:
        lines = [config.title, *(f"{name}: {artifact.digest}" for name, artifact in sorted(inputs.items()))]
        writer.add_bytes("report.html", ("<pre>" + "\n".join(lines) + "</pre>").encode())
        writer.add_bytes("report.txt", f"{config.title}: {len(inputs)} models\n".encode())
        return StageResult({"report": writer.commit()})


_HERE = "tests.pipelines.toy_stages" if __name__.startswith("tests.") else __name__

TOY_STAGES: dict[str, StageSpec] = {
    spec.kind: spec
    for spec in (
        StageSpec(
            "toy_numbers",
            "numbers",
            f"{_HERE}:NumbersConfig",
            f"{_HERE}:run_numbers",
            {},
            {"rows": "dataset"},
        ),
        StageSpec(
            "toy_train",
            "sums",
            f"{_HERE}:TrainConfig",
            f"{_HERE}:run_train",
            {"data": "dataset", "model?": "model"},
            {"model": "model", "metrics": "metrics"},
        ),
        StageSpec(
            "toy_report",
            "report",
            f"{_HERE}:ReportConfig",
            f"{_HERE}:run_report",
            {"runs*": "model"},
            {"report": "report"},
        ),
    )
}

TOY_RECIPE = """\
schema: 1
name: toy
title: A toy
seed: 3
stages:
  - name: numbers
    uses: toy_numbers
    with: {count: 5}
  - name: first
    uses: toy_train
    inputs: {data: numbers.rows}
  - name: second
    uses: toy_train
    inputs: {data: numbers.rows, model: first.model}
    with:
      steps: 6
  - name: report
    uses: toy_report
    inputs:
      runs: {a: first.model, b: second.model}
outputs: {report: report.report, model: second.model}
"""
