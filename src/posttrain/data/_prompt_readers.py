"""Readers of the prompt sources: each yields candidate rows of one side of the split, to the end of its data.

Private to the room; the sources' configs and the stage are in ``prompt_sources``. To add a source: its config class
there, its reader here, one line in ``READERS``.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from posttrain.core.errors import DataError, MissingDependencyError
from posttrain.data import open_tasks, word_problems
from posttrain.data.languages import target_language_share
from posttrain.data.prompts import PromptRow, normal_question, question_id

if TYPE_CHECKING:
    from posttrain.data.prompt_sources import (
        HubSource,
        JsonlSource,
        MixSource,
        OpenTaskSource,
        ReasoningGymSource,
        SingleSource,
        WordProblemSource,
    )


def _read_mix(source: MixSource, split: str, seed: int) -> Iterator[PromptRow]:
    seen: set[str] = set()

    def fresh(part: SingleSource) -> Iterator[PromptRow]:
        # Dropped here rather than later, so that each source still gives an equal part.
        for row in READERS[part.kind](part, split, seed):
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
    stream = word_problems.problems(
        0 if side == "heldout" else seed,
        side,
        max_steps=source.max_steps,
        max_value=source.max_value,
        heldout_share=source.heldout_share,
    )
    for problem in stream:
        if problem.language not in source.languages:
            continue
        if word_problems.split_of(problem.chain, source.heldout_share) != side:
            raise AssertionError("a word problem crossed the split")
        yield PromptRow(
            id=question_id(problem.question),
            question=problem.question,
            answer=str(problem.answer),
            language=problem.language,
            tags={"steps": str(len(problem.steps))},
        )


def _read_open_tasks(source: OpenTaskSource, split: str, seed: int) -> Iterator[PromptRow]:
    side: Literal["train", "heldout"] = "heldout" if split == "heldout" else "train"
    # There are about a thousand prompts: a long enough draw has met them all.
    for _, task in zip(range(20_000), open_tasks.tasks(0 if side == "heldout" else seed, side), strict=False):
        if task.kind in source.kinds and task.language in source.languages:
            yield PromptRow(
                id=question_id(task.question),
                question=task.question,
                answer=task.sentence,
                language=task.language,
                tags={"kind": task.kind},
                task="simple" if task.kind == "small_talk" else "open",
            )


def _read_jsonl(source: JsonlSource, split: str, seed: int) -> Iterator[PromptRow]:
    rows = [
        _row_of(record.data, source, record.where, record.file.split(".")[0])
        for record in read_records(source.paths)
    ]
    # One fixed order for both sides: the held-out side takes from it first, whatever the seed.
    random.Random("jsonl-order").shuffle(rows)
    if split == "train":
        random.Random(f"jsonl-train/{seed}").shuffle(rows)
    yield from (row for row in rows if _wanted(row, source))


class Record(NamedTuple):
    """One object of a JSONL file."""

    file: str
    """Name without its folder."""
    line: int
    data: dict[str, Any]

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.file} line {self.line}"


def read_records(paths: Sequence[str]) -> Iterator[Record]:
    """The objects of JSONL files, plain or gzip. Raises DataError naming the line."""
    for name in paths:
        path = Path(name)
        try:
            opener = gzip.open if path.suffix == ".gz" else open
            with opener(path, "rt", encoding="utf-8") as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield Record(path.name, number, _parse_line(line, path, number))
        except OSError as error:
            raise DataError(f"cannot read {name}: {error.strerror}", hint="check `source.paths`") from error


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
            found = value_at(record, key)
            if found is None:
                raise DataError(
                    f"{where} has no key {key!r}; its keys are {', '.join(sorted(record))}",
                    hint=f"set `source.{setting}` to the right key",
                )
            parts.append(_text(found))
        # A question's parts are sentences; its end stays as it is.
        stop = "." if setting == "question" else ""
        ended = [part if part.endswith((".", "?", "!")) else part + stop for part in parts[:-1]]
        return " ".join([*ended, parts[-1]])

    question = value(source.question, "question")
    answer = ""
    if source.task == "reasoning":
        answer = value(source.answer, "answer").rsplit("####", 1)[-1].strip()
    return PromptRow(
        question_id(question), question, answer, source.language, tags={"source": origin}, task=source.task
    )


def _wanted(row: PromptRow, source: JsonlSource | HubSource) -> bool:
    """Whether a question has the length and the language that its source asks for."""
    if source.max_characters is not None and len(row.question) > source.max_characters:
        return False
    share = target_language_share(row.question, row.language) if source.foreign == "drop" else None
    return share is None or share >= 0.5


def value_at(record: Any, path: str) -> Any:
    """The value under a key, or under keys and places joined by dots (``turns.0``); None where there is none."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for part in path.split("."):
        if isinstance(record, list) and part.isdigit() and int(part) < len(record):
            record = record[int(part)]
        elif isinstance(record, dict):
            record = record.get(part)
        else:
            return None
    return record


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
        row = _row_of(loaded[index], source, f"{source.path} row {index}", source.path)
        if _wanted(row, source):
            yield row


READERS: Mapping[str, Callable[..., Iterator[PromptRow]]] = {
    "word_problems": _read_word_problems,
    "open_tasks": _read_open_tasks,
    "jsonl": _read_jsonl,
    "reasoning_gym": _read_reasoning_gym,
    "hub": _read_hub,
    "mix": _read_mix,
}
