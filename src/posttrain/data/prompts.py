"""Prompts with ground truth: the record, its JSONL form, and the checks on a set of them.

Here: :class:`PromptRow`, reading and writing, duplicates, overlap between sets. Not here: where prompts come from
(``prompt_sources``) and how a model is asked (the model's chat template).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain.core.canonical import canonical_json, digest_bytes
from posttrain.core.errors import DataError

PROMPTS_FILE = "prompts.jsonl"
"""The name of the prompt file inside a dataset artifact."""


Task: TypeAlias = Literal["reasoning", "open", "simple"]
"""``reasoning`` has an answer that a verifier can check; ``open`` has many good answers and a person or a reward model
judges; ``simple`` is open too, and wants an answer without thinking (a greeting)."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One question, with the answer that a verifier compares with where there is one."""

    id: str
    question: str
    answer: str
    """The ground truth of a ``reasoning`` prompt; for the others a reference for readers, or empty."""
    language: str = "en"
    """BCP 47 primary tag of the question: the language that the reasoning should keep to."""
    system: str = ""
    """System message; empty for none."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Free labels for slices of a report, for example ``steps: 2``."""
    task: Task = "reasoning"
    """How its answers are judged."""
    shots: tuple[Mapping[str, str], ...] = ()
    """Solved examples (``question``, ``answer`` as it should be written) that come before the question."""

    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, in chat form."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        for shot in self.shots:
            head.append({"role": "user", "content": shot["question"]})
            head.append({"role": "assistant", "content": shot["answer"]})
        return [*head, {"role": "user", "content": self.question}]


def normal_question(text: str) -> str:
    """A question as compared for duplicates: NFKC, case-folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Overlap:
    """Finds questions that are nearly the same as one of a set: other numbers, other names, one more sentence.

    Compared are the runs of four words, numbers masked. *Not covered*: paraphrases.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        self._runs = [_word_runs(question) for question in questions]
        self._holders: dict[tuple[str, ...], list[int]] = {}
        for index, runs in enumerate(self._runs):
            for run in runs:
                self._holders.setdefault(run, []).append(index)

    def share(self, question: str) -> float:
        """Largest share of runs in common with one question of the set, as a share of the shorter of the two."""
        runs = _word_runs(question)
        common: Counter[int] = Counter(index for run in runs for index in self._holders.get(run, ()))
        return max((n / min(len(runs), len(self._runs[i])) for i, n in common.items()), default=0.0)


def _word_runs(text: str, length: int = 4) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", re.sub(r"\d[\d.,]*", "0", normal_question(text)))
    return {tuple(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def question_id(question: str) -> str:
    """A stable short id of a question's normal form."""
    return digest_bytes(normal_question(question).encode()).removeprefix("sha256:")[:16]


def to_jsonl(rows: Iterable[PromptRow]) -> bytes:
    """Rows as canonical JSON lines."""
    return b"".join(canonical_json(asdict(row)) + b"\n" for row in rows)


def read_prompts(path: Path) -> list[PromptRow]:
    """Rows of a JSONL file made by :func:`to_jsonl`. Raises DataError with the line number."""
    rows: list[PromptRow] = []
    # Lines end at a newline byte only: JSON text may hold other line separators of Unicode.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            rows.append(PromptRow(**{**record, "shots": tuple(record.get("shots", ()))}))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path.name} line {number} is not a prompt row: {error}") from error
    return rows


def check_prompts(rows: Sequence[PromptRow], name: str) -> None:
    """Refuse an empty set, empty questions or answers, and questions that appear twice."""
    if not rows:
        raise DataError(f"the {name} prompts are empty", hint="give the source more rows, or ask for fewer")
    seen: dict[str, str] = {}
    for row in rows:
        if not row.question.strip() or (row.task == "reasoning" and not row.answer.strip()):
            what = "question" if not row.question.strip() else "answer"
            raise DataError(f"{name} prompt {row.id!r} has an empty {what}", hint="drop or fill that row")
        key = normal_question(row.question)
        if key in seen:
            raise DataError(
                f"{name} prompts {seen[key]!r} and {row.id!r} ask the same question: {row.question[:80]!r}",
                hint="remove one of them, or set `duplicates: drop` in the source",
            )
        seen[key] = row.id


def check_disjoint(train: Sequence[PromptRow], heldout: Sequence[PromptRow]) -> None:
    """Refuse a held-out set that shares a question with the training prompts."""
    known = {normal_question(row.question): row.id for row in train}
    shared = [row for row in heldout if normal_question(row.question) in known]
    if shared:
        raise DataError(
            f"{len(shared)} held-out prompts are also training prompts, the first: {shared[0].question[:80]!r}",
            hint="a held-out set must be disjoint: remove them from one of the two sets",
        )


def check_not_asked(questions: Iterable[str], heldout: Iterable[str], what: str) -> None:
    """Refuse training rows (``what`` names them) whose question is also a held-out one."""
    held = {normal_question(question) for question in heldout}
    shared = [question for question in questions if normal_question(question) in held]
    if shared:
        raise DataError(
            f"{len(shared)} {what} ask a held-out question, the first: {shared[0][:80]!r}",
            hint="a held-out set must be disjoint: remove them from one of the two sets",
        )


def prompt_set_facts(rows: Sequence[PromptRow]) -> dict[str, Any]:
    """Counts for a dataset card: rows, tasks, languages, and each tag's values."""
    languages: dict[str, int] = {}
    tags: dict[str, dict[str, int]] = {}
    tasks: dict[str, int] = {}
    for row in rows:
        tasks[row.task] = tasks.get(row.task, 0) + 1
        languages[row.language] = languages.get(row.language, 0) + 1
        for name, value in row.tags.items():
            counts = tags.setdefault(name, {})
            counts[value] = counts.get(value, 0) + 1
    return {"rows": len(rows), "tasks": tasks, "languages": languages, "tags": tags}
