"""Preferences: two replies to one prompt, and which of them a person preferred. The record, its JSONL form, its checks.

Here: :class:`PreferenceRow`. Not here: where preferences come from (``preference_sources``) and who learns them
(``training.reward_model``, ``training.preference``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain.core.canonical import canonical_json
from posttrain.core.errors import DataError

PREFERENCES_FILE = "preferences.jsonl"
"""The name of the preference file inside a dataset artifact."""

Aspect: TypeAlias = Literal["helpful", "harmless"]
"""What the judgement is about: the usefulness of the final answer, or the harm in the whole response."""


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One judged pair."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    """The conversation before the reply: ``role`` and ``content`` each; the last one is the user's."""
    chosen: str
    """The preferred reply, as the model wrote it."""
    rejected: str
    aspect: Aspect = "helpful"
    language: str = "en"
    tags: Mapping[str, str] = field(default_factory=dict)
    """Free labels."""

    @property
    def question(self) -> str:
        """What was asked last."""
        return self.messages[-1]["content"]


def is_tie(row: PreferenceRow) -> bool:
    """Whether the two replies were judged equal: such a row measures, and is never learned."""
    return row.tags.get("tie") == "yes"


def preferences_to_jsonl(rows: Iterable[PreferenceRow]) -> bytes:
    """Rows as canonical JSON lines."""
    return b"".join(canonical_json(asdict(row)) + b"\n" for row in rows)


def read_preferences(path: Path) -> list[PreferenceRow]:
    """Rows of a JSONL file made by :func:`preferences_to_jsonl`. Raises DataError with the line number."""
    rows: list[PreferenceRow] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            rows.append(PreferenceRow(**{**record, "messages": tuple(record["messages"])}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path.name} line {number} is not a preference row: {error}") from error
    return rows


def judged_rows(
    folder: Path, aspects: Collection[Aspect], name: str, *, ties: bool = False
) -> list[PreferenceRow]:
    """The checked rows of a dataset that are about ``aspects``; pairs that were judged equal only with ``ties``."""
    rows = [
        row
        for row in read_preferences(folder / PREFERENCES_FILE)
        if row.aspect in aspects and (ties or not is_tie(row))
    ]
    check_preferences(rows, name)
    return rows


def check_preferences(rows: Sequence[PreferenceRow], name: str) -> None:
    """Refuse an empty set, ids that appear twice, empty replies, and pairs of two equal replies."""
    if not rows:
        raise DataError(f"the {name} preferences are empty", hint="check the stage that made them")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise DataError(f"{name} preference {row.id!r} appears twice", hint="make the ids unique")
        seen.add(row.id)
        if not row.messages or row.messages[-1].get("role") != "user":
            raise DataError(f"{name} preference {row.id!r} does not end with the user's turn")
        if not row.chosen.strip() or not row.rejected.strip():
            raise DataError(f"{name} preference {row.id!r} has an empty reply", hint="drop or fill that row")
        if row.chosen == row.rejected:
            raise DataError(f"{name} preference {row.id!r} prefers a reply to itself", hint="drop that row")


def preference_set_facts(rows: Sequence[PreferenceRow]) -> dict[str, Any]:
    """Counts for a dataset card; ``longer_chosen`` is the share of pairs in which the longer reply was preferred."""
    judged = [row for row in rows if len(row.chosen) != len(row.rejected) and not is_tie(row)]
    longer = [len(row.chosen) > len(row.rejected) for row in judged]
    return {
        "rows": len(rows),
        "aspects": dict(sorted(Counter(row.aspect for row in rows).items())),
        "languages": dict(sorted(Counter(row.language for row in rows).items())),
        "longer_chosen": round(sum(longer) / len(longer), 4) if longer else None,
    }
