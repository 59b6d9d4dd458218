"""Stage ``rejection_sample``: a model's own best completions as examples, and why each of the others is not one.

Here, in this order for each shard of prompts: sample several completions, apply the rules (right answer, form, one
language, no repetition, no overlong or code-block noise), ask the judge about what is left, keep the best of each
prompt. R1 made its reasoning examples this way, and, with ``think_first`` and ``target: final``, the others: the model
thinks before it writes, and only what follows the thought is kept. With ``rules: null`` it is best-of-n (the stage
``best_of_n`` has such defaults). Not here: what the rules say (``rewards``), how a judge is asked
(``engines.judges``), how examples are learned (``sft``).

A shard that is done is kept in the stage's folder, so a killed stage goes on with the next one. A verification that
failed leaves its sample out as ``unscored``; a judge that failed rejects nothing, and is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.atomic import write_atomic
from posttrain.core.canonical import canonical_json
from posttrain.core.errors import ConfigError, StageError
from posttrain.data.examples import (
    EXAMPLES_FILE,
    ExampleRow,
    check_examples,
    example_set_facts,
    examples_to_jsonl,
)
from posttrain.data.prompt_sources import Shot
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, check_prompts, read_prompts
from posttrain.engines.judging import ReplyJudgeConfig, RewardModelJudgeConfig
from posttrain.training.rejection_rules import (
    Candidate,
    Rules,
    Target,
    broken_rule,
    copied_shot,
    empty_target,
    target_of,
)

if TYPE_CHECKING:
    from posttrain.engines.judging import ReplyJudge
    from posttrain.engines.records import Completion
    from posttrain.engines.transformers_engine import TransformersEngine
    from posttrain.rewards.pool import VerifierPool

REJECTED_FILE = "rejected.jsonl"


class RejectionSampleConfig(StageConfig):
    """Config of the ``rejection_sample`` stage."""

    max_prompts: int | None = Field(None, ge=1)
    """At most so many prompts, the first of the set; by default all."""
    samples: int = Field(4, ge=1)
    """Completions drawn for each prompt."""
    keep: int = Field(1, ge=1)
    """At most so many examples of one prompt; equal texts count once."""
    temperature: float = Field(1.0, gt=0)
    max_completion_tokens: int = Field(64, ge=1)
    think_first: bool = False
    """Open the think block for the model, so that it thinks before it answers; ``simple`` prompts are always answered
    directly."""
    think_shots: tuple[Shot, ...] = ()
    """Replies with a thought before them, for a model that does not think when the block is opened: with
    ``think_first`` they come before each prompt that is sampled, and are left out of the example. A completion that
    repeats one is rejected, whatever the rules."""
    target: Target = "whole"
    """What becomes the example's response: everything, or what follows the think block."""
    rules: Rules | None = Rules()
    """Null keeps all but empty replies for the judge, cut-off ones too: best-of-n."""
    judge: ReplyJudgeConfig | None = None
    """Who chooses among what the rules left; without one, the first passes."""
    min_judgement: float | None = None
    """Completions that are judged lower are rejected; null rejects none. On the judge's own scale: 0 to 1 for a
    language model, standard deviations for a reward model, whose 0 is the mean of its calibration replies."""
    shard_prompts: int = Field(256, ge=1)
    """Prompts between two points from which a killed stage goes on."""
    batch_size: int = Field(256, ge=1)
    """Completions decoded at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> RejectionSampleConfig:
        if self.think_shots and not self.think_first:
            raise ValueError("`think_shots` are shown with `think_first`; set it, or remove them")
        low = self.min_judgement
        if low is not None and not 0 <= low <= 1 and not isinstance(self.judge, RewardModelJudgeConfig):
            raise ValueError(
                f"min_judgement {low:g} is outside 0 to 1, the scale of every judge but a reward model; "
                "change `min_judgement` or `judge`"
            )
        return self


def run_rejection_sample(
    config: RejectionSampleConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Sample and choose. Inputs: ``model``, ``prompts``, optional ``judge_model`` and ``reward_model`` (for a judge of
    kind ``model`` or ``reward_model``).

    Outputs: ``examples`` (the kept ones, with a card) and ``rejected`` (a reason for each other sample). Raises
    StageError where nothing was kept.
    """
    import torch

    torch.set_num_threads(context.threads)
    prompts = read_prompts(context.store.view(inputs["prompts"]) / PROMPTS_FILE)
    check_prompts(prompts, "training")
    prompts = prompts[: config.max_prompts]
    candidates = _all_shards(config, inputs, context, prompts)
    kept, rejected = choose(config, candidates)
    counts = dict(sorted(Counter(c.reason.split(":")[0] for c in rejected).items()))
    if not kept:
        raise StageError(
            f"none of {len(candidates)} completions was kept; reasons: {counts}",
            hint="raise `samples`, or loosen `rules.minimum` or `min_judgement`",
        )
    rows = _examples(config, prompts, kept, source=inputs["model"].digest[:19])
    check_examples(rows, "sampled")
    facts = {
        **example_set_facts(rows),
        "prompts": len(prompts),
        "sampled": len(candidates),
        "rejected": counts,
        "judge_failures": sum(c.judge_note != "" and c.judgement is None for c in candidates),
    }
    with context.writer("dataset", "examples", meta={"format": "examples", **facts}) as writer:
        writer.add_bytes(EXAMPLES_FILE, examples_to_jsonl(rows))
        writer.add_bytes("README.md", _card(config, facts).encode())
        examples = writer.commit()
    with context.writer("dataset", "rejected", meta={"format": "rejected", "rows": len(rejected)}) as writer:
        writer.add_bytes(REJECTED_FILE, b"".join(canonical_json(asdict(c)) + b"\n" for c in rejected))
        reasons = writer.commit()
    context.emit("note", text=f"{len(rows)} examples of {len(candidates)} completions; rejected: {counts}")
    return StageResult({"examples": examples, "rejected": reasons}, facts)


