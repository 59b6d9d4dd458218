"""Examples: an input with the target that a model should learn to write. The record, its JSONL form, and its checks.

Here: :class:`ExampleRow`, reading and writing, counts for a card. Not here: where examples come from (``cold_start``,
``training.rejection_sample``, ``training.open_answers``) and how they are learned (``training.sft``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.core.canonical import canonical_json
from posttrain.core.errors import DataError

EXAMPLES_FILE = "examples.jsonl"
"""The name of the example file inside a dataset artifact."""


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """One conversation so far, and the reply to learn."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    """The conversation before the reply: ``role`` and ``content`` each; the last one is the user's."""
    response: str
    """What the assistant should write, think block and tags included."""
    task: str = "reasoning"
    """What kind of prompt it answers: ``reasoning``, ``open`` or ``simple`` (see ``prompts.Task``)."""
    language: str = "en"
    source: str = ""
    """Who wrote it, for the card: a stage, a file, a model's digest."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Free labels."""


def examples_to_jsonl(rows: Iterable[ExampleRow]) -> bytes:
    """Rows as canonical JSON lines."""
    return b"".join(canonical_json(asdict(row)) + b"\n" for row in rows)


def read_examples(path: Path) -> list[ExampleRow]:
    """Rows of a JSONL file made by :func:`examples_to_jsonl`. Raises DataError with the line number."""
    rows: list[ExampleRow] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            rows.append(ExampleRow(**{**record, "messages": tuple(record["messages"])}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path.name} line {number} is not an example row: {error}") from error
    return rows


def check_examples(rows: Sequence[ExampleRow], name: str) -> None:
    """Refuse an empty set, ids that appear twice, rows without a user's turn at the end, and empty replies."""
    if not rows:
        raise DataError(f"the {name} examples are empty", hint="check the stage that made them")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"{name} example {row.id!r} appears twice", hint="make the ids unique")
        seen.add(row.id)
        if not row.messages or row.messages[-1].get("role") != "user":
            raise DataError(f"{name} example {row.id!r} does not end with the user's turn")
        if not row.response.strip():
            raise DataError(f"{name} example {row.id!r} has an empty response", hint="drop or fill that row")


def example_set_facts(rows: Sequence[ExampleRow]) -> dict[str, Any]:
    """Counts for a dataset card: rows by task, language and source."""
    return {
        "rows": len(rows),
        "tasks": dict(sorted(Counter(row.task for row in rows).items())),
        "languages": dict(sorted(Counter(row.language for row in rows).items())),
        "sources": dict(sorted(Counter(row.source for row in rows).items())),
    }
