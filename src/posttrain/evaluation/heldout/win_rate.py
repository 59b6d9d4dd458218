"""Stage ``win_rate``: how often each model's reply to an open prompt is preferred to the baseline's.

Here: one reply of every model to every held-out open prompt, a judge, wins, ties and losses with an interval. The
judge is a pointwise one (the planted rule of the procedural tasks, or a reward model) or compares the two replies in
both orders (a language model). Not here: verifiable prompts (``evaluate``). To add a judge: a config in ``WinJudge``
and its branch in ``_outcomes``.

*Covered*: paired by prompt, ties are half a win, prompts that the judge could not decide are left out and counted. A
language model is shown what follows the think block, as a reader would see it.
*Not covered*: whether the judge is right; the report names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.atomic import write_atomic
from posttrain.core.canonical import canonical_json
from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean
from posttrain.data import open_tasks
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, check_prompts, read_prompts
from posttrain.engines.judging import JudgeConfig
from posttrain.evaluation.heldout.records import WinRate, WinRateReport
from posttrain.rewards.parsing import final_part

WIN_RATES_FILE = "win_rates.json"
PAIRS_FILE = "pairs.jsonl"
_REWARD_MODEL_REPORT = "reward_model_report.json"
"""The file of a ``reward_model`` stage's report."""


class PlantedJudge(BaseModel):
    """The rule by which the procedural preferences were made: for the tiny recipes, it is the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["planted"] = "planted"


class RewardModelJudge(BaseModel):
    """The reward model given as input ``reward_model``: a reply wins where its score is higher by ``margin``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["reward_model"] = "reward_model"
    margin: float = Field(0.1, ge=0)
    """Standard deviations of the calibration set by which scores must differ; less is a tie."""


class PairwiseJudge(BaseModel):
    """A language model that sees both final replies, in both orders; input ``judge_model`` for a local one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["language_model"] = "language_model"
    judge: JudgeConfig


WinJudge: TypeAlias = Annotated[PlantedJudge | RewardModelJudge | PairwiseJudge, Field(discriminator="kind")]


class WinRateConfig(StageConfig):
    """Config of the ``win_rate`` stage."""

    baseline: str
    """Name under the input ``models`` of the model that the others are compared with."""
    judge: WinJudge = PlantedJudge()
    temperature: float = Field(1.0, ge=0)
    """0 compares greedy replies."""
    max_completion_tokens: int = Field(64, ge=1)
    batch_size: int = Field(256, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    evaluation_seed: int = 0
    """Seed of the sampling, the same for every model; not the recipe's seed."""


@dataclass(frozen=True, slots=True)
class _Contest:
    """A model's replies beside the baseline's, prompt by prompt."""

    prompts: Sequence[PromptRow]
    replies: Sequence[str]
    baseline: Sequence[str]


def run_win_rate(config: WinRateConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Compare. Inputs: ``models.<name>``, ``prompts`` (open ones are used), optional ``reward_model`` with its
    ``reward_model_report`` (so that the reader is told how far to trust it), ``judge_model``.

    Output: ``report`` with the rates and every pair.
    """
    import torch

    torch.set_num_threads(context.threads)
    models = {name.split(".", 1)[1]: a for name, a in inputs.items() if name.startswith("models.")}
    if config.baseline not in models:
        raise ConfigError(
            f"baseline {config.baseline!r} is not among the inputs `models`",
            hint=did_you_mean(config.baseline, models),
        )
    prompts = [
        row
        for row in read_prompts(context.store.view(inputs["prompts"]) / PROMPTS_FILE)
        if row.task != "reasoning"
    ]
    check_prompts(prompts, "open")
    replies = {name: _replies(config, context, artifact, prompts) for name, artifact in models.items()}
    rates, pairs = [], []
    for name in models:
        if name == config.baseline:
            continue
        contest = _Contest(prompts, replies[name], replies[config.baseline])
        outcomes = _outcomes(config, inputs, context, contest)
        pairs += [
            {
                "model": name,
                "prompt": p.id,
                "question": p.question,
                "reply": r,
                "baseline_reply": b,
                "outcome": o,
            }
            for p, r, b, o in zip(prompts, replies[name], replies[config.baseline], outcomes, strict=True)
        ]
        rates.append(win_rate(name, outcomes))
    report = WinRateReport(
        baseline=config.baseline,
        suite=inputs["prompts"].digest,
        judge=_introduced(config.judge, inputs, context),
        prompts=len(prompts),
        rates=tuple(rates),
    )
    with context.writer("report", "report", meta={"prompts": len(prompts)}) as writer:
        writer.add_bytes(WIN_RATES_FILE, report.to_bytes())
        writer.add_bytes(PAIRS_FILE, b"".join(canonical_json(pair) + b"\n" for pair in pairs))
        artifact = writer.commit()
    summary = {rate.name: rate.value for rate in rates}
    text = ", ".join(f"{rate.name} {rate.value:.1%}" for rate in rates if rate.value is not None)
    context.emit("note", text=f"preferred to {config.baseline}: {text}")
    return StageResult({"report": artifact}, summary)


def win_rate(name: str, outcomes: Sequence[float | None]) -> WinRate:
    """Count ``outcomes`` (1, 0.5, 0 or None a prompt) and put the interval around their mean."""
    from posttrain.statistics.intervals import clustered_proportion

    decided = [outcome for outcome in outcomes if outcome is not None]
    estimate = clustered_proportion(decided, len(decided)) if len(decided) > 1 else None
    return WinRate(
        name=name,
        wins=decided.count(1.0),
        ties=decided.count(0.5),
        losses=decided.count(0.0),
        undecided=len(outcomes) - len(decided),
        value=estimate.value if estimate else None,
        low=estimate.low if estimate else None,
        high=estimate.high if estimate else None,
    )


def _introduced(judge: WinJudge, inputs: Mapping[str, Artifact], context: StageContext) -> str:
    """The judge in words for the reader, with its share of right verdicts where it is known."""
    if not isinstance(judge, RewardModelJudge) or "reward_model_report" not in inputs:
        return judge.kind
    tested = json.loads(context.store.read_bytes(inputs["reward_model_report"], _REWARD_MODEL_REPORT))
    share = tested["pair_accuracy"]
    return (
        f"reward model, which ranks {share['value']:.0%} of {share['n']} held-out pairs as people did "
        f"({share['low']:.0%} to {share['high']:.0%})"
    )


def _replies(
    config: WinRateConfig, context: StageContext, artifact: Artifact, prompts: Sequence[PromptRow]
) -> list[str]:
    """One reply a prompt; kept in the stage's folder, so that a killed stage does not ask a model twice."""
    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device, prefills_think
    from posttrain.engines.records import Sampling
    from posttrain.engines.transformers_engine import TransformersEngine

    kept = context.workdir / f"replies-{artifact.digest.removeprefix('sha256:')[:16]}.json"
    if kept.exists():
        done: list[str] = json.loads(kept.read_bytes())
        return done
    folder = context.store.view(artifact)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=config.dtype, device=pick_device(config.device))
    engine = TransformersEngine(model, tokenizer, batch_size=config.batch_size)

    def progress(now: int, total: int) -> None:
        context.stop.check()
        context.emit("progress", step=now, total=total)

    sampling = Sampling(
        config.max_completion_tokens, config.temperature, samples=1, seed=config.evaluation_seed
    )
    conversations = [row.messages() for row in prompts]
    begin = "<think>" if prefills_think(tokenizer, conversations[0]) else ""
    replies = [begin + group[0].text for group in engine.generate(conversations, sampling, progress)]
    write_atomic(kept, canonical_json(replies))
    return replies


