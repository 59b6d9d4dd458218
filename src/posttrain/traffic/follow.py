"""Rows as they arrive, straight from the segments: for the rollout controller and ``posttrain log tail``.

Here: a reader with a cursor that can be kept. Not here: the index, which it neither needs nor disturbs. Rows of one
owner come in the order in which they were written, of several owners in any. Every row comes once for a cursor that is
kept with what was done about the rows; a row that the writer wrote twice (after a failed sync) comes twice. Rows that
were moved to the history or erased before they were followed do not come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.core.errors import DataError
from posttrain.traffic.codec import loads
from posttrain.traffic.segment_format import SegmentName, list_segments, read_segment


class Follower:
    """Follows the segments of every owner in a folder, also of owners that come later."""

    def __init__(self, folder: Path, cursor: str | None = None) -> None:
        """Begin where ``cursor`` says, or with the oldest segment that is there. Raises DataError for no cursor."""
        self.folder = folder
        self._places: dict[str, tuple[int, int]] = {} if cursor is None else _parse(cursor)

    @classmethod
    def from_now(cls, folder: Path) -> Follower:
        """Begin with what is written from now on."""
        follower = cls(folder)
        for name in list_segments(folder):  # each owner's last one wins
            reader = read_segment(folder / str(name))
            try:
                for _ in reader:
                    pass
            except FileNotFoundError:
                continue
            follower._places[name.owner] = (name.sequence, reader.offset)
        return follower

    @property
    def cursor(self) -> str:
        """JSON: how far each owner was read."""
        return json.dumps(self._places, sort_keys=True)

    def poll(self, max_rows: int = 100_000) -> list[dict[str, Any]]:
        """New rows since the last call; with more than ``max_rows`` there, the next call goes on."""
        rows: list[dict[str, Any]] = []
        names = list_segments(self.folder)
        newest = {name.owner: name.sequence for name in names}
        for name in names:
            if len(rows) >= max_rows:
                break
            sequence, offset = self._places.get(name.owner, (0, 0))
            if name.sequence < sequence:
                continue
            self._read(name, offset if name.sequence == sequence else 0, rows, max_rows)
            if len(rows) < max_rows and name.sequence < newest[name.owner]:
                # Read to its end, and nothing more comes to it, as another one follows.
                self._places[name.owner] = (name.sequence + 1, 0)
        return rows

    def _read(self, name: SegmentName, offset: int, rows: list[dict[str, Any]], max_rows: int) -> None:
        reader = read_segment(self.folder / str(name), offset)
        try:
            for row in reader:
                try:
                    value = loads(row.payload)
                except ValueError:
                    value = None
                if isinstance(value, dict) and value:
                    rows.append(value)
                if len(rows) >= max_rows:
                    break
        except FileNotFoundError:
            return  # moved to the history meanwhile
        self._places[name.owner] = (name.sequence, reader.offset)


def _parse(cursor: str) -> dict[str, tuple[int, int]]:
    try:
        value: Mapping[str, Any] = json.loads(cursor)
        return {owner: (int(place[0]), int(place[1])) for owner, place in value.items()}
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"not a cursor of the traffic log: {cursor[:80]!r}") from error
