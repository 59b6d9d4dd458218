"""Stage ``cold_start``: a small set of explicit, well-formed demonstrations, as R1 begins with.

Here: demonstrations from worked solutions, each a ``<think>…</think>`` block that goes step by step in the question's
language and an ``<answer>…</answer>`` of the final number alone. Solutions come from our own word problems (written
from their exact chains) or from JSONL or a hub data set with worked answers, such as GSM8K's. Not here: how they are
learned (``training.sft``). To add a source: its config class, and its reader in ``_READERS``.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import DataError
from posttrain.data._prompt_readers import read_records, value_at
from posttrain.data.examples import (
    EXAMPLES_FILE,
    ExampleRow,
    check_examples,
    example_set_facts,
    examples_to_jsonl,
)
from posttrain.data.prompt_sources import Shot, WordProblemSource, expand_system
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, normal_question, question_id, read_prompts
from posttrain.data.word_problems import Language, WordProblem, problems


class WorkedSource(StageConfig):
    """A JSONL file (plain or gzip) of questions with worked answers."""

    kind: Literal["worked"] = "worked"
    paths: tuple[str, ...] = Field(min_length=1)
    question: str = "question"
    """Key of the question."""
    answer: str = "answer"
    """Key of the worked answer: reasoning, then ``####`` and the number, as in GSM8K; ``<<…>>`` notes are dropped."""
    language: str = "en"
    max_characters: int | None = Field(None, ge=1)
    """Rows whose reasoning is longer are left out: a small model learns from short ones."""


class WorkedHubSource(StageConfig):
    """A data set of the Hugging Face hub with worked answers; the recipe must say ``allow_hub: true``."""

    kind: Literal["hub"] = "hub"
    path: str
    """Data set id, for example ``openai/gsm8k``."""
    name: str | None = None
    """Configuration of the data set."""
    revision: str = "main"
    split: str = "train"
    question: str = "question"
    """This key and the following ones as for a ``worked`` source."""
    answer: str = "answer"
    language: str = "en"
    max_characters: int | None = Field(None, ge=1)


ColdStartSource: TypeAlias = Annotated[
    WordProblemSource | WorkedSource | WorkedHubSource, Field(discriminator="kind")
]


class ColdStartConfig(StageConfig):
    """Config of the ``cold_start`` stage."""

    source: ColdStartSource = WordProblemSource()
    count: int = Field(400, ge=1)
    """Demonstrations; fewer where a file has no more."""
    system: str = ""
    """System message of every prompt; ``r1`` stands for the short R1-Zero instruction."""
    shots: tuple[Shot, ...] = ()
    """Solved examples before every question: the same as the recipe's prompts have."""
    seed: int = 0

    def external_files(self) -> Mapping[str, Path]:
        """The files of a ``worked`` source."""
        if not isinstance(self.source, WorkedSource):
            return {}
        return {f"source.paths.{i}": Path(path) for i, path in enumerate(self.source.paths)}


