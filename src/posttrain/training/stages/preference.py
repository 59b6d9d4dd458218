"""Stages ``dpo`` and ``kto``: a model learns from preferred and rejected replies without a reward model, on TRL.

Here: direct preference optimisation (Rafailov et al. 2023), whose loss sees both replies of a pair, and KTO (Ethayarajh
et al. 2024), which sees single replies labelled desirable or not. Both hold the model near the one it started from.
Rows are rendered as in ``sft``: the loss is on the replies, their end of turn included, and nothing is cut. Left out:
other references than the starting model, a held-out measure of the implicit reward (``win_rate`` asks what counts: are
the replies better). Reward models are another stage (``reward_model``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import DataError
from posttrain.data.preferences import (
    PREFERENCES_FILE,
    Aspect,
    PreferenceRow,
    judged_rows,
    read_preferences,
)
from posttrain.data.prompts import PROMPTS_FILE, check_not_asked, read_prompts
from posttrain.training.backends.trl import RateSchedule
from posttrain.training.lora import LoraSettings
from posttrain.training.rendering import TooLong, fit, render

if TYPE_CHECKING:
    from transformers import Trainer
    from trl import DPOConfig, KTOConfig

_SAMPLES = 200
_MERGE_ROWS = 4
_FIGURES = {
    "loss": "Training loss",
    "rewards/margins": "Implicit reward: preferred minus rejected",
    "rewards/chosen": "Implicit reward of preferred replies",
    "rewards/rejected": "Implicit reward of rejected replies",
    "logps/chosen": "Log-probability of preferred replies (nats)",
}


class PreferenceTrainingConfig(StageConfig):
    """What ``dpo`` and ``kto`` have in common."""

    aspects: tuple[Aspect, ...] = Field(("helpful", "harmless"), min_length=1)
    """Judgements that are learned; pairs of another aspect are left out, and so are ties."""
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    """Pairs of one optimizer step."""
    micro_batch: int | None = Field(None, ge=1)
    """Pairs per forward and backward pass; default all of a step. Lower it when memory runs out."""
    learning_rate: float = Field(1e-5, gt=0)
    schedule: RateSchedule = "cosine"
    """Learning rate after the warm-up."""
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.95, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    beta: float = Field(0.1, gt=0)
    """How strongly the model is held near the starting one."""
    max_tokens: int | None = Field(None, ge=8)
    """Longest row, prompt and reply; by default as long as the model's positions. Rows are never cut."""
    too_long: TooLong = "fail"
    """What to do with pairs that hold a longer row: stop, or leave them out and say how many."""
    lora: LoraSettings | None = None
    """Adapters need no second model as the reference: it is the one without them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    seed: int = 0

    @model_validator(mode="after")
    def _check_batches(self) -> PreferenceTrainingConfig:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}; change `micro_batch`"
            )
        return self


class DpoConfig(PreferenceTrainingConfig):
    """Config of the ``dpo`` stage."""

    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero"] = "sigmoid"
    """``sigmoid`` is the paper's; ``robust`` expects wrong labels, ``apo_zero`` also raises the preferred reply."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels that are expected to be wrong, for ``loss: robust``."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of a supervised loss on the preferred replies beside it, which keeps them likely."""

    @model_validator(mode="after")
    def _check_loss(self) -> DpoConfig:
        if (self.loss == "robust") != (self.label_smoothing > 0):
            raise ValueError(
                f"label_smoothing {self.label_smoothing:g} with loss {self.loss!r}: only `robust` uses it, and needs a "
                "share above 0; change `label_smoothing` or `loss`"
            )
        return self


class KtoConfig(PreferenceTrainingConfig):
    """Config of the ``kto`` stage. A pair gives one desirable and one undesirable reply, learned apart."""

    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of the loss of desirable replies; there are as many of the others."""
    undesirable_weight: float = Field(1.0, gt=0)


class Pair(NamedTuple):
    """Two replies to one prompt as tokens."""

    prompt: list[int]
    chosen: list[int]
    """The preferred reply, its end of turn included."""
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """Length of the longer row."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def run_dpo(config: DpoConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Learn from pairs. Inputs: ``model``, ``preferences``, optional ``heldout`` (prompts or preferences that no pair
    may ask).

    Outputs: ``model``, ``metrics`` (a row a step), ``samples`` (pairs as trained), ``figures``. Raises DataError for
    overlap, for rows that are too long and where nothing is left; ModelError for an unusable template or merge.
    """
    return _run(config, inputs, context)


def run_kto(config: KtoConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Learn from labelled replies. Inputs, outputs and errors are those of :func:`run_dpo`."""
    return _run(config, inputs, context)