def choose(
    config: RejectionSampleConfig, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], list[Candidate]]:
    """The kept candidates, and the others with their reasons.

    Equal judgements rank by sample. Where the judge failed, a candidate ranks in the middle of those of its prompt that
    have a judgement, after its equals.
    """
    kept, rejected = [c for c in candidates if not c.reason], [c for c in candidates if c.reason]
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in kept:
        by_prompt.setdefault(candidate.prompt, []).append(candidate)
    chosen: list[Candidate] = []
    for group in by_prompt.values():
        seen: set[str] = set()
        taken = 0
        for candidate in _ranked(group):
            text = target_of(candidate.text, config.target)
            if text in seen:
                rejected.append(replace(candidate, reason="duplicate: the same text was kept"))
            elif taken == config.keep:
                rejected.append(replace(candidate, reason="not the best: others of the prompt were kept"))
            else:
                chosen.append(candidate)
                seen.add(text)
                taken += 1
    return chosen, rejected


def _ranked(group: Sequence[Candidate]) -> list[Candidate]:
    judged = [c.judgement for c in group if c.judgement is not None]
    middle = median(judged) if judged else 0.0

    def rank(candidate: Candidate) -> tuple[float, bool, int]:
        value = candidate.judgement
        return (-middle if value is None else -value, value is None, candidate.sample)

    return sorted(group, key=rank)