def run_cold_start(
    config: ColdStartConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Write the demonstrations. Input: optional ``heldout`` (prompts whose questions are left out).

    Output: ``examples``.
    """
    taken: set[str] = set()
    if "heldout" in inputs:
        held = read_prompts(context.store.view(inputs["heldout"]) / PROMPTS_FILE)
        taken = {normal_question(row.question) for row in held}
    rows: list[ExampleRow] = []
    for demonstration in _READERS[config.source.kind](config.source, config.seed):
        key = normal_question(demonstration.question)
        if key in taken:
            continue
        taken.add(key)
        rows.append(_example(config, demonstration))
        if len(rows) == config.count:
            break
    check_examples(rows, "cold-start")
    facts = example_set_facts(rows)
    with context.writer("dataset", "examples", meta={"format": "examples", **facts}) as writer:
        writer.add_bytes(EXAMPLES_FILE, examples_to_jsonl(rows))
        writer.add_bytes("README.md", _card(config, facts).encode())
        artifact = writer.commit()
    context.emit("note", text=f"{len(rows)} demonstrations")
    return StageResult({"examples": artifact}, {"examples": len(rows)})


class Demonstration(StageConfig):
    """A question with the reply that shows how to think about it."""

    question: str
    response: str
    language: str = "en"


def demonstrate(problem: WordProblem) -> str:
    """The explicit solution of a word problem: where it starts, each step, the answer, all in its language.

    >>> # Alice has 3 apples and buys 2 more
    >>> # <think>Start with 3. Add 3+2=5. The answer is 5.</think><answer>5</answer>
    """
    begin, verbs, end = _TELLING[problem.language]
    gap = " " if problem.language == "en" else ""
    stop = "." if problem.language == "en" else "。"
    parts = [begin.format(n=problem.steps[0].left)]
    parts += [
        f"{verbs[s.operation]}{gap}{s.left}{s.operation}{s.right}={s.result}{stop}" for s in problem.steps
    ]
    parts.append(end.format(n=problem.answer))
    return f"<think>{gap.join(parts)}</think><answer>{problem.answer}</answer>"


# In words that the tiny base has read: characters that it has not come out as stray bytes, a few percent of the time.
_TELLING: Mapping[Language, tuple[str, Mapping[str, str], str]] = {
    "en": ("Start with {n}.", {"+": "Add", "-": "Take", "*": "Times"}, "The answer is {n}."),
    "zh": ("现在有{n}个。", {"+": "加", "-": "减", "*": "乘"}, "答案是{n}。"),
}


def _example(config: ColdStartConfig, demonstration: Demonstration) -> ExampleRow:
    asked = PromptRow(
        question_id(demonstration.question),
        demonstration.question,
        "",
        demonstration.language,
        expand_system(config.system),
        shots=tuple(shot.model_dump() for shot in config.shots),
    )
    return ExampleRow(
        id=asked.id,
        messages=tuple(asked.messages()),
        response=demonstration.response,
        language=asked.language,
        source="cold start",
    )


def _read_word_problems(source: WordProblemSource, seed: int) -> Iterator[Demonstration]:
    # Another stream of the training side than the prompts of reinforcement learning.
    stream = problems(
        seed + 7919,
        "train",
        max_steps=source.max_steps,
        max_value=source.max_value,
        heldout_share=source.heldout_share,
    )
    for problem in stream:
        if problem.language in source.languages:
            yield Demonstration(
                question=problem.question, response=demonstrate(problem), language=problem.language
            )


def _read_worked(source: WorkedSource, seed: int) -> Iterator[Demonstration]:
    records = list(read_records(source.paths))
    random.Random(f"cold-start/{seed}").shuffle(records)
    yield from _demonstrations(((record.data, record.where) for record in records), source)


def _read_hub(source: WorkedHubSource, seed: int) -> Iterator[Demonstration]:
    import datasets

    loaded = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    order = list(range(len(loaded)))
    random.Random(f"cold-start/{seed}").shuffle(order)
    yield from _demonstrations(((loaded[i], f"{source.path} row {i}") for i in order), source)


def _demonstrations(
    records: Iterable[tuple[Mapping[str, Any], str]], source: WorkedSource | WorkedHubSource
) -> Iterator[Demonstration]:
    for record, where in records:
        question, worked = value_at(record, source.question), value_at(record, source.answer)
        if question is None or worked is None:
            raise DataError(
                f"{where} has no key {source.question if question is None else source.answer!r}",
                hint="set `source.question` and `source.answer` to the keys of the data",
            )
        reasoning, mark, final = re.sub(r"<<[^<>]*>>", "", str(worked)).rpartition("####")
        if not mark or not reasoning.strip():
            raise DataError(
                f"{where} has no worked answer: reasoning, then `#### number`",
                hint="use prompts without worked answers in `prompts`, not in `cold_start`",
            )
        if source.max_characters is not None and len(reasoning.strip()) > source.max_characters:
            continue
        yield Demonstration(
            question=str(question).strip(),
            response=f"<think>\n{reasoning.strip()}\n</think>\n<answer> {final.strip().replace(',', '')} </answer>",
            language=source.language,
        )


_READERS: Mapping[str, Callable[..., Iterator[Demonstration]]] = {
    "word_problems": _read_word_problems,
    "worked": _read_worked,
    "hub": _read_hub,
}


def _card(config: ColdStartConfig, facts: Mapping[str, object]) -> str:
    source = config.source.model_dump(mode="json")
    if "paths" in source:
        source["paths"] = [Path(path).name for path in source["paths"]]
    return "\n".join(
        [
            "# Examples: cold start",
            "",
            f"{facts['rows']} demonstrations, one JSON object a line in `{EXAMPLES_FILE}`.",
            "",
            f"- source: `{json.dumps(source, ensure_ascii=False)}`",
            f"- languages: {json.dumps(facts['languages'], ensure_ascii=False, sort_keys=True)}",
            "- no question of the held-out set is among them (normalised text compared when they were made)",
            "",
        ]
    )
