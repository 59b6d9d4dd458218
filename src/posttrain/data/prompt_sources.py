"""Where prompts with ground truth come from, and the ``prompts`` stage that freezes them.

Here: a source is one member of :data:`PromptSource` and one function of ``_prompt_readers`` that yields candidate rows.
The stage draws a train and a held-out set from it, checks that both are usable and disjoint, and stores each as a
dataset artifact with its card. To add a source: its config class here, and its reader there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.data._prompt_readers import READERS
from posttrain.data.open_tasks import OpenKind
from posttrain.data.prompts import (
    PROMPTS_FILE,
    Overlap,
    PromptRow,
    Task,
    check_disjoint,
    check_prompts,
    normal_question,
    prompt_set_facts,
    to_jsonl,
)
from posttrain.data.word_problems import Language

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
    languages: tuple[Language, ...] = Field(("en", "zh"), min_length=1)


class OpenTaskSource(_Source):
    """Made here: facts, translation, writing and small talk in English and Chinese, judged by a planted rule."""

    kind: Literal["open_tasks"] = "open_tasks"
    kinds: tuple[OpenKind, ...] = Field(("fact", "translation", "writing", "small_talk"), min_length=1)
    languages: tuple[Language, ...] = Field(("en", "zh"), min_length=1)


class JsonlSource(_Source):
    """Any JSONL (plain or gzip) of questions and answers."""

    kind: Literal["jsonl"] = "jsonl"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, read in order; relative to the current folder."""
    question: str = "question"
    """Key of the question; several keys joined by ``+`` are joined by a space (``Body+Question``), and a dot reaches
    into lists and objects (``turns.0``)."""
    answer: str = "answer"
    """Key of the answer. GSM8K's worked answers are cut after ``####``. Not read for open prompts."""
    language: str = "en"
    task: Task = "reasoning"
    """How answers to these prompts are judged: ``reasoning`` by verifiers, ``open`` and ``simple`` by preference."""
    max_characters: int | None = Field(None, ge=1)
    """Longer questions are left out."""
    foreign: Literal["keep", "drop"] = "keep"
    """What to do with questions most of whose words are in another language than ``language``; files of real requests
    hold many."""
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
    task: Task = "reasoning"
    """As for a JSONL source, and so are the next two."""
    max_characters: int | None = Field(None, ge=1)
    foreign: Literal["keep", "drop"] = "keep"
    duplicates: Literal["refuse", "drop"] = "drop"


SingleSource: TypeAlias = Annotated[
    WordProblemSource | OpenTaskSource | JsonlSource | ReasoningGymSource | HubSource,
    Field(discriminator="kind"),
]


class MixSource(_Source):
    """Several sources, each with its own keys; rows are taken in turn, so that each gives an equal part."""

    kind: Literal["mix"] = "mix"
    sources: tuple[SingleSource, ...] = Field(min_length=1)
    duplicates: Literal["refuse", "drop"] = "refuse"
    """What to do with a question that appears twice, in one source or in two."""


PromptSource: TypeAlias = Annotated[
    WordProblemSource | OpenTaskSource | JsonlSource | ReasoningGymSource | HubSource | MixSource,
    Field(discriminator="kind"),
]


class Shot(_Source):
    """A solved example that comes before every question."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    """The whole reply, think block and answer tag included."""


def expand_system(system: str) -> str:
    """The system message that a config means: ``r1`` stands for :data:`R1_SYSTEM_PROMPT`."""
    return R1_SYSTEM_PROMPT if system == "r1" else system


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
        object.__setattr__(self, "system", expand_system(self.system))
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
    for row in READERS[source.kind](source, split, config.seed):
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


def _card(name: str, config: PromptsConfig, facts: Mapping[str, Any]) -> str:
    source = config.heldout_source if name == "heldout" and config.heldout_source else config.source
    lines = [
        f"# Prompts: {name}",
        "",
        f"{facts['rows']} questions, one JSON object a line in `{PROMPTS_FILE}`.",
        "",
        f"- source: `{json.dumps(_without_folders(source.model_dump(mode='json')), ensure_ascii=False)}`",
        f"- tasks: {json.dumps(facts['tasks'], sort_keys=True)}",
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
