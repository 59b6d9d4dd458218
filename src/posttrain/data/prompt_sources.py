"""Where prompts with ground truth come from, and the ``prompts`` stage that freezes them.

Here: a source is one member of :data:`PromptSource` and one function in ``_READERS`` that yields candidate rows. The
stage draws a train and a held-out set from it, checks that both are usable and disjoint, and stores each as a dataset
artifact with its card. To add a source: its config class, its reader, one line in ``_READERS``.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import DataError, MissingDependencyError
from posttrain.data.prompts import (
    PROMPTS_FILE,
    Overlap,
    PromptRow,
    check_disjoint,
    check_prompts,
    normal_question,
    prompt_set_facts,
    question_id,
    to_jsonl,
)
from posttrain.data.word_problems import problems, split_of

R1_SYSTEM_PROMPT = (
    "Think step by step inside <think> </think>, then give only the final number inside <answer> </answer>."
)
"""The shape of DeepSeek-R1-Zero's prompt, in one line that a small model can hold."""


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WordProblemSource(_Source):
    """Made here: sums of one to three steps in English and Chinese, split by equation."""

    kind: Literal["word_problems"] = "word_problems"
    max_steps: int = Field(3, ge=1, le=5)
    """Longest chain of operations."""
    max_value: int = Field(20, ge=10, le=999)
    """Largest number on the way."""
    heldout_share: float = Field(0.1, gt=0, lt=1)
    """Share of all equations that no training prompt may use."""


class JsonlSource(_Source):
    """Any JSONL (plain or gzip) of questions and answers."""

    kind: Literal["jsonl"] = "jsonl"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, read in order; relative to the current folder."""
    question: str = "question"
    """Key of the question; several keys joined by ``+`` are joined by a space (``Body+Question``)."""
    answer: str = "answer"
    """Key of the answer. GSM8K's worked answers are cut after ``####``."""
    language: str = "en"
    duplicates: Literal["refuse", "drop"] = "refuse"
    """What to do with a question that appears twice."""


class ReasoningGymSource(_Source):
    """Procedural tasks of the PyPI package ``reasoning-gym``."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    tasks: tuple[str, ...] = ("basic_arithmetic", "chain_sum", "gsm_symbolic")
    """Names of its generators; rows are taken in turn."""
    options: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    """Task name to generator options."""
    language: str = "en"


class HubSource(_Source):
    """A data set of the Hugging Face hub; the recipe must say ``allow_hub: true``."""

    kind: Literal["hub"] = "hub"
    path: str
    """Data set id, for example ``openai/gsm8k``."""
    name: str | None = None
    """Configuration of the data set."""
    revision: str = "main"
    split: str = "train"
    question: str = "question"
    answer: str = "answer"
    language: str = "en"
    duplicates: Literal["refuse", "drop"] = "drop"


SingleSource: TypeAlias = Annotated[
    WordProblemSource | JsonlSource | ReasoningGymSource | HubSource, Field(discriminator="kind")
]


class MixSource(_Source):
    """Several sources, each with its own keys; rows are taken in turn, so that each gives an equal part."""

    kind: Literal["mix"] = "mix"
    sources: tuple[SingleSource, ...] = Field(min_length=1)
    duplicates: Literal["refuse", "drop"] = "refuse"
    """What to do with a question that appears twice, in one source or in two."""


PromptSource: TypeAlias = Annotated[
    WordProblemSource | JsonlSource | ReasoningGymSource | HubSource | MixSource, Field(discriminator="kind")
]


class Shot(_Source):
    """A solved example that comes before every question."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    """The whole reply, think block and answer tag included."""


class PromptsConfig(StageConfig):
    """Config of the ``prompts`` stage."""

    source: PromptSource = WordProblemSource()
    heldout_source: PromptSource | None = None
    """Where the held-out prompts come from; by default the same source, on rows that training never sees."""
    train: int = Field(2048, ge=1)
    """Training prompts to draw; fewer where a file has no more."""
    heldout: int = Field(400, ge=1)
    """Held-out prompts to draw, before the training prompts."""
    system: str = ""
    """System message of every prompt; ``r1`` stands for the short R1-Zero instruction."""
    shots: tuple[Shot, ...] = ()
    """Solved examples before every question, in training and in evaluation alike; for a model that has never seen
    the form of the answer."""
    max_overlap: float | None = Field(None, gt=0, le=1)
    """Drop training prompts that share this much or more of their wording (runs of four words, numbers masked) with
    one held-out prompt: for sets that say the same problem many times. Null keeps all but equal questions."""
    seed: int = 0

    @model_validator(mode="after")
    def _expand(self) -> PromptsConfig:
        if self.system == "r1":
            object.__setattr__(self, "system", R1_SYSTEM_PROMPT)
        return self

    def external_files(self) -> Mapping[str, Path]:
        """The files of every JSONL source."""
        named: dict[str, Path] = {}
        for key, source in (("source", self.source), ("heldout_source", self.heldout_source)):
            parts = source.sources if isinstance(source, MixSource) else (source,)
            for place, part in enumerate(parts):
                within = f"{key}.sources.{place}" if isinstance(source, MixSource) else key
                if isinstance(part, JsonlSource):
                    named |= {f"{within}.paths.{i}": Path(path) for i, path in enumerate(part.paths)}
        return named


def run_prompts(config: PromptsConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Draw, check and freeze the two prompt sets. Outputs: ``train`` and ``heldout`` (dataset artifacts)."""
    heldout = _draw(config, "heldout")
    train = _draw(config, "train", apart_from=heldout)
    check_prompts(heldout, "held-out")
    check_prompts(train, "training")
    check_disjoint(train, heldout)
    outputs = {}
    for name, rows in (("train", train), ("heldout", heldout)):
        facts = prompt_set_facts(rows)
        with context.writer("dataset", name, meta={"format": "prompts", **facts}) as writer:
            writer.add_bytes(PROMPTS_FILE, to_jsonl(rows))
            writer.add_bytes("README.md", _card(name, config, facts).encode())
            outputs[name] = writer.commit()
    context.emit(
        "note", text=f"{len(train)} training and {len(heldout)} held-out prompts, disjoint (checked)"
    )
    return StageResult(outputs, {"train": len(train), "heldout": len(heldout)})


