"""A real tiny model on a frozen suite: from the store and from a folder, proven, with tools in its prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.artifacts.stage import StageContext
from posttrain.evaluation.suites.build import keep_files
from posttrain.evaluation.suites.evaluate import EvaluateSuiteConfig, run_evaluate_suite
from posttrain.evaluation.suites.proof import prove
from posttrain.evaluation.suites.report import read_report
from tests.evaluation.suite_world import small_files

Make = Callable[[str, dict[str, str]], StageContext]


def test_a_tiny_model_is_evaluated_and_proven(tiny_artifact: Any, folder: Path, make_context: Make) -> None:
    files = small_files(3, decoding={"max_new_tokens": 16, "temperature": 0.8}, samples=2, max_turns=3)
    context = make_context("suite", {})
    with context.store.writer("suite") as writer:
        suite = keep_files(writer, files)
    config = EvaluateSuiteConfig.model_validate({"model": {"kind": "store", "batch_size": 4}, "graders": 1})
    inputs = {"suite": suite, "model": tiny_artifact}
    context = make_context("evaluate-tiny", {name: a.digest for name, a in inputs.items()})
    report = read_report(context.store.view(run_evaluate_suite(config, inputs, context).outputs["report"]))
    assert len(report.rows) == 12
    assert all(row.graded.success is not None for row in report.rows)
    assert report.outcomes.evaluated.model == tiny_artifact.digest
    assert (report.outcomes.metrics["tokens"].values > 0).all()
    assert (report.outcomes.metrics["latency_ms"].values > 0).all()
    answers = {row.played.answer.text for row in report.rows if row.played.answer}
    assert len(answers) > 3
    proof = prove(report, config, inputs, make_context("prove-tiny", {}))
    assert proof.equal, proof.differing
    by_folder = EvaluateSuiteConfig.model_validate(
        {"model": {"kind": "folder", "path": str(folder), "batch_size": 4}, "graders": 1}
    )
    other = make_context("evaluate-folder", {"suite": suite.digest})
    again = read_report(
        other.store.view(run_evaluate_suite(by_folder, {"suite": suite}, other).outputs["report"])
    )
    assert again.frozen_digest == report.frozen_digest