def _all_shards(
    config: RejectionSampleConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    prompts: Sequence[PromptRow],
) -> list[Candidate]:
    from posttrain.rewards.pool import VerifierPool

    starts = range(0, len(prompts), config.shard_prompts)
    files = [context.workdir / f"shard-{number:05d}.json" for number in range(len(starts))]
    done = sum(file.exists() for file in files)
    if done:
        context.emit("stage_resumed", from_step=done)
    candidates: list[Candidate] = []
    sampler: _Sampler | None = None
    rules = config.rules or Rules(minimum={})
    with VerifierPool(rules.verifiers) as pool:
        for number, (start, file) in enumerate(zip(starts, files, strict=True)):
            context.stop.check()
            if not file.exists():
                sampler = sampler or _Sampler(config, inputs, context, pool)
                shard = sampler.shard(number, prompts[start : start + config.shard_prompts])
                write_atomic(file, canonical_json([asdict(c) for c in shard]))
            candidates += [Candidate(**record) for record in json.loads(file.read_bytes())]
            context.emit("progress", step=number + 1, total=len(files))
    return candidates


class _Sampler:
    """The loaded model with its rules and its judge."""

    def __init__(
        self,
        config: RejectionSampleConfig,
        inputs: Mapping[str, Artifact],
        context: StageContext,
        pool: VerifierPool,
    ) -> None:
        from posttrain.engines.model_folder import load_model, load_tokenizer, pick_device
        from posttrain.engines.transformers_engine import TransformersEngine

        self._config, self._inputs, self._context, self._pool = config, inputs, context, pool
        self._device = pick_device(config.device)
        folder = context.store.view(inputs["model"])
        self._tokenizer = load_tokenizer(folder)
        model = load_model(folder, dtype=config.dtype, device=self._device)
        self._engine: TransformersEngine = TransformersEngine(
            model, self._tokenizer, batch_size=config.batch_size
        )
        self._judge = None if config.judge is None else self._build_judge(config.judge)

    def shard(self, number: int, prompts: Sequence[PromptRow]) -> list[Candidate]:
        """All candidates of these prompts, sampled, ruled and judged."""
        found = [pair for direct in (False, True) for pair in self._sample(number, prompts, direct=direct)]
        order = {row.id: place for place, row in enumerate(prompts)}
        found.sort(key=lambda pair: (order[pair[0].id], pair[1].sample))
        ruled = self._rule(found)
        return self._judged([row for row, _ in found], ruled)

    def _build_judge(self, judge: ReplyJudgeConfig) -> ReplyJudge:
        from posttrain.engines.judges import RewardModelJudge, build_judge
        from posttrain.engines.model_folder import load_model, load_tokenizer
        from posttrain.engines.reward_scorer import RewardScorer

        dtype = self._config.dtype
        if isinstance(judge, RewardModelJudgeConfig):
            folder = self._folder("reward_model", judge.kind)
            scorer = RewardScorer.load(folder, dtype=dtype, device=self._device, batch_size=judge.batch_size)
            return RewardModelJudge(scorer)

        def load() -> tuple[Any, Any]:
            folder = self._folder("judge_model", judge.kind)
            return load_model(folder, dtype=dtype, device=self._device), load_tokenizer(folder)

        return build_judge(judge, load)

    def _folder(self, name: str, kind: str) -> Path:
        if name not in self._inputs:
            raise ConfigError(
                f"a judge of kind `{kind}` needs the input `{name}`",
                hint=f"add `{name}` to the stage's inputs, or change `judge.kind`",
            )
        return self._context.store.view(self._inputs[name])

    def _sample(
        self, number: int, prompts: Sequence[PromptRow], *, direct: bool
    ) -> list[tuple[PromptRow, Candidate]]:
        from posttrain.engines.model_folder import prefills_think
        from posttrain.engines.records import Sampling

        config = self._config
        rows = [row for row in prompts if (row.task == "simple") == direct]
        if not rows:
            return []
        thinks = config.think_first and not direct
        shots = tuple(shot.model_dump() for shot in config.think_shots) if thinks else ()
        asked = [replace(row, shots=(*row.shots, *shots)).messages() for row in rows]
        prefilled = prefills_think(self._tokenizer, asked[0])
        opened = "<think>" if thinks and not prefilled else ""
        sampling = Sampling(
            config.max_completion_tokens,
            config.temperature,
            samples=config.samples,
            seed=(config.seed * 100_003 + number) * 2 + direct,
            prefix=opened,
        )
        groups: list[list[Completion]] = self._engine.generate(asked, sampling)
        begin = "<think>" if prefilled else ""
        return [
            (row, Candidate(row.id, index, begin + c.text, c.tokens, c.finish == "length"))
            for row, group in zip(rows, groups, strict=True)
            for index, c in enumerate(group)
        ]

    def _rule(self, found: Sequence[tuple[PromptRow, Candidate]]) -> list[Candidate]:
        from posttrain.rewards import Sample

        shown = [shot.answer for shot in self._config.think_shots]
        if self._config.rules is None:
            target = self._config.target
            return [
                replace(c, reason=empty_target(c.text, target) or copied_shot(c.text, shown))
                for _, c in found
            ]
        samples = [
            Sample(
                c.text,
                row.answer,
                row.question,
                token_count=c.tokens,
                truncated=c.truncated,
                language=row.language,
                open_ended=row.task != "reasoning",
            )
            for row, c in found
        ]
        scores = self._pool.score_many(samples)
        ruled = []
        for (row, candidate), score in zip(found, scores, strict=True):
            scored = replace(candidate, parts=dict(score.parts), unscored=score.reason)
            reason = broken_rule(self._config.rules, row, scored, self._config.target)
            ruled.append(replace(scored, reason=reason or copied_shot(scored.text, shown)))
        return ruled

    def _judged(self, rows: Sequence[PromptRow], candidates: list[Candidate]) -> list[Candidate]:
        from posttrain.engines.judging import JudgeRequest

        if self._judge is None:
            return candidates
        places = [place for place, c in enumerate(candidates) if not c.reason]
        requests = [
            JudgeRequest(
                id=f"{rows[place].id}-{candidates[place].sample}",
                messages=tuple(rows[place].messages()),
                response=target_of(candidates[place].text, self._config.target),
            )
            for place in places
        ]
        least = self._config.min_judgement
        for place, judgement in zip(places, self._judge.judge(requests), strict=True):
            value = judgement.value
            low = value is not None and least is not None and value < least
            candidates[place] = replace(
                candidates[place],
                judgement=value,
                judge_note=judgement.reason or ("failed" if value is None else ""),
                reason="judged low" if low else "",
            )
        return candidates