def _outcomes(
    config: WinRateConfig, inputs: Mapping[str, Artifact], context: StageContext, contest: _Contest
) -> list[float | None]:
    """For each prompt: 1 won, 0.5 tied, 0 lost, None undecided."""
    judge = config.judge
    if isinstance(judge, PairwiseJudge):
        return _asked(config, inputs, context, contest)
    margin = 0.0
    if isinstance(judge, RewardModelJudge):
        from posttrain.engines.model_folder import pick_device
        from posttrain.engines.reward_scorer import RewardScorer

        margin = judge.margin
        folder = context.store.view(_required(inputs, "reward_model", judge.kind))
        scorer = RewardScorer.load(folder, dtype=config.dtype, device=pick_device(config.device))
        conversations = [row.messages() for row in contest.prompts]
        scores = [scorer.score(conversations, texts) for texts in (contest.replies, contest.baseline)]
    else:
        unknown = next((p for p in contest.prompts if p.question not in open_tasks.all_tasks()), None)
        if unknown is not None:
            raise ConfigError(
                f"the planted judge knows procedural open tasks only, not {unknown.question[:60]!r}",
                hint="set `judge.kind` to reward_model or language_model",
            )
        questions = [row.question for row in contest.prompts]
        scores = [
            [open_tasks.judge(question, text).total for question, text in zip(questions, texts, strict=True)]
            for texts in (contest.replies, contest.baseline)
        ]
    return [_compare(reply, other, margin) for reply, other in zip(*scores, strict=True)]


def _asked(
    config: WinRateConfig, inputs: Mapping[str, Artifact], context: StageContext, contest: _Contest
) -> list[float | None]:
    from posttrain.engines.judges import build_judge
    from posttrain.engines.judging import PairRequest
    from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device

    judge = config.judge
    assert isinstance(judge, PairwiseJudge)  # the caller looked

    def load() -> tuple[Any, Any]:
        folder = context.store.view(_required(inputs, "judge_model", judge.kind))
        model = load_model(folder, dtype=config.dtype, device=pick_device(config.device))
        return model, load_tokenizer(folder)

    asked = [
        PairRequest(row.id, tuple(row.messages()), final_part(reply), final_part(other))
        for row, reply, other in zip(contest.prompts, contest.replies, contest.baseline, strict=True)
    ]
    return [answer.first_wins for answer in build_judge(judge.judge, load).compare(asked)]


def _required(inputs: Mapping[str, Artifact], name: str, kind: str) -> Artifact:
    if name not in inputs:
        raise ConfigError(
            f"judge {kind!r} needs the input {name!r}", hint=f"add `{name}` to the stage's inputs"
        )
    return inputs[name]


def _compare(reply: float | None, other: float | None, margin: float) -> float | None:
    if reply is None or other is None:
        return None
    return 0.5 if abs(reply - other) <= margin else float(reply > other)
