"""Stage ``grpo``: group relative policy optimisation (Shao et al. 2024, DeepSeekMath) on TRL's ``GRPOTrainer``.

The R1-Zero recipe is this stage with two verifiers, accuracy and format: no demonstrations and no reward model. One
optimizer step draws ``prompts_per_step`` prompts times ``completions`` answers, scores them, and takes one gradient
step on-policy (or several, with ``reuse``). Read top to bottom: config, run, trainer, outputs.

Resume is exact because every step is a generation boundary, checkpoints are sealed before they count, and nothing that
depends on the clock enters an artifact. Left out: vLLM (another environment), multi-GPU launch (``accelerate launch``
around the same stage).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import ConfigError
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, check_disjoint, check_prompts, read_prompts
from posttrain.rewards.config import R1_ZERO_REWARDS, RewardConfig
from posttrain.training.backends.trl import RateSchedule
from posttrain.training.health import HealthConfig
from posttrain.training.lora import LoraSettings
from posttrain.training.preflight import PreflightConfig
from posttrain.training.routing import (
    PreferenceConfig,
    Routed,
    Schedule,
    check_routing,
    route,
    schedule_prompts,
)

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

    from posttrain.rewards.pool import VerifierPool
    from posttrain.training.backends.trl_callbacks import GuardCallback

_MERGE_ROWS = 4
_FIGURES = {
    "reward": "Reward",
    "rewards/accuracy/mean": "Accuracy of sampled training answers",
    "completions/mean_length": "Completion length (tokens)",
    "entropy": "Token entropy (nats)",
    "frac_reward_zero_std": "Share of groups with equal rewards",
}


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
    schedule: RateSchedule = "constant"
    """Learning rate after the warm-up."""
    adam_beta2: float = Field(0.95, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    beta: float = Field(0.0, ge=0)
    """Weight of the KL penalty to the starting model; 0 needs no reference model."""
    share_prompts: bool = True
    """Run each prompt once for its whole group, in sampling and in the loss: equal up to rounding, and faster, the
    longer prompts are beside completions. False is TRL's own loop, draw for draw."""
    reference_every: int | None = Field(None, ge=1)
    """Steps after which the policy becomes the model that the penalty is about, again and again (R1-Zero: 400); null
    keeps the starting model. A multiple of ``reuse``."""
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    lora: LoraSettings | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training. On a GPU, bfloat16 with LoRA saves memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    preference: PreferenceConfig | None = None
    """How reward models take part, for a run that has the inputs ``helpful`` or ``harmless``."""
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
        if self.reference_every and not self.beta:
            raise ValueError("reference_every without a KL penalty has no effect; set `beta` above 0")
        if self.reference_every and self.reference_every % self.reuse:
            raise ValueError(
                f"reference_every {self.reference_every} is not a multiple of reuse {self.reuse}: a round of "
                "completions has one reference; change `reference_every`"
            )
        if self.steps % self.reuse:
            raise ValueError(f"steps {self.steps} is not a multiple of reuse {self.reuse}; change `steps`")
        return self