def _examples(
    config: RejectionSampleConfig, prompts: Sequence[PromptRow], kept: Sequence[Candidate], *, source: str
) -> list[ExampleRow]:
    by_id = {row.id: row for row in prompts}
    return [
        ExampleRow(
            id=f"{candidate.prompt}-{candidate.sample}",
            messages=tuple(by_id[candidate.prompt].messages()),
            response=target_of(candidate.text, config.target),
            task=by_id[candidate.prompt].task,
            language=by_id[candidate.prompt].language,
            source=source,
            tags={"judged": "failed"} if candidate.judge_note and candidate.judgement is None else {},
        )
        for candidate in kept
    ]


def _card(config: RejectionSampleConfig, facts: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            f"# Examples: {'best of n' if config.rules is None else 'rejection sampling'}",
            "",
            f"{facts['rows']} examples, one JSON object a line in `{EXAMPLES_FILE}`: at most {config.keep} of each of "
            f"{facts['prompts']} prompts, from {facts['sampled']} completions ({config.samples} a prompt, temperature "
            f"{config.temperature:g}).",
            "",
            f"- rejected, by rule: {json.dumps(facts['rejected'], ensure_ascii=False, sort_keys=True)}",
            f"- judge failures (not rejected, ranked in the middle): {facts['judge_failures']}",
            f"- tasks: {json.dumps(facts['tasks'], sort_keys=True)}",
            f"- languages: {json.dumps(facts['languages'], sort_keys=True)}",
            f"- response: {'the whole completion' if config.target == 'whole' else 'what follows the think block'}",
            "",
        ]
    )