def _draw(
    config: PromptsConfig, split: Literal["train", "heldout"], apart_from: Sequence[PromptRow] = ()
) -> list[PromptRow]:
    """The first rows of the split's source that are not in ``apart_from``, in the source's seeded order."""
    source = (config.heldout_source or config.source) if split == "heldout" else config.source
    count = config.heldout if split == "heldout" else config.train
    shots = tuple(shot.model_dump() for shot in config.shots)
    taken = {
        normal_question(text)
        for text in [*(r.question for r in apart_from), *(s.question for s in config.shots)]
    }
    overlap = None if config.max_overlap is None else Overlap(row.question for row in apart_from)
    rows: list[PromptRow] = []
    seen: set[str] = set()
    for row in _READERS[source.kind](source, split, config.seed):
        key = normal_question(row.question)
        if key in taken:
            continue
        if key in seen and getattr(source, "duplicates", "drop") == "drop":
            continue
        if overlap is not None and overlap.share(row.question) >= (config.max_overlap or 1):
            continue
        seen.add(key)
        rows.append(replace(row, system=config.system, shots=shots))
        if len(rows) == count:
            break
    return rows


def _read_mix(source: MixSource, split: str, seed: int) -> Iterator[PromptRow]:
    seen: set[str] = set()

    def fresh(part: SingleSource) -> Iterator[PromptRow]:
        # Dropped here rather than later, so that each source still gives an equal part.
        for row in _READERS[part.kind](part, split, seed):
            key = normal_question(row.question)
            if key in seen and "drop" in (source.duplicates, getattr(part, "duplicates", "drop")):
                continue
            seen.add(key)
            yield row

    for turn in zip_longest(*map(fresh, source.sources)):
        yield from (row for row in turn if row is not None)


def _read_word_problems(source: WordProblemSource, split: str, seed: int) -> Iterator[PromptRow]:
    # The seed of a run varies training; the held-out problems stay the same for every seed.
    side: Literal["train", "heldout"] = "heldout" if split == "heldout" else "train"
    stream = problems(
        0 if side == "heldout" else seed,
        side,
        max_steps=source.max_steps,
        max_value=source.max_value,
        heldout_share=source.heldout_share,
    )
    for problem in stream:
        if split_of(problem.chain, source.heldout_share) != side:
            raise AssertionError("a word problem crossed the split")
        yield PromptRow(
            id=question_id(problem.question),
            question=problem.question,
            answer=str(problem.answer),
            language=problem.language,
            tags={"steps": str(len(problem.steps))},
        )


