"""Stage ``reward_model``: a scorer learned from human preferences, on TRL's ``RewardTrainer`` (Bradley-Terry loss).

Here: training, standardisation on a frozen calibration set (the held-out pairs), and a report of how far the scorer can
be trusted. Helpfulness is scored on the final part of a reply, harmlessness on the whole, as in R1. Not here: its use
(``engines.reward_scorer``, ``routing``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.canonical import canonical_json
from posttrain.data.preferences import Aspect, PreferenceRow, is_tie, judged_rows
from posttrain.data.prompts import check_not_asked
from posttrain.engines.reward_scorer import (
    REWARD_MODEL_FILE,
    RewardModelRecord,
    RewardScorer,
    ScoredPart,
    raw_scores,
    scored_row,
)
from posttrain.rewards.parsing import final_part
from posttrain.training.backends.trl import RateSchedule
from posttrain.training.lora import LoraSettings
from posttrain.training.rendering import TooLong, fit

if TYPE_CHECKING:
    from trl import RewardTrainer

REPORT_FILE = "reward_model_report.json"
_FIGURES = {"loss": "Training loss (nats per pair)", "accuracy": "Pairs of a step ranked as people did"}


class RewardModelConfig(StageConfig):
    """Config of the ``reward_model`` stage."""

    aspects: tuple[Aspect, ...] = ("helpful", "harmless")
    """Judgements that are learned; pairs of another aspect are left out."""
    scored_part: ScoredPart | None = None
    """``final`` or ``whole``; by default ``final`` where only helpfulness is learned, else ``whole``."""
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(16, ge=1)
    """Pairs of one optimizer step."""
    learning_rate: float = Field(1e-4, gt=0)
    schedule: RateSchedule = "cosine"
    warmup_steps: int = Field(5, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_tokens: int | None = Field(None, ge=8)
    """Longest row; by default as long as the model's positions. Rows are never cut."""
    too_long: TooLong = "fail"
    """What to do with pairs that hold a longer row: stop, or leave them out and say how many."""
    lora: LoraSettings | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    seed: int = 0

    @property
    def part(self) -> ScoredPart:
        """Which part of a reply is scored."""
        return self.scored_part or ("final" if self.aspects == ("helpful",) else "whole")


def run_reward_model(
    config: RewardModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Train a scorer. Inputs: ``model``, ``preferences``, ``heldout`` (disjoint by question; may hold ties).

    Outputs: ``model`` (a reward-model folder), ``metrics``, ``report`` (JSON), ``figures``.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from posttrain.engines.model_folder import load_tokenizer, pick_device
    from posttrain.training import metrics
    from posttrain.training.backends.trl import loss_rows, train_resumable

    torch.set_num_threads(context.threads)
    train, heldout = _read(config, context, inputs)
    folder = context.store.view(inputs["model"])
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(config.seed)  # the score head is new
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, local_files_only=True, use_safetensors=True, dtype=getattr(torch, config.dtype)
    ).to(pick_device(config.device))
    pairs = [_rows(tokenizer, row, config.part) for row in train]
    kept = fit(
        [max(map(len, pair)) for pair in pairs],
        max_tokens=config.max_tokens,
        positions=getattr(model.config, "max_position_embeddings", None),
        too_long=config.too_long,
    ).kept
    trainer = _build_trainer(
        config, context, model=model, tokenizer=tokenizer, pairs=[pairs[i] for i in kept]
    )
    train_resumable(trainer, context)
    trained = trainer.model if config.lora is None else trainer.model.merge_and_unload()
    trained.eval()
    scored = _score_heldout(trained, tokenizer, heldout, config.part)
    record = _record(config, scored, inputs["heldout"].digest)
    report = reward_model_report(heldout, scored, record)
    rows = loss_rows(trainer)
    outputs = {
        "model": _write(context, trained, tokenizer, record),
        "metrics": metrics.write_table(context, rows),
        "report": _write_report(context, report),
        "figures": metrics.write_figures(context, rows, _FIGURES),
    }
    accuracy, low, high = (report["pair_accuracy"][name] for name in ("value", "low", "high"))
    context.emit(
        "note", text=f"ranks {accuracy:.1%} of held-out pairs as people did ({low:.1%} to {high:.1%})"
    )
    return StageResult(outputs, {"pairs": len(kept), "too_long": len(pairs) - len(kept), **report})


def _read(
    config: RewardModelConfig, context: StageContext, inputs: Mapping[str, Artifact]
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    train, heldout = (
        judged_rows(context.store.view(inputs[name]), config.aspects, said, ties=name == "heldout")
        for name, said in (("preferences", "training"), ("heldout", "held-out"))
    )
    check_not_asked((row.question for row in train), (row.question for row in heldout), "training pairs")
    return train, heldout


def _rows(tokenizer: Any, row: PreferenceRow, part: ScoredPart) -> tuple[list[int], list[int]]:
    texts = [final_part(text) if part == "final" else text.strip() for text in (row.chosen, row.rejected)]
    chosen, rejected = (scored_row(tokenizer, row.messages, text) for text in texts)
    return chosen, rejected


def _build_trainer(
    config: RewardModelConfig,
    context: StageContext,
    *,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[list[int], list[int]]],
) -> RewardTrainer:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from posttrain.training.backends.trl import SCHEDULES, autocasts, common_arguments, without_dropout
    from posttrain.training.backends.trl_callbacks import StageCallback
    from posttrain.training.lora import adapter_config, cast_adapters

    steps = config.epochs * math.ceil(len(pairs) / config.batch_size)
    arguments = RewardConfig(
        **common_arguments(context, device=model.device.type, save_every=config.save_every, seed=config.seed),
        disable_dropout=without_dropout(config.lora),
        bf16=autocasts(config.dtype, config.lora),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
        ),
        processing_class=tokenizer,
        peft_config=None if config.lora is None else adapter_config(config.lora, model, "SEQ_CLS"),
        callbacks=[StageCallback(context, steps)],
    )
    cast_adapters(config.lora, trainer.model)
    return trainer


