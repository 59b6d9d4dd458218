"""Judged pairs: a prompt, and which of two answers to it was better.

Here: reading rows, their digest, and which part each belongs to. Not here: training. A row's part is a hash of its
prompt, so the same prompt is never in two parts, rows added later move none of the old, and an evaluation finds the
held-out rows again without a list of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, ValidationError

from posttrain.core.canonical import digest_json
from posttrain.core.documents import Record
from posttrain.core.errors import DataError

Part: TypeAlias = Literal["train", "choose", "test"]
"""Weights are fitted on ``train``; calibration and threshold on ``choose``; ``test`` is for the report."""


class PairRow(Record):
    """One judged pair."""

    prompt: str = Field(min_length=1)
    outcome: Literal["small", "tie", "big"]
    """Whose answer was better."""
    slice: str = ""

    @property
    def part(self) -> Part:
        """60, 20 and 20 in a hundred."""
        place = hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).digest()[0]
        return "train" if place < 154 else "choose" if place < 205 else "test"

    @property
    def small_is_good(self) -> bool:
        """Whether the small one's answer is no worse."""
        return self.outcome != "big"

    @property
    def big_is_good(self) -> bool:
        """Whether the big one's answer is no worse."""
        return self.outcome != "small"


def read_rows(path: Path) -> list[PairRow]:
    """JSON lines of ``prompt``, ``outcome``, ``slice``. Raises DataError with the line."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(PairRow.model_validate(json.loads(line)))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise DataError(
                f"{path}:{number}: {place}: {first['msg']}", hint="a row is {prompt, outcome, slice}"
            ) from error
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON", hint="one row a line") from error
    return rows


def digest_rows(rows: Sequence[PairRow]) -> str:
    """Of the rows in their order."""
    return digest_json([row.model_dump(mode="json") for row in rows])


def part_of(rows: Sequence[PairRow], part: Part) -> list[PairRow]:
    """The rows of a part."""
    return [row for row in rows if row.part == part]
