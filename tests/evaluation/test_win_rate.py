"""Win rates on open prompts: who judges, how they are counted, and where they stand in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import ConfigError
from posttrain.data.prompt_sources import PromptsConfig, run_prompts
from posttrain.evaluation.heldout.records import WinRateReport
from posttrain.evaluation.heldout.win_rate import (
    PAIRS_FILE,
    WIN_RATES_FILE,
    WinRateConfig,
    run_win_rate,
    win_rate,
)
from posttrain.statistics.intervals import clopper_pearson
from tests.training.conftest import Bench, small_pretraining


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("win-rate"))


@pytest.fixture(scope="module")
def models(bench: Bench) -> dict[str, Artifact]:
    from posttrain.training.stages.pretrain_tiny import run_pretrain_tiny

    return {
        name: bench.run(run_pretrain_tiny, small_pretraining(steps=steps)).outputs["model"]
        for name, steps in (("models.base", 10), ("models.later", 60))
    }


@pytest.fixture(scope="module")
def prompts(bench: Bench) -> Artifact:
    config = PromptsConfig.model_validate({"source": {"kind": "open_tasks"}, "train": 8, "heldout": 24})
    return bench.run(run_prompts, config).outputs["heldout"]


def test_counts_and_intervals() -> None:
    rate = win_rate("m", [1.0] * 8 + [0.0] * 2 + [None])
    assert (rate.wins, rate.ties, rate.losses, rate.undecided, rate.value) == (8, 0, 2, 1, 0.8)
    exact = clopper_pearson(8, 10)
    assert (rate.low, rate.high) == (pytest.approx(exact.low, abs=0.03), pytest.approx(exact.high, abs=0.03))
    tied = win_rate("m", [0.5] * 10 + [1.0] * 10)
    assert tied.value == 0.75
    assert tied.low is not None
    assert tied.low > 0.5
    assert win_rate("m", [None, None]).value is None


def test_models_are_compared_prompt_by_prompt(
    bench: Bench, models: Mapping[str, Artifact], prompts: Artifact
) -> None:
    config = WinRateConfig(baseline="base", max_completion_tokens=24)
    done = bench.run(run_win_rate, config, {**models, "prompts": prompts})
    report = WinRateReport.from_json(bench.store.read_bytes(done.outputs["report"], WIN_RATES_FILE))
    assert (report.baseline, report.judge, report.prompts) == ("base", "planted", 24)
    (rate,) = report.rates
    assert rate.name == "later"
    assert rate.wins + rate.ties + rate.losses == 24
    pairs = [
        json.loads(line) for line in bench.store.read_bytes(done.outputs["report"], PAIRS_FILE).splitlines()
    ]
    assert sum(pair["outcome"] == 1.0 for pair in pairs) == rate.wins
    again = bench.run(run_win_rate, config, {**models, "prompts": prompts})
    assert again.outputs["report"].digest == done.outputs["report"].digest


def test_a_reward_model_judges_what_follows_the_think_block(
    bench: Bench, models: Mapping[str, Artifact], prompts: Artifact
) -> None:
    """Under a template that opens the think block, replies begin in it: what was thought is not what was said."""
    from posttrain.data.preference_sources import PreferencesConfig, run_preferences
    from posttrain.training.stages.import_model import ImportModelConfig, run_import_model
    from posttrain.training.stages.reward_model import RewardModelConfig, run_reward_model

    pairs = bench.run(
        run_preferences, PreferencesConfig.model_validate({"train": 16, "heldout": 16, "ties": 0})
    ).outputs
    training = RewardModelConfig.model_validate({"aspects": ["helpful"], "epochs": 1})
    wired = {"model": models["models.base"], "preferences": pairs["train"], "heldout": pairs["heldout"]}
    trained = bench.run(run_reward_model, training, wired).outputs

    def opened(name: str) -> Artifact:
        source = {"kind": "folder", "path": str(bench.store.view(models[name]))}
        config = ImportModelConfig.model_validate({"source": source, "think_prefill": True})
        return bench.run(run_import_model, config).outputs["model"]

    config = WinRateConfig.model_validate(
        {"baseline": "base", "judge": {"kind": "reward_model"}, "max_completion_tokens": 4}
    )
    judging = {"reward_model": trained["model"], "reward_model_report": trained["report"]}
    inputs = {**{name: opened(name) for name in models}, "prompts": prompts, **judging}
    report = bench.run(run_win_rate, config, inputs).outputs["report"]
    told = WinRateReport.from_json(bench.store.read_bytes(report, WIN_RATES_FILE))
    assert "of 16 held-out pairs as people did" in told.judge
    (rate,) = told.rates
    pairs_of = [json.loads(line) for line in bench.store.read_bytes(report, PAIRS_FILE).splitlines()]
    assert all(pair["reply"].startswith("<think>") for pair in pairs_of)
    silent = [p for p in pairs_of if not any("</think>" in p[side] for side in ("reply", "baseline_reply"))]
    assert silent
    assert {pair["outcome"] for pair in silent} == {0.5}
    assert rate.ties >= len(silent)


def test_what_does_not_fit_is_refused(
    bench: Bench, models: Mapping[str, Artifact], prompts: Artifact, tmp_path: Path
) -> None:
    inputs = {**models, "prompts": prompts}
    with pytest.raises(ConfigError, match="baseline 'bas'"):
        bench.run(run_win_rate, WinRateConfig(baseline="bas"), inputs)
    judged = WinRateConfig.model_validate({"baseline": "base", "judge": {"kind": "reward_model"}})
    with pytest.raises(ConfigError, match="needs the input 'reward_model'"):
        bench.run(run_win_rate, judged, inputs)
    path = tmp_path / "open.jsonl"
    path.write_text('{"question": "Why is the sky up?"}\n{"question": "And the sea?"}\n')
    source = {"kind": "jsonl", "paths": [str(path)], "task": "open"}
    other = bench.run(run_prompts, PromptsConfig.model_validate({"source": source, "train": 1, "heldout": 1}))
    with pytest.raises(ConfigError, match="knows procedural open tasks only"):
        bench.run(
            run_win_rate, WinRateConfig(baseline="base"), {**models, "prompts": other.outputs["heldout"]}
        )