def _score_heldout(
    model: Any, tokenizer: Any, heldout: Sequence[PreferenceRow], part: ScoredPart
) -> list[tuple[float, float]]:
    rows = [side for row in heldout for side in _rows(tokenizer, row, part)]
    scores = raw_scores(model, tokenizer, rows)
    return list(zip(scores[::2], scores[1::2], strict=True))


def _record(
    config: RewardModelConfig, scored: Sequence[tuple[float, float]], calibration: str
) -> RewardModelRecord:
    values = [value for pair in scored for value in pair]
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return RewardModelRecord(config.part, config.aspects, mean, max(spread, 1e-6), calibration)


def reward_model_report(
    heldout: Sequence[PreferenceRow], scored: Sequence[tuple[float, float]], record: RewardModelRecord
) -> dict[str, Any]:
    """How far the scorer can be trusted, on held-out pairs; ``scored`` holds (chosen, rejected) raw scores.

    ``pair_accuracy``: share of pairs ranked as people did, with the exact (Clopper-Pearson) 95 % interval, also apart
    for pairs in which the longer or the shorter reply was preferred. ``calibration``: expected calibration error and
    Brier score of the predicted probability ``sigmoid(chosen - rejected)``, each pair counted in both directions.
    ``length_bias``: of the pairs judged equal, how often the longer reply has the higher score; 0.5 is none.
    """
    judged = [(row, pair) for row, pair in zip(heldout, scored, strict=True) if not is_tie(row)]
    ties = [(row, pair) for row, pair in zip(heldout, scored, strict=True) if is_tie(row)]
    margins = [chosen - rejected for _, (chosen, rejected) in judged]
    longer = [
        m > 0 for (row, _), m in zip(judged, margins, strict=True) if len(row.chosen) > len(row.rejected)
    ]
    shorter = [
        m > 0 for (row, _), m in zip(judged, margins, strict=True) if len(row.chosen) < len(row.rejected)
    ]
    unlike = [(row, pair) for row, pair in ties if len(row.chosen) != len(row.rejected)]
    likes_longer = [(pair[0] > pair[1]) == (len(row.chosen) > len(row.rejected)) for row, pair in unlike]
    return {
        "schema": 1,
        "kind": "reward_model_report",
        "aspects": list(record.aspects),
        "scored_part": record.scored_part,
        "mean": record.mean,
        "std": record.std,
        "pair_accuracy": _share([margin > 0 for margin in margins]),
        "longer_preferred": _share(longer),
        "shorter_preferred": _share(shorter),
        "calibration": calibration(margins),
        "length_bias": _share(likes_longer),
    }


def calibration(margins: Sequence[float], bins: int = 10) -> dict[str, float | None]:
    """Expected calibration error over ``bins`` bins of equal width (Guo et al. 2017) and Brier score."""
    if not margins:
        return {"expected_error": None, "brier": None}
    # Each pair in both directions: which reply was chosen is not known beforehand.
    predictions = [(_sigmoid(sign * m), float(sign > 0)) for m in margins for sign in (1, -1)]
    brier = math.fsum((p - y) ** 2 for p, y in predictions) / len(predictions)
    gaps = [0.0] * bins
    for predicted, seen in predictions:
        gaps[min(bins - 1, int(predicted * bins))] += predicted - seen
    error = math.fsum(map(abs, gaps)) / len(predictions)
    return {"expected_error": error, "brier": brier}


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, value))))


def _share(flags: Sequence[bool]) -> dict[str, float | int | None]:
    """A share with its exact 95 % interval; None where there is nothing to count."""
    from scipy.stats import binomtest

    if not flags:
        return {"value": None, "low": None, "high": None, "n": 0}
    interval = binomtest(sum(flags), len(flags)).proportion_ci(0.95, method="exact")
    return {
        "value": sum(flags) / len(flags),
        "low": float(interval.low),
        "high": float(interval.high),
        "n": len(flags),
    }


def _write(context: StageContext, model: Any, tokenizer: Any, record: RewardModelRecord) -> Artifact:
    from posttrain.engines.model_folder import save_model

    meta = {"aspects": list(record.aspects), "scored_part": record.scored_part}
    with context.writer("model", "model", meta=meta) as writer:
        save_model(model, tokenizer, writer.directory)
        writer.add_bytes(REWARD_MODEL_FILE, record.to_bytes())
        artifact = writer.commit()
    RewardScorer.load(context.store.view(artifact))  # what was written can be used
    return artifact


def _write_report(context: StageContext, report: Mapping[str, Any]) -> Artifact:
    with context.writer("report", "report") as writer:
        writer.add_bytes(REPORT_FILE, canonical_json(dict(report)))
        return writer.commit()