def _run(config: DpoConfig | KtoConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    import torch

    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device
    from posttrain.training import metrics
    from posttrain.training.backends.trl import loss_rows, train_resumable, whole_model, write_model

    torch.set_num_threads(context.threads)
    rows = _read(config, context, inputs)
    folder = context.store.view(inputs["model"])
    tokenizer = load_tokenizer(folder)
    device = pick_device(config.device)
    model = load_model(folder, dtype=config.dtype, device=device)
    # With adapters the model without them is the reference; else it is a second copy that stays as it is.
    reference = load_model(folder, dtype=config.dtype, device=device) if config.lora is None else None
    pairs = _fitting([_rendered(tokenizer, row) for row in rows], config, model)
    longest = max(pair.tokens for pair in pairs)
    dropped = len(rows) - len(pairs)
    context.emit(
        "note", text=f"{len(pairs)} pairs, the longest row {longest} tokens, {dropped} left out as too long"
    )
    trainer = _build_trainer(
        config, context, model=model, reference=reference, tokenizer=tokenizer, pairs=pairs
    )
    train_resumable(trainer, context)
    merge_rows = [[*pair.prompt, *pair.chosen] for pair in pairs[:_MERGE_ROWS]]
    trained, gap = whole_model(trainer, config.lora, merge_rows)
    steps = loss_rows(trainer)
    outputs = {
        "model": write_model(context, trained, tokenizer),
        "metrics": metrics.write_table(context, steps),
        "samples": metrics.write_samples(context, _as_trained(tokenizer, pairs[:_SAMPLES])),
        "figures": metrics.write_figures(context, steps, _FIGURES),
    }
    summary = {
        "pairs": len(pairs),
        "too_long": dropped,
        "longest_tokens": longest,
        "steps": trainer.state.global_step,
        "loss": steps[-1]["loss"],
        "reward_margin": steps[-1].get("rewards/margins"),
        "merge_gap": gap,
        "device": device,
    }
    return StageResult(outputs, summary)


def _read(
    config: PreferenceTrainingConfig, context: StageContext, inputs: Mapping[str, Artifact]
) -> list[PreferenceRow]:
    rows = judged_rows(context.store.view(inputs["preferences"]), config.aspects, "training")
    if "heldout" in inputs:
        heldout = _questions(context.store.view(inputs["heldout"]))
        check_not_asked((row.question for row in rows), heldout, "training pairs")
    return rows


def _questions(folder: Path) -> list[str]:
    """The questions of a dataset of prompts or of preferences."""
    if (folder / PREFERENCES_FILE).is_file():
        return [row.question for row in read_preferences(folder / PREFERENCES_FILE)]
    return [row.question for row in read_prompts(folder / PROMPTS_FILE)]


def _rendered(tokenizer: Any, row: PreferenceRow) -> Pair:
    chosen = render(tokenizer, row.messages, row.chosen)
    return Pair(chosen.prompt, chosen.reply, render(tokenizer, row.messages, row.rejected).reply)


def _fitting(pairs: Sequence[Pair], config: PreferenceTrainingConfig, model: Any) -> list[Pair]:
    kept = fit(
        [pair.tokens for pair in pairs],
        max_tokens=config.max_tokens,
        positions=getattr(model.config, "max_position_embeddings", None),
        too_long=config.too_long,
    ).kept
    return [pairs[index] for index in kept]


def labelled_rows(pairs: Sequence[Pair], *, micro_batch: int, seed: int, kl: bool) -> list[dict[str, Any]]:
    """Pairs as KTO's rows, in the order of training: desirable and undesirable replies take turns, so that every batch
    holds as many of each; the undesirable ones begin half-way round, so that a batch holds many prompts. Every epoch
    has this order.

    With ``kl`` each row also gets the reply of another row of its batch of ``2 * micro_batch``, to another prompt
    wherever the batch allows: the KL term is estimated on prompts with replies that are not theirs.
    """
    order = list(pairs)
    random.Random(seed).shuffle(order)
    half = len(order) // 2
    rows: list[dict[str, Any]] = []
    for liked, disliked in zip(order, [*order[half:], *order[:half]], strict=True):
        rows.append({"prompt_ids": liked.prompt, "completion_ids": liked.chosen, "label": True})
        rows.append({"prompt_ids": disliked.prompt, "completion_ids": disliked.rejected, "label": False})
    if kl:
        size = 2 * micro_batch
        for start in range(0, len(rows), size):
            _add_kl_replies(rows[start : start + size])
    return rows


def _add_kl_replies(batch: Sequence[dict[str, Any]]) -> None:
    """Turn the replies of a batch round by the fewest rows that leave the fewest prompts with a reply of their own."""
    prompts = [row["prompt_ids"] for row in batch]

    def own_replies(shift: int) -> int:
        return sum(prompts[index - shift] == prompt for index, prompt in enumerate(prompts))

    shift = min(range(1, len(batch)), key=own_replies)
    for index, row in enumerate(batch):
        row["KL_completion_ids"] = batch[index - shift]["completion_ids"]


def _build_trainer(
    config: DpoConfig | KtoConfig,
    context: StageContext,
    *,
    model: Any,
    reference: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
) -> Trainer:
    from datasets import Dataset

    from posttrain.training.backends.trl_callbacks import StageCallback
    from posttrain.training.backends.trl_preference import LabelledTrainer, PairTrainer
    from posttrain.training.lora import adapter_config, cast_adapters

    common = _shared_arguments(config, context, model.device.type)
    if isinstance(config, DpoConfig):
        arguments, rows = _dpo_arguments(config, common), [_pair_row(pair) for pair in pairs]
    else:
        arguments, rows = _kto_arguments(config, common), _kto_rows(config, pairs)
    trainer = (PairTrainer if isinstance(config, DpoConfig) else LabelledTrainer)(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if config.lora is None else adapter_config(config.lora, model),
        callbacks=[StageCallback(context, config.epochs * math.ceil(len(pairs) / config.batch_size))],
    )
    cast_adapters(config.lora, trainer.model)
    return trainer


def _pair_row(pair: Pair) -> dict[str, Any]:
    return {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}


def _kto_rows(config: KtoConfig, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    if len(pairs) < 2:
        raise DataError(
            "one pair is too few: KTO compares replies across prompts", hint="give `preferences` more rows"
        )
    micro = config.micro_batch or config.batch_size
    return labelled_rows(pairs, micro_batch=micro, seed=config.seed, kl=config.loss == "kto")


def _dpo_arguments(config: DpoConfig, common: Mapping[str, Any]) -> DPOConfig:
    from trl import DPOConfig

    also_sft = config.sft_weight > 0
    return DPOConfig(
        **common,
        loss_type=[config.loss, "sft"] if also_sft else [config.loss],
        loss_weights=[1.0, config.sft_weight] if also_sft else None,
        label_smoothing=config.label_smoothing,
    )


def _kto_arguments(config: KtoConfig, common: Mapping[str, Any]) -> KTOConfig:
    from trl import KTOConfig

    return KTOConfig(
        **{**common, "per_device_train_batch_size": 2 * common["per_device_train_batch_size"]},
        loss_type=config.loss,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        train_sampling_strategy="sequential",
    )


def _shared_arguments(config: PreferenceTrainingConfig, context: StageContext, device: str) -> dict[str, Any]:
    from posttrain.training.backends.trl import SCHEDULES, autocasts, common_arguments, without_dropout

    micro = config.micro_batch or config.batch_size
    return {
        **common_arguments(context, device=device, save_every=config.save_every, seed=config.seed),
        "bf16": autocasts(config.dtype, config.lora),
        "disable_dropout": without_dropout(config.lora),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES[config.schedule],
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "beta": config.beta,
    }


def _as_trained(tokenizer: Any, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": tokenizer.decode(pair.prompt),
            "chosen": tokenizer.decode(pair.chosen),
            "rejected": tokenizer.decode(pair.rejected),
            "tokens": pair.tokens,
        }
        for pair in pairs
    ]
