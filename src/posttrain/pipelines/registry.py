"""The stage kinds that recipes may use.

Here: one explicit table, and loading what its ``module:name`` strings name. Not here: any stage. To add a
stage kind: write its file, then one ``StageSpec`` below; ``tests/pipelines/test_stage_registry.py`` checks
every entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol, cast

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult, StageSpec
from posttrain.core.errors import MissingDependencyError

_SPECS: tuple[StageSpec, ...] = (
    StageSpec(
        kind="prompts",
        summary="prompts with ground truth, split into training and held-out, frozen and checked",
        config="posttrain.data.prompt_sources:PromptsConfig",
        run="posttrain.data.prompt_sources:run_prompts",
        inputs={},
        outputs={"train": "dataset", "heldout": "dataset"},
    ),
    StageSpec(
        kind="pretrain_tiny",
        summary="a base model of a few million parameters, from scratch",
        config="posttrain.training.stages.pretrain_tiny:PretrainTinyConfig",
        run="posttrain.training.stages.pretrain_tiny:run_pretrain_tiny",
        inputs={},
        outputs={"model": "model", "metrics": "metrics", "samples": "samples", "figures": "figures"},
    ),
    StageSpec(
        kind="import_model",
        summary="a model from a folder, a GGUF file, a package or the hub, as a trainable checkpoint",
        config="posttrain.training.stages.import_model:ImportModelConfig",
        run="posttrain.training.stages.import_model:run_import_model",
        inputs={},
        outputs={"model": "model"},
    ),
    StageSpec(
        kind="grpo",
        summary="reinforcement learning against verifiers",
        config="posttrain.training.stages.grpo:GrpoConfig",
        run="posttrain.training.stages.grpo:run_grpo",
        inputs={
            "model": "model",
            "prompts": "dataset",
            "open_prompts?": "dataset",
            "heldout?": "dataset",
            "helpful?": "model",
            "harmless?": "model",
        },
        outputs={"model": "model", "metrics": "metrics", "samples": "samples", "figures": "figures"},
    ),
    StageSpec(
        kind="cold_start",
        summary="a small set of explicit, well-formed demonstrations",
        config="posttrain.data.cold_start:ColdStartConfig",
        run="posttrain.data.cold_start:run_cold_start",
        inputs={"heldout?": "dataset"},
        outputs={"examples": "dataset"},
    ),
    StageSpec(
        kind="mix_examples",
        summary="several example sets as one, at a stated ratio",
        config="posttrain.data.mix_examples:MixExamplesConfig",
        run="posttrain.data.mix_examples:run_mix_examples",
        inputs={"sets*": "dataset"},
        outputs={"examples": "dataset"},
    ),
    StageSpec(
        kind="sft",
        summary="supervised fine-tuning on examples, the loss on replies only",
        config="posttrain.training.stages.sft:SftConfig",
        run="posttrain.training.stages.sft:run_sft",
        inputs={"model": "model", "examples": "dataset", "heldout?": "dataset"},
        outputs={"model": "model", "metrics": "metrics", "samples": "samples", "figures": "figures"},
    ),
    StageSpec(
        kind="rejection_sample",
        summary="a model's own best completions as examples, and a reason for each of the others",
        config="posttrain.training.stages.rejection_sample:RejectionSampleConfig",
        run="posttrain.training.stages.rejection_sample:run_rejection_sample",
        inputs={"model": "model", "prompts": "dataset", "judge_model?": "model", "reward_model?": "model"},
        outputs={"examples": "dataset", "rejected": "dataset"},
    ),
    StageSpec(
        kind="best_of_n",
        summary="of several replies to a prompt, the one that a reward model scores highest, as an example",
        config="posttrain.training.stages.best_of_n:BestOfNConfig",
        run="posttrain.training.stages.best_of_n:run_best_of_n",
        inputs={"model": "model", "prompts": "dataset", "reward_model?": "model", "judge_model?": "model"},
        outputs={"examples": "dataset", "rejected": "dataset"},
    ),
    StageSpec(
        kind="preferences",
        summary="judged pairs of replies, split into training and held-out",
        config="posttrain.data.preference_sources:PreferencesConfig",
        run="posttrain.data.preference_sources:run_preferences",
        inputs={},
        outputs={"train": "dataset", "heldout": "dataset"},
    ),
    StageSpec(
        kind="reward_model",
        summary="a scorer learned from preferences, standardised, with a report of its limits",
        config="posttrain.training.stages.reward_model:RewardModelConfig",
        run="posttrain.training.stages.reward_model:run_reward_model",
        inputs={"model": "model", "preferences": "dataset", "heldout": "dataset"},
        outputs={"model": "model", "metrics": "metrics", "report": "report", "figures": "figures"},
    ),
    StageSpec(
        kind="dpo",
        summary="learning from pairs of replies without a reward model: direct preference optimisation",
        config="posttrain.training.stages.preference:DpoConfig",
        run="posttrain.training.stages.preference:run_dpo",
        inputs={"model": "model", "preferences": "dataset", "heldout?": "dataset"},
        outputs={"model": "model", "metrics": "metrics", "samples": "samples", "figures": "figures"},
    ),
    StageSpec(
        kind="kto",
        summary="learning from replies labelled desirable or not: Kahneman-Tversky optimisation",
        config="posttrain.training.stages.preference:KtoConfig",
        run="posttrain.training.stages.preference:run_kto",
        inputs={"model": "model", "preferences": "dataset", "heldout?": "dataset"},
        outputs={"model": "model", "metrics": "metrics", "samples": "samples", "figures": "figures"},
    ),
    StageSpec(
        kind="evaluate",
        summary="accuracy, format and language on held-out prompts, with exact intervals",
        config="posttrain.evaluation.heldout.evaluate:EvaluateConfig",
        run="posttrain.evaluation.heldout.evaluate:run_evaluate",
        inputs={"model": "model", "prompts": "dataset"},
        outputs={"report": "report"},
    ),
    StageSpec(
        kind="suite",
        summary="a frozen suite: cases, tools, files, graders, known by one digest",
        config="posttrain.evaluation.suites.build:SuiteConfig",
        run="posttrain.evaluation.suites.build:run_suite",
        inputs={"prompts?": "dataset"},
        outputs={"suite": "suite"},
    ),
    StageSpec(
        kind="evaluate_suite",
        summary="a model on a frozen suite, every case graded, for gates to read",
        config="posttrain.evaluation.suites.evaluate:EvaluateSuiteConfig",
        run="posttrain.evaluation.suites.evaluate:run_evaluate_suite",
        inputs={
            "suite": "suite",
            "model?": "model",
            "answers?": "report",
            "reward_model?": "model",
            "judge_model?": "model",
        },
        outputs={"report": "report"},
    ),
    StageSpec(
        kind="canary_records",
        summary="records of production traffic as a report, for canary rules",
        config="posttrain.rollouts.canary_records:CanaryRecordsConfig",
        run="posttrain.rollouts.canary_records:run_canary_records",
        inputs={"suite": "suite"},
        outputs={"report": "report"},
    ),
    StageSpec(
        kind="win_rate",
        summary="how often each model's reply to an open prompt is preferred to a baseline's",
        config="posttrain.evaluation.heldout.win_rate:WinRateConfig",
        run="posttrain.evaluation.heldout.win_rate:run_win_rate",
        inputs={
            "models*": "model",
            "prompts": "dataset",
            "reward_model?": "model",
            "reward_model_report?": "report",
            "judge_model?": "model",
        },
        outputs={"report": "report"},
    ),
    StageSpec(
        kind="report",
        summary="models side by side: one page, one record",
        config="posttrain.evaluation.heldout.report_stage:ReportConfig",
        run="posttrain.evaluation.heldout.report_stage:run_report",
        inputs={
            "evaluations*": "report",
            "training*": "metrics",
            "reward_models*": "report",
            "win_rates?": "report",
        },
        outputs={"report": "report"},
    ),
    StageSpec(
        kind="gate",
        summary="a contract of promotion rules applied to a report: GO, NO-GO, or not known yet",
        config="posttrain.promotion.gate_stage:GateConfig",
        run="posttrain.promotion.gate_stage:run_gate",
        inputs={"candidate": "report", "baseline?": "report", "canary?": "report"},
        outputs={"decision": "decision"},
    ),
    StageSpec(
        kind="export_gguf",
        summary="a model as one GGUF file, which llama.cpp loads",
        config="posttrain.training.stages.export_gguf:ExportGgufConfig",
        run="posttrain.training.stages.export_gguf:run_export_gguf",
        inputs={"model": "model"},
        outputs={"model": "gguf"},
    ),
)

STAGES: Mapping[str, StageSpec] = MappingProxyType({spec.kind: spec for spec in _SPECS})
"""Stage kind to its declaration."""

EXTRA_OF_MODULE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "accelerate",
                "datasets",
                "httpx2",
                "jinja2",
                "math_verify",
                "matplotlib",
                "numpy",
                "peft",
                "py3langid",
                "pyarrow",
                "reasoning_gym",
                "safetensors",
                "scipy",
                "tokenizers",
                "torch",
                "transformers",
                "trl",
            ),
            "train",
        ),
        "gguf": "gguf",
        "xllamacpp": "gguf",
        "psycopg": "postgres",
    }
)
"""Top-level module of an optional dependency to the extra of posttrain that installs it."""


class StageFunction(Protocol):
    """What ``StageSpec.run`` names."""

    def __call__(
        self, config: Any, inputs: Mapping[str, Artifact], context: StageContext, /
    ) -> StageResult: ...


def config_class(spec: StageSpec) -> type[StageConfig]:
    """The configuration class of a stage kind; imports its module, which is torch-free."""
    return cast(type[StageConfig], _load(spec.config))


def stage_function(spec: StageSpec) -> StageFunction:
    """The function that runs a stage kind; imports its module."""
    return cast(StageFunction, _load(spec.run))


def missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """What to install where ``error`` is about an optional dependency; None where it is about anything
    else."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    if extra is None:
        return None
    return MissingDependencyError(f"{module} is not installed", hint=f"pip install 'posttrain[{extra}]'")


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
