"""Stage ``grpo``: group relative policy optimisation (Shao et al. 2024, DeepSeekMath) on TRL's ``GRPOTrainer``.

The R1-Zero recipe is this stage with two verifiers, accuracy and format: no demonstrations and no reward model. One
optimizer step draws ``prompts_per_step`` prompts times ``completions`` answers, scores them, and takes one gradient
step on-policy (or several, with ``reuse``). Read top to bottom: config, run, trainer, outputs.

Resume is exact because every step is a generation boundary, checkpoints are sealed before they count, and nothing that
depends on the clock enters an artifact. Left out: a reference that is refreshed on the way (R1 does it by chaining
stages), vLLM (another environment), multi-GPU launch (``accelerate launch`` around the same stage).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, check_disjoint, check_prompts, read_prompts
from posttrain.rewards.config import R1_ZERO_REWARDS, RewardConfig
from posttrain.training.health import HealthConfig
from posttrain.training.preflight import PreflightConfig

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

    from posttrain.rewards.pool import VerifierPool

_FIGURES = {
    "reward": "Reward",
    "rewards/accuracy/mean": "Accuracy of sampled training answers",
    "completions/mean_length": "Completion length (tokens)",
    "entropy": "Token entropy (nats)",
    "frac_reward_zero_std": "Share of groups with equal rewards",
}


class LoraSettings(BaseModel):
    """Low-rank adapters (PEFT) instead of full weights; merged into the model at the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    first_layer: int = Field(0, ge=0)
    """Layers before this one get no adapter, so that the backward pass ends there."""
    dtype: Literal["float32", "model"] = "float32"
    """Type of the adapters. ``model`` is that of the weights, and bfloat16 then runs without autocast: coarser
    updates for less work a step."""