def run_grpo(config: GrpoConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Reinforce a model. Inputs: ``model``, ``prompts``, optional ``open_prompts`` (further ones, from another stage),
    ``heldout`` (checked to be disjoint), and the reward models ``helpful`` and ``harmless`` for open prompts.

    Outputs: ``model``, ``metrics`` (one row a step), ``samples`` (every completion with reward parts and advantage),
    ``figures``. Raises PreflightError, HealthError, ModelError, DataError.
    """
    import torch

    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device
    from posttrain.rewards.pool import VerifierPool
    from posttrain.training.backends.trl import train_resumable, whole_model
    from posttrain.training.preflight import run_preflight

    torch.set_num_threads(context.threads)
    prompts = _read(context, inputs, "prompts", "open_prompts")
    heldout = _read(context, inputs, "heldout")
    check_disjoint(prompts, heldout)
    scorers = [name for name in ("helpful", "harmless") if name in inputs]
    check_routing(scorers, prompts, config.preference)
    folder = context.store.view(inputs["model"])
    device = pick_device(config.device)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=config.dtype, device=device)
    with VerifierPool(config.rewards) as pool:
        passed = run_preflight(
            config.preflight,
            model=model,
            tokenizer=tokenizer,
            prompts=[row for row in prompts if row.task == "reasoning"],
            pool=pool,
            config_of_stage=config,
            context=context,
        )
        loaded = _Loaded(model, tokenizer, prompts, heldout, pool)
        routed = _route(config, {name: inputs[name] for name in scorers}, context, loaded)
        trainer = _build_trainer(config, context, loaded, routed)
        train_resumable(trainer, context)
    prompt_ids = [
        tokenizer.apply_chat_template(row.messages(), add_generation_prompt=True, return_dict=False)
        for row in prompts[:_MERGE_ROWS]
    ]
    trained, gap = whole_model(trainer, config.lora, prompt_ids)
    rows = [dict(row) for row in trainer.state.log_history if "reward" in row]
    outputs = _write_outputs(context, trained, tokenizer, rows)
    last = rows[-1]
    summary = {
        "steps": config.steps,
        "reward": last["reward"],
        "accuracy": last.get("rewards/accuracy/mean"),
        "completion_tokens": last.get("completions/mean_length"),
        "preflight": passed,
        "merge_gap": gap,
        "device": device,
    }
    return StageResult(outputs, summary)


def trainer_arguments(config: GrpoConfig, folder: Path, device: str) -> GRPOConfig:
    """The stage's config as TRL's: what a bare TRL script with the same settings would use."""
    from trl import GRPOConfig

    from posttrain.training.backends.trl import SCHEDULES, autocasts

    total = config.prompts_per_step * config.completions
    micro = config.micro_batch or total
    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=device == "cpu",
        bf16=autocasts(config.dtype, config.lora),
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
        lr_scheduler_type=SCHEDULES[config.schedule],
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


def _read(context: StageContext, inputs: Mapping[str, Artifact], *names: str) -> list[PromptRow]:
    """The prompts of those of the inputs ``names`` that there are, as one set."""
    given = [inputs[name] for name in names if name in inputs]
    rows = [row for artifact in given for row in read_prompts(context.store.view(artifact) / PROMPTS_FILE)]
    if given:
        check_prompts(rows, "held-out" if names == ("heldout",) else "training")
    return rows


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a run has in memory."""

    model: Any
    tokenizer: Any
    prompts: Sequence[PromptRow]
    heldout: Sequence[PromptRow]
    pool: VerifierPool

    @property
    def think_prefilled(self) -> bool:
        """Whether the chat template opens the think block."""
        from posttrain.engines.model_folder import prefills_think

        return prefills_think(self.tokenizer, self.prompts[0].messages())


def _build_trainer(
    config: GrpoConfig, context: StageContext, loaded: _Loaded, routed: Routed | None
) -> GRPOTrainer:
    from datasets import Dataset
    from trl import GRPOTrainer

    from posttrain.rewards.trl_adapter import TrlOptions, as_trl_rewards
    from posttrain.training.backends.trl_callbacks import StageCallback
    from posttrain.training.backends.trl_grpo import SharedPromptTrainer
    from posttrain.training.lora import adapter_config, cast_adapters
    from posttrain.training.reference import move_reference

    model, tokenizer = loaded.model, loaded.tokenizer
    stops = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    options = TrlOptions(stop_token_ids=stops, think_prefilled=loaded.think_prefilled)
    rewards = as_trl_rewards(loaded.pool, options)
    rows = [
        {
            "prompt": row.messages(),
            "answer": row.answer,
            "prompt_id": row.id,
            "language": row.language,
            "task": row.task,
        }
        for row in (loaded.prompts if routed is None else routed.order)
    ]
    arguments = trainer_arguments(config, context.workdir / "trainer", str(model.device.type))
    functions = list(rewards.functions)
    if routed is not None:
        functions += routed.rewards
        arguments.reward_weights = [*rewards.weights, *routed.weights]
        arguments.shuffle_dataset = False  # the order is the schedule
    trainer = (SharedPromptTrainer if config.share_prompts else GRPOTrainer)(
        model=model,
        reward_funcs=functions,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=_as_written(tokenizer),
        peft_config=None if config.lora is None else adapter_config(config.lora, model),
        callbacks=[StageCallback(context, config.steps, config.health)],
    )
    cast_adapters(config.lora, trainer.model)
    if config.reference_every is not None:
        move_reference(trainer, config.reference_every)
    if routed is not None and routed.preference.guard is not None:
        trainer.add_callback(_guard(config, context, loaded, routed))
    return trainer


def _route(
    config: GrpoConfig, models: Mapping[str, Artifact], context: StageContext, loaded: _Loaded
) -> Routed | None:
    """The order of the prompts and the reward models on open ones; None for verifiable prompts only."""
    from posttrain.engines.reward_scorer import RewardScorer

    preference = config.preference
    if preference is None:
        return None
    device = str(loaded.model.device)
    scorers = {
        name: RewardScorer.load(context.store.view(model), dtype=config.dtype, device=device)
        for name, model in models.items()
    }
    schedule = Schedule(
        rounds=config.steps // config.reuse,
        prompts=config.prompts_per_step,
        quiet_rounds=preference.first_step(config.steps) // config.reuse,
        open_share=preference.open_share,
    )
    order = schedule_prompts(loaded.prompts, schedule, config.seed)
    return route(preference, scorers, order, think_prefilled=loaded.think_prefilled)


def _guard(config: GrpoConfig, context: StageContext, loaded: _Loaded, routed: Routed) -> GuardCallback:
    """The callback that looks at held-out prompts. Raises ConfigError where there are none."""
    from posttrain.training.backends.trl_callbacks import GuardCallback
    from posttrain.training.preflight import pass_rates

    preference, guard = routed.preference, routed.preference.guard
    assert guard is not None  # the caller looked
    rows = [row for row in loaded.heldout if row.task == "reasoning"][: guard.prompts]
    if not rows:
        raise ConfigError(
            "the guard of `preference` has no held-out prompts to look at",
            hint="give the stage the input `heldout`, or set `preference.guard: null`",
        )

    def look(model: Any) -> float:
        rates = pass_rates(model, loaded.tokenizer, rows, pool=loaded.pool, stage=config, tries=1)
        return sum(rates) / len(rates)

    return GuardCallback(
        guard,
        context,
        look,
        first_step=preference.first_step(config.steps),
        weights={
            reward.__name__: weight for reward, weight in zip(routed.rewards, routed.weights, strict=True)
        },
    )


def _as_written(tokenizer: Any) -> Any:
    """A copy without the response template: TRL would take completions apart and hand verifiers a rebuilt text."""
    plain = copy.deepcopy(tokenizer)
    plain.response_template = None
    return plain


def _write_outputs(
    context: StageContext, model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Artifact]:
    from posttrain.training import metrics
    from posttrain.training.backends.trl import write_model

    return {
        "model": write_model(context, model, tokenizer),
        "metrics": metrics.write_table(context, rows),
        "samples": metrics.merge_samples(context, context.workdir / "trainer" / "completions"),
        "figures": metrics.write_figures(context, rows, _FIGURES),
    }
