"""Stage ``sft``: supervised fine-tuning on TRL's ``SFTTrainer``, as R1 does from the base before and after its RL.

Here: the loss is on the assistant's reply only, its end of turn included; the prompt is tokenised as generation will
see it; nothing is cut. Left out: packing (needs attention kernels that a CPU lacks), multi-turn masks (only the last
reply of a conversation is learned).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.data.examples import EXAMPLES_FILE, check_examples, read_examples
from posttrain.data.prompts import PROMPTS_FILE, check_not_asked, read_prompts
from posttrain.training.backends.trl import RateSchedule
from posttrain.training.lora import LoraSettings
from posttrain.training.rendering import Rendered, TooLong, fit, render

if TYPE_CHECKING:
    from trl import SFTTrainer

_SAMPLES = 200
_MERGE_ROWS = 4
_FIGURES = {"loss": "Training loss (nats per token of the reply)", "mean_token_accuracy": "Token accuracy"}


class SftConfig(StageConfig):
    """Config of the ``sft`` stage."""

    epochs: int = Field(2, ge=1)
    """Passes over the examples; R1 makes two."""
    batch_size: int = Field(16, ge=1)
    """Examples of one optimizer step."""
    micro_batch: int | None = Field(None, ge=1)
    """Examples per forward and backward pass; default all of a step. Lower it when memory runs out."""
    learning_rate: float = Field(1e-4, gt=0)
    schedule: RateSchedule = "cosine"
    """Learning rate after the warm-up."""
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.95, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    max_tokens: int | None = Field(None, ge=8)
    """Longest row, prompt and reply; by default as long as the model's positions. Rows are never cut."""
    too_long: TooLong = "fail"
    """What to do with longer rows: stop, or leave them out and say how many."""
    lora: LoraSettings | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> SftConfig:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}; change `micro_batch`"
            )
        return self


def run_sft(config: SftConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Fine-tune. Inputs: ``model``, ``examples``, optional ``heldout`` (prompts that no example may ask).

    Outputs: ``model``, ``metrics`` (a row a step), ``samples`` (rows as trained, the learned part by itself),
    ``figures``. Raises DataError for overlap and for rows that are too long, ModelError for an unusable template.
    """
    import torch

    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device
    from posttrain.training import metrics
    from posttrain.training.backends.trl import loss_rows, train_resumable, whole_model, write_model

    torch.set_num_threads(context.threads)
    examples = read_examples(context.store.view(inputs["examples"]) / EXAMPLES_FILE)
    check_examples(examples, "training")
    if "heldout" in inputs:
        heldout = read_prompts(context.store.view(inputs["heldout"]) / PROMPTS_FILE)
        check_not_asked(
            (row.messages[-1]["content"] for row in examples), (row.question for row in heldout), "examples"
        )
    folder = context.store.view(inputs["model"])
    tokenizer = load_tokenizer(folder)
    device = pick_device(config.device)
    model = load_model(folder, dtype=config.dtype, device=device)
    rendered = [render(tokenizer, row.messages, row.response) for row in examples]
    fitting = fit(
        [row.tokens for row in rendered],
        max_tokens=config.max_tokens,
        positions=getattr(model.config, "max_position_embeddings", None),
        too_long=config.too_long,
    )
    kept = [rendered[index] for index in fitting.kept]
    dropped = len(rendered) - len(kept)
    longest = max(row.tokens for row in kept)
    context.emit(
        "note", text=f"{len(kept)} examples, the longest {longest} tokens, {dropped} left out as too long"
    )
    trainer = _build_trainer(config, context, model=model, tokenizer=tokenizer, rows=kept)
    train_resumable(trainer, context)
    merge_rows = [[*row.prompt, *row.reply] for row in kept[:_MERGE_ROWS]]
    trained, gap = whole_model(trainer, config.lora, merge_rows)
    rows = loss_rows(trainer)
    outputs = {
        "model": write_model(context, trained, tokenizer),
        "metrics": metrics.write_table(context, rows),
        "samples": metrics.write_samples(context, _as_trained(tokenizer, kept[:_SAMPLES])),
        "figures": metrics.write_figures(context, rows, _FIGURES),
    }
    summary = {
        "examples": len(kept),
        "too_long": dropped,
        "longest_tokens": longest,
        "steps": trainer.state.global_step,
        "loss": rows[-1]["loss"],
        "merge_gap": gap,
        "device": device,
    }
    return StageResult(outputs, summary)


def _build_trainer(
    config: SftConfig, context: StageContext, *, model: Any, tokenizer: Any, rows: Sequence[Rendered]
) -> SFTTrainer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from posttrain.training.backends.trl import SCHEDULES, autocasts, common_arguments
    from posttrain.training.backends.trl_callbacks import StageCallback
    from posttrain.training.lora import adapter_config, cast_adapters

    micro = config.micro_batch or config.batch_size
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    arguments = SFTConfig(
        **common_arguments(context, device=model.device.type, save_every=config.save_every, seed=config.seed),
        bf16=autocasts(config.dtype, config.lora),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        packing=False,
        completion_only_loss=True,
    )
    columns = [
        {
            "input_ids": [*row.prompt, *row.reply],
            "completion_mask": [0] * len(row.prompt) + [1] * len(row.reply),
        }
        for row in rows
    ]
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(columns),
        processing_class=tokenizer,
        peft_config=None if config.lora is None else adapter_config(config.lora, model),
        callbacks=[StageCallback(context, steps)],
    )
    cast_adapters(config.lora, trainer.model)
    return trainer


def _as_trained(tokenizer: Any, rows: Sequence[Rendered]) -> list[dict[str, Any]]:
    return [
        {"prompt": tokenizer.decode(row.prompt), "learned": tokenizer.decode(row.reply), "tokens": row.tokens}
        for row in rows
    ]