class GrpoConfig(StageConfig):
    """Config of the ``grpo`` stage."""

    rewards: RewardConfig = R1_ZERO_REWARDS
    """Verifiers with their weights."""
    steps: int = Field(100, ge=1)
    """Optimizer steps."""
    prompts_per_step: int = Field(16, ge=1)
    completions: int = Field(16, ge=2)
    """Completions per prompt: the group that an advantage is relative to."""
    micro_batch: int | None = Field(None, ge=1)
    """Completions per forward and backward pass; default all of a step. Lower it when memory runs out."""
    reuse: int = Field(1, ge=1)
    """Gradient steps on each batch of completions (TRL's ``num_iterations``)."""
    max_completion_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(3, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    adam_beta2: float = Field(0.95, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    beta: float = Field(0.0, ge=0)
    """Weight of the KL penalty to the starting model; 0 needs no reference model."""
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    lora: LoraSettings | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training. On a GPU, bfloat16 with LoRA saves memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = Field(25, ge=1)
    """Steps between checkpoints; must fall on a generation boundary (a multiple of ``reuse``)."""
    preflight: PreflightConfig = PreflightConfig()
    health: HealthConfig = HealthConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> GrpoConfig:
        total = self.prompts_per_step * self.completions
        if self.micro_batch and total % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide the {total} completions of a step; "
                "change `micro_batch`"
            )
        if self.save_every % self.reuse:
            raise ValueError(
                f"save_every {self.save_every} is not a multiple of reuse {self.reuse}: a checkpoint inside a round of "
                "completions cannot be resumed exactly; change `save_every`"
            )
        if self.steps % self.reuse:
            raise ValueError(f"steps {self.steps} is not a multiple of reuse {self.reuse}; change `steps`")
        return self


def run_grpo(config: GrpoConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Reinforce a model. Inputs: ``model``, ``prompts``, optional ``heldout`` (checked to be disjoint).

    Outputs: ``model``, ``metrics`` (one row a step), ``samples`` (every completion with reward parts and advantage),
    ``figures``. Raises PreflightError, HealthError, ModelError, DataError.
    """
    import torch

    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device
    from posttrain.rewards.pool import VerifierPool
    from posttrain.training.preflight import run_preflight

    torch.set_num_threads(context.threads)
    prompts = _read(context, inputs["prompts"], "training")
    if "heldout" in inputs:
        check_disjoint(prompts, _read(context, inputs["heldout"], "held-out"))
    folder = context.store.view(inputs["model"])
    device = pick_device(config.device)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=config.dtype, device=device)
    with VerifierPool(config.rewards) as pool:
        passed = run_preflight(
            config.preflight,
            model=model,
            tokenizer=tokenizer,
            prompts=prompts,
            pool=pool,
            config_of_stage=config,
            context=context,
        )
        trainer = _build_trainer(
            config, context, model=model, tokenizer=tokenizer, prompts=prompts, pool=pool
        )
        _train(trainer, context)
    trained = trainer.model
    if config.lora is not None:
        trained = trained.merge_and_unload()
    rows = [dict(row) for row in trainer.state.log_history if "reward" in row]
    outputs = _write_outputs(context, trained, tokenizer, rows)
    last = rows[-1]
    summary = {
        "steps": config.steps,
        "reward": last["reward"],
        "accuracy": last.get("rewards/accuracy/mean"),
        "completion_tokens": last.get("completions/mean_length"),
        "preflight": passed,
        "device": device,
    }
    return StageResult(outputs, summary)


def trainer_arguments(config: GrpoConfig, folder: Path, device: str) -> GRPOConfig:
    """The stage's config as TRL's: what a bare TRL script with the same settings would use."""
    from trl import GRPOConfig

    total = config.prompts_per_step * config.completions
    micro = config.micro_batch or total
    schedules = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=device == "cpu",
        bf16=config.dtype == "bfloat16" and (config.lora is None or config.lora.dtype == "float32"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=total // micro,
        steps_per_generation=total // micro,
        num_generations=config.completions,
        num_iterations=config.reuse,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        top_p=1.0,
        top_k=0,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedules[config.schedule],
        warmup_steps=config.warmup_steps,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        beta=config.beta,
        loss_type=config.loss,
        scale_rewards=config.scale_rewards,
        reward_weights=[item.weight for item in config.rewards.verifiers],
        max_steps=config.steps,
        logging_steps=1,
        log_completions=True,
        num_completions_to_print=0,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        seed=config.seed,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )


def _read(context: StageContext, artifact: Artifact, name: str) -> list[PromptRow]:
    rows = read_prompts(context.store.view(artifact) / PROMPTS_FILE)
    check_prompts(rows, name)
    return rows


def _build_trainer(
    config: GrpoConfig,
    context: StageContext,
    *,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptRow],
    pool: VerifierPool,
) -> GRPOTrainer:
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOTrainer

    from posttrain.engines.model_folder import prefills_think
    from posttrain.rewards.trl_adapter import TrlOptions, as_trl_rewards
    from posttrain.training.callbacks import StageCallback

    stops = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    prefilled = prefills_think(tokenizer, prompts[0].messages())
    rewards = as_trl_rewards(pool, TrlOptions(stop_token_ids=stops, think_prefilled=prefilled))
    rows = [{"prompt": row.messages(), "answer": row.answer, "prompt_id": row.id} for row in prompts]
    peft_config = None
    if config.lora is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=config.lora.target_modules
            if isinstance(config.lora.target_modules, str)
            else list(config.lora.target_modules),
            exclude_modules=_layers_before(model, config.lora.first_layer),
            task_type="CAUSAL_LM",
        )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards.functions,
        args=trainer_arguments(config, context.workdir / "trainer", str(model.device.type)),
        train_dataset=Dataset.from_list(rows),
        processing_class=_as_written(tokenizer),
        peft_config=peft_config,
        callbacks=[StageCallback(context, config.health, config.steps)],
    )
    trainer.remove_callback(PrinterCallback)
    if config.lora is not None and config.lora.dtype == "model":
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(model.dtype)
    return trainer


def _as_written(tokenizer: Any) -> Any:
    """A copy without the response template: TRL would take completions apart and hand verifiers a rebuilt text."""
    plain = copy.deepcopy(tokenizer)
    plain.response_template = None
    return plain


def _layers_before(model: Any, first: int) -> list[str] | None:
    """Names of the linear layers in blocks numbered below ``first``; None where there are none."""
    names = [
        name
        for name, _ in model.named_modules()
        if (m := re.search(r"\.(\d+)\.", name)) and int(m[1]) < first
    ]
    return names or None


def _train(trainer: GRPOTrainer, context: StageContext) -> None:
    from posttrain.training.checkpoints import latest_complete

    checkpoint = latest_complete(context.workdir / "trainer")
    if checkpoint is not None:
        context.emit("stage_resumed", from_step=int(checkpoint.name.rsplit("-", 1)[-1]))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _write_outputs(
    context: StageContext, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Artifact]:
    from posttrain.engines.model_folder import save_model
    from posttrain.training import metrics

    parameters = sum(p.numel() for p in model.parameters())
    with context.writer("model", "model", meta={"parameters": parameters}) as writer:
        save_model(model, tokenizer, writer.directory)
        trained = writer.commit()
    return {
        "model": trained,
        "metrics": metrics.write_table(context, rows),
        "samples": metrics.merge_samples(context, context.workdir / "trainer" / "completions"),
        "figures": metrics.write_figures(context, rows, _FIGURES),
    }
