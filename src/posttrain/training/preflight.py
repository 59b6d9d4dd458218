"""Checks before any training: minutes saved, nights saved.

Here, in this order: gold answers score 1.0 under the recipe's own verifiers; the chat template round-trips, preserves
prefixes and ends assistant turns with the stop token; checkpoints fall on generation boundaries (the config refuses
others); the base model is sampled on some training prompts, and its pass-rate histogram is shown with the prompts that
are all-pass or all-fail counted, since those teach nothing. What cannot be right stops with PreflightError before a
step is taken. Not here: watching the run (``health``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from posttrain.artifacts.stage import StageContext
from posttrain.core.errors import PreflightError
from posttrain.data.prompts import PromptRow

if TYPE_CHECKING:
    from posttrain.rewards.pool import VerifierPool
    from posttrain.training.stages.grpo import GrpoConfig


class PreflightConfig(BaseModel):
    """How much the base model is tried before training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(32, ge=1)
    """Training prompts that the base model is sampled on."""
    samples: int = Field(8, ge=1)
    """Completions of each."""
    gold: int = Field(64, ge=1)
    """Training prompts whose gold answer is scored."""
    max_dead_share: float = Field(0.98, ge=0, le=1)
    """Refuse to train when a larger share of the tried prompts is all-pass or all-fail; 1 never refuses."""


def run_preflight(
    config: PreflightConfig,
    *,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptRow],
    pool: VerifierPool,
    config_of_stage: GrpoConfig,
    context: StageContext,
) -> dict[str, Any]:
    """Run every check. Returns the figures for the run record; raises PreflightError with what to change."""
    check_gold_answers(prompts[: config.gold], pool, tokenizer)
    check_template(tokenizer, prompts[0])
    check_lengths(model, tokenizer, prompts, config_of_stage.max_completion_tokens)
    tried = prompts[: config.prompts]
    rates = pass_rates(model, tokenizer, tried, pool=pool, stage=config_of_stage, tries=config.samples)
    histogram = pass_histogram(rates)
    dead = sum(rate in (0.0, 1.0) for rate in rates)
    text = f"base pass rate on {len(rates)} prompts: " + " ".join(f"{k}:{v}" for k, v in histogram.items())
    context.emit("note", text=f"{text} (all-pass {rates.count(1.0)}, all-fail {rates.count(0.0)})")
    if dead / len(rates) > config.max_dead_share:
        raise PreflightError(
            f"{dead} of {len(rates)} prompts are all-pass or all-fail for the base: nothing to learn from",
            hint="choose prompts that the base solves sometimes, or set `preflight.max_dead_share` to 1",
        )
    return {
        "pass_rates": histogram,
        "all_pass": rates.count(1.0),
        "all_fail": rates.count(0.0),
        "tried": len(rates),
    }


def check_gold_answers(prompts: Sequence[PromptRow], pool: VerifierPool, tokenizer: Any) -> None:
    """The best possible answer to each prompt gets full marks from the recipe's own verifiers."""
    from posttrain.engines.model_folder import prefills_think
    from posttrain.rewards import check_gold

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    prefilled = prefills_think(tokenizer, prompts[0].messages())
    failures = check_gold(pool, [row.answer for row in prompts], think_prefilled=prefilled, encode=encode)
    if failures:
        first = failures[0]
        raise PreflightError(
            f"the gold answers of {len(failures)} of {len(prompts)} prompts do not score full marks; first "
            f"{first.reference!r} of prompt {prompts[first.index].id}: {first.score.reason}",
            hint="check the `answer` column of the prompts and the verifiers under `rewards`",
        )


def check_template(tokenizer: Any, row: PromptRow) -> None:
    """The template keeps what is said, keeps the prompt as a prefix, and ends the assistant's turn with a stop."""
    messages = row.messages()
    answer = "<think>1+1=2</think><answer>2</answer>"
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], tokenize=False
    )
    if row.question not in prompt:
        raise PreflightError(
            "the chat template drops the user's message", hint="fix the model's chat template"
        )
    if not whole.startswith(prompt):
        raise PreflightError(
            "the chat template changes the prompt once an answer follows it: training would see another prompt "
            "than generation did",
            hint="use a prefix-preserving chat template",
        )
    tail = whole[len(prompt) :]
    if answer not in tail and answer.split("</think>")[1] not in tail:
        raise PreflightError(
            "the chat template drops the assistant's answer", hint="fix the model's chat template"
        )
    if tokenizer.eos_token not in tail:
        raise PreflightError(
            f"the end token {tokenizer.eos_token!r} does not close the assistant's turn in the chat template: the stop "
            "would never be trained",
            hint="set `eos_token` to the template's end-of-turn token",
        )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) != prompt:
        raise PreflightError(
            "the tokenizer does not give back the text of a prompt",
            hint="check the tokenizer's normalizer and decoder",
        )


def check_lengths(model: Any, tokenizer: Any, prompts: Sequence[PromptRow], completion_tokens: int) -> None:
    """The longest prompt and a full completion fit into the model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return
    texts = [
        tokenizer.apply_chat_template(r.messages(), tokenize=False, add_generation_prompt=True)
        for r in prompts
    ]
    longest = max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    if longest + completion_tokens > limit:
        raise PreflightError(
            f"a prompt of {longest} tokens and {completion_tokens} of completion exceed the model's {limit} positions",
            hint="lower `max_completion_tokens` or drop the longest prompts",
        )


def pass_rates(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptRow],
    *,
    pool: VerifierPool,
    stage: GrpoConfig,
    tries: int,
) -> list[float]:
    """Share of right completions among ``tries`` of the model as it is, for each prompt."""
    from posttrain.engines.model_folder import prefills_think
    from posttrain.engines.records import Sampling
    from posttrain.engines.transformers_engine import TransformersEngine
    from posttrain.rewards import Sample

    sampling = Sampling(
        max_new_tokens=stage.max_completion_tokens,
        temperature=stage.temperature,
        samples=tries,
        seed=stage.seed,
    )
    groups = TransformersEngine(model, tokenizer).generate([row.messages() for row in prompts], sampling)
    prefilled = prefills_think(tokenizer, prompts[0].messages())
    samples = [
        Sample(
            c.text,
            row.answer,
            think_prefilled=prefilled,
            token_count=c.tokens,
            truncated=c.finish == "length",
            language=row.language,
        )
        for row, group in zip(prompts, groups, strict=True)
        for c in group
    ]
    scores = pool.score_many(samples)
    rates = []
    for index in range(len(prompts)):
        group_scores = scores[index * tries : (index + 1) * tries]
        passed = [accuracy_of(score.parts) for score in group_scores]
        known = [value for value in passed if value is not None]
        rates.append(sum(value == 1.0 for value in known) / len(known) if known else 0.0)
    return rates


def accuracy_of(parts: Mapping[str, float | None]) -> float | None:
    """The accuracy part of a score; None where there is none or it could not be scored."""
    return next((value for name, value in parts.items() if name.startswith("accuracy")), None)


def pass_histogram(rates: Sequence[float]) -> dict[str, int]:
    """Prompts by pass rate: exactly 0, four quarters between, exactly 1."""
    names = ["0", "0-25%", "25-50%", "50-75%", "75-100%", "1"]
    counts = dict.fromkeys(names, 0)
    for rate in rates:
        counts["0" if rate == 0 else "1" if rate == 1 else names[1 + min(3, int(rate * 4))]] += 1
    return counts