def _read_jsonl(source: JsonlSource, split: str, seed: int) -> Iterator[PromptRow]:
    rows: list[PromptRow] = []
    for name in source.paths:
        path = Path(name)
        try:
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8") as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        record = _parse_line(line, path, number)
                        rows.append(_row_of(record, source, f"{path.name} line {number}", path.stem))
        except OSError as error:
            raise DataError(f"cannot read {name}: {error.strerror}", hint="check `source.paths`") from error
    # One fixed order for both sides: the held-out side takes from it first, whatever the seed.
    random.Random("jsonl-order").shuffle(rows)
    if split == "train":
        random.Random(f"jsonl-train/{seed}").shuffle(rows)
    yield from rows


def _parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path.name} line {number} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path.name} line {number} is not a JSON object")
    return record


def _row_of(record: Mapping[str, Any], source: JsonlSource | HubSource, where: str, origin: str) -> PromptRow:
    def value(keys: str, setting: str) -> str:
        parts = []
        for key in keys.split("+"):
            if key not in record:
                raise DataError(
                    f"{where} has no key {key!r}; its keys are {', '.join(sorted(record))}",
                    hint=f"set `source.{setting}` to the right key",
                )
            parts.append(_text(record[key]))
        return " ".join(
            part if part.endswith((".", "?", "!")) or setting == "answer" else part + "." for part in parts
        )

    question = value(source.question, "question")
    answer = value(source.answer, "answer").rsplit("####", 1)[-1].strip()
    return PromptRow(question_id(question), question, answer, source.language, tags={"source": origin})


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _read_reasoning_gym(source: ReasoningGymSource, split: str, seed: int) -> Iterator[PromptRow]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingDependencyError(
            "the prompt source `reasoning_gym` needs the package reasoning-gym",
            hint="pip install 'posttrain[train]'",
        ) from error
    pool_size = 100_000
    streams = []
    for task in source.tasks:
        options = dict(source.options.get(task, {}))
        try:
            dataset = reasoning_gym.create_dataset(
                task, seed=0 if split == "heldout" else seed + 1, size=pool_size, **options
            )
        except (ValueError, TypeError, AssertionError) as error:
            raise DataError(
                f"reasoning-gym cannot make {task!r}: {error}",
                hint="check `source.tasks` and `source.options`",
            ) from error
        streams.append((task, dataset))
    for index in range(pool_size):
        for task, dataset in streams:
            item = dataset[index]
            question, answer = str(item["question"]).strip(), str(item["answer"]).strip()
            if question and answer:
                yield PromptRow(
                    question_id(question), question, answer, source.language, tags={"source": task}
                )


def _read_hub(source: HubSource, split: str, seed: int) -> Iterator[PromptRow]:
    import datasets

    loaded = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    order = list(range(len(loaded)))
    random.Random("hub-order").shuffle(order)
    if split == "train":
        random.Random(f"hub-train/{seed}").shuffle(order)
    for index in order:
        yield _row_of(loaded[index], source, f"{source.path} row {index}", source.path)


_READERS: dict[str, Callable[..., Iterator[PromptRow]]] = {
    "word_problems": _read_word_problems,
    "jsonl": _read_jsonl,
    "reasoning_gym": _read_reasoning_gym,
    "hub": _read_hub,
    "mix": _read_mix,
}


def _card(name: str, config: PromptsConfig, facts: Mapping[str, Any]) -> str:
    source = config.heldout_source if name == "heldout" and config.heldout_source else config.source
    lines = [
        f"# Prompts: {name}",
        "",
        f"{facts['rows']} questions with ground truth, one JSON object a line in `{PROMPTS_FILE}`.",
        "",
        f"- source: `{json.dumps(_without_folders(source.model_dump(mode='json')), ensure_ascii=False)}`",
        f"- languages: {json.dumps(facts['languages'], ensure_ascii=False, sort_keys=True)}",
        f"- tags: {json.dumps(facts['tags'], ensure_ascii=False, sort_keys=True)}",
        "- the training and held-out sets share no question (normalised text compared when they were made)",
    ]
    if config.shots:
        lines.append(f"- every question is asked after {len(config.shots)} solved example(s)")
    if config.max_overlap is not None:
        lines.append(
            f"- training questions share less than {config.max_overlap:.0%} of their wording with a held-out one"
        )
    return "\n".join(lines) + "\n"


def _without_folders(value: Any) -> Any:
    """A dumped source whose files are named without their folders: where they lie is not what they are."""
    if isinstance(value, dict):
        return {
            k: [Path(p).name for p in v] if k == "paths" else _without_folders(v) for k, v in value.items()
        }
    return [_without_folders(item) for item in value] if isinstance(value, list) else value
