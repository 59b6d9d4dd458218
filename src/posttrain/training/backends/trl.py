"""What every stage on a TRL trainer does in the same way: schedules, exact resume, the model at the end.

Private to the room in spirit: stages use it, nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext
from posttrain.training.lora import LoraSettings, merge_adapters

if TYPE_CHECKING:
    from transformers import Trainer

RateSchedule: TypeAlias = Literal["constant", "linear", "cosine"]
SCHEDULES: Mapping[RateSchedule, str] = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
}
"""Our names to those of transformers; each begins with the warm-up."""


def train_resumable(trainer: Trainer, context: StageContext) -> None:
    """Train from the last sealed checkpoint of the stage's folder, or from the start."""
    from transformers.trainer_callback import PrinterCallback

    from posttrain.training.checkpoints import latest_complete

    trainer.remove_callback(PrinterCallback)
    checkpoint = latest_complete(context.workdir / "trainer")
    if checkpoint is not None:
        context.emit("stage_resumed", from_step=int(checkpoint.name.rsplit("-", 1)[-1]))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def common_arguments(context: StageContext, *, device: str, save_every: int, seed: int) -> dict[str, Any]:
    """What trainers on rows of tokens are told in the same way: where, how often to save, to cut and report nothing."""
    return {
        "output_dir": str(context.workdir / "trainer"),
        "use_cpu": device == "cpu",
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": save_every,
        "save_total_limit": 2,
        "seed": seed,
        "report_to": [],
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def loss_rows(trainer: Trainer) -> list[dict[str, Any]]:
    """The trainer's log, a row a step, without TRL's token counter, which starts again when a run is resumed."""
    return [
        {name: value for name, value in row.items() if name != "num_tokens"}
        for row in trainer.state.log_history
        if "loss" in row
    ]


def whole_model(
    trainer: Trainer, lora: LoraSettings | None, rows: Sequence[Sequence[int]]
) -> tuple[Any, float | None]:
    """The trained model without adapters, and the merge's mean change in log-probability (None without adapters)."""
    if lora is None:
        return trainer.model, None
    return merge_adapters(trainer.model, rows)


def autocasts(dtype: str, lora: LoraSettings | None) -> bool:
    """Whether training runs in bfloat16 autocast: not where weights and adapters are both bfloat16."""
    return dtype == "bfloat16" and (lora is None or lora.dtype == "float32")


def without_dropout(lora: LoraSettings | None) -> bool:
    """Whether a trainer on preferences turns dropout off, as TRL does: not where adapters are to have it."""
    return lora is None or lora.dropout == 0


def write_model(context: StageContext, model: Any, tokenizer: Any) -> Artifact:
    """The output ``model``."""
    from posttrain.engines.model_folder import save_model

    parameters = sum(p.numel() for p in model.parameters())
    with context.writer("model", "model", meta={"parameters": parameters}) as writer:
        save_model(model, tokenizer, writer.directory)
        return writer.commit()
