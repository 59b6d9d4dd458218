"""Stage ``evaluate``: a model on a frozen set of held-out prompts, once greedily and several times sampled.

Here: generate, score with the recipe's verifiers, and turn each completion into a ``CaseRow``. Not here: the intervals
(``measures``), the page (``report_stage``). The success that is reported is the accuracy verifier's; next to it stands
whether the right number was there in any form, so that a gain in format alone is seen for what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, check_prompts, read_prompts
from posttrain.rewards.config import R1_ZERO_REWARDS, RewardConfig

if TYPE_CHECKING:
    from posttrain.engines.records import Completion
    from posttrain.evaluation.heldout.records import CaseRow, Mode
    from posttrain.rewards.pool import VerifierPool
    from posttrain.rewards.records import AnswerSource

REPORT_FILE = "evaluation.json"
CASES_FILE = "cases.jsonl"


class EvaluateConfig(StageConfig):
    """Config of the ``evaluate`` stage."""

    rewards: RewardConfig = R1_ZERO_REWARDS
    """The recipe's verifiers; one must be an ``accuracy``, one whose name holds ``format`` judges the form."""
    samples: int = Field(4, ge=1)
    """Sampled completions of each prompt, at temperature 1."""
    temperature: float = Field(1.0, gt=0)
    max_completion_tokens: int = Field(64, ge=1)
    batch_size: int = Field(256, ge=1)
    """Completions decoded at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    evaluation_seed: int = 0
    """Seed of the sampling. It is not the recipe's seed: every model of a comparison meets the same draws."""


def run_evaluate(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Measure a model. Inputs: ``model``, ``prompts``. Output: ``report`` (the evaluation with every case)."""
    import torch

    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device
    from posttrain.evaluation.heldout.measures import measure_rows
    from posttrain.evaluation.heldout.records import dump_case_rows

    torch.set_num_threads(context.threads)
    prompts = read_prompts(context.store.view(inputs["prompts"]) / PROMPTS_FILE)
    check_prompts(prompts, "held-out")
    folder = context.store.view(inputs["model"])
    model = load_model(folder, dtype=config.dtype, device=pick_device(config.device))
    rows = evaluate_model(config, model, load_tokenizer(folder), prompts=prompts, context=context)
    sampling = {
        "temperature": config.temperature,
        "max_new_tokens": config.max_completion_tokens,
        "samples_per_case": config.samples,
        "seed": config.evaluation_seed,
    }
    report = measure_rows(
        rows, model=inputs["model"].digest, suite=inputs["prompts"].digest, sampling=sampling
    )
    with context.writer("report", "report", meta={"cases": report.cases}) as writer:
        writer.add_bytes(REPORT_FILE, report.to_bytes())
        writer.add_bytes(CASES_FILE, dump_case_rows(rows))
        artifact = writer.commit()
    summary = {m.name: m.value for m in report.measures if m.name.endswith(("success@1", "format_rate"))}
    context.emit("note", text=", ".join(f"{k} {v:.1%}" for k, v in summary.items() if v is not None))
    return StageResult({"report": artifact}, summary)


def evaluate_model(
    config: EvaluateConfig,
    model: Any,
    tokenizer: Any,
    *,
    prompts: Sequence[PromptRow],
    context: StageContext,
) -> list[CaseRow]:
    """One greedy and ``config.samples`` sampled rows for each prompt."""
    from posttrain.engines.records import Sampling
    from posttrain.engines.transformers_engine import TransformersEngine
    from posttrain.rewards.pool import VerifierPool

    engine = TransformersEngine(model, tokenizer, batch_size=config.batch_size)
    conversations = [row.messages() for row in prompts]
    limit, total, done = config.max_completion_tokens, len(prompts) * (1 + config.samples), 0
    rows: list[CaseRow] = []

    def progress(now: int, _: int) -> None:
        context.stop.check()
        context.emit("progress", step=done + now, total=total)

    with VerifierPool(config.rewards) as pool:
        plans: list[tuple[Mode, Sampling]] = [
            ("greedy", Sampling(max_new_tokens=limit, temperature=0)),
            (
                "sampled",
                Sampling(limit, config.temperature, samples=config.samples, seed=config.evaluation_seed),
            ),
        ]
        for mode, sampling in plans:
            groups = engine.generate(conversations, sampling, progress)
            rows += _score(mode, prompts, groups, tokenizer=tokenizer, pool=pool)
            done += len(prompts) * sampling.samples
    return rows


def _score(
    mode: Mode,
    prompts: Sequence[PromptRow],
    groups: Sequence[Sequence[Completion]],
    *,
    tokenizer: Any,
    pool: VerifierPool,
) -> list[CaseRow]:
    from posttrain.data.languages import mixes_languages
    from posttrain.engines.model_folder import prefills_think
    from posttrain.evaluation.heldout.records import CaseRow
    from posttrain.rewards import Sample, error_kind
    from posttrain.rewards.parsing import reasoning_of

    sources = [v.verifier.answer_source for v in pool.config.verifiers if v.verifier.kind == "accuracy"]
    source: AnswerSource = sources[0] if sources else "tag"
    pairs = [(p, i, c) for p, group in zip(prompts, groups, strict=True) for i, c in enumerate(group)]
    prefilled = prefills_think(tokenizer, prompts[0].messages())
    samples = [
        Sample(
            c.text,
            p.answer,
            p.question,
            think_prefilled=prefilled,
            token_count=c.tokens,
            truncated=c.finish == "length",
            language=p.language,
        )
        for p, _, c in pairs
    ]
    thoughts = [reasoning_of(sample.completion) for sample in samples]
    lengths = [len(ids) for ids in tokenizer(thoughts, add_special_tokens=False)["input_ids"]]
    rows = []
    for (prompt, index, completion), sample, score, thought, length in zip(
        pairs, samples, pool.score_many(samples), thoughts, lengths, strict=True
    ):
        parts = dict(score.parts)
        accuracy = next((v for name, v in parts.items() if name.startswith("accuracy")), None)
        form = next((v for name, v in parts.items() if "format" in name), None)
        kind = error_kind(sample, accuracy, answer_source=source)
        rows.append(
            CaseRow(
                case_id=prompt.id,
                sample_index=index,
                mode=mode,
                question=prompt.question,
                reference=prompt.answer,
                completion=completion.text,
                correct=None if accuracy is None else accuracy == 1.0,
                correct_anywhere=None
                if accuracy is None
                else accuracy == 1.0 or kind == "broken_format_right_number",
                format_ok=form == 1.0,
                mixed_language=mixes_languages(thought, prompt.language, question=prompt.question),
                language=prompt.language,
                think_tokens=length,
                completion_tokens=completion.tokens,
                truncated=sample.truncated,
                error_kind=None if kind == "correct" else kind,
                reward_parts=parts,
                tags=prompt.tags,
            )
        )
    return rows
