"""The journal of an unfinished evaluation: finished batches, appended, so that a killed one goes on where it was.

Here: appending and reading back. One line a batch, written whole; lines are put on the disk in groups, so a kill loses
nothing and a power cut at most the last group. A line that was cut is dropped and played again. Private to the room.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from posttrain.core.atomic import storage_errors
from posttrain.core.errors import DataError
from posttrain.evaluation.suites.rows import SuiteRow

_SYNC_SECONDS = 0.5


class Journal:
    """An open journal. A context manager: what is in it is on the disk when the block ends."""

    def __init__(self, path: Path, key: str) -> None:
        """Open ``path``; what an evaluation with another ``key`` left there is thrown away."""
        self._path = path
        self.batches: dict[int, list[SuiteRow]] = {}
        """Number of each finished batch to its rows."""
        whole = self._read(key)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._descriptor, whole)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        self._synced = time.monotonic()
        if whole == 0:
            self._write(json.dumps({"schema": 1, "key": key}).encode() + b"\n")

    def _read(self, key: str) -> int:
        """Read what is there; returns how many bytes of it are whole lines of this evaluation."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        whole = 0
        for number, line in enumerate(data.splitlines(keepends=True)):
            try:
                value = json.loads(line)
                if not line.endswith(b"\n") or (number == 0 and value != {"schema": 1, "key": key}):
                    break
                if number > 0:
                    self.batches[value["batch"]] = [SuiteRow.from_json(row) for row in value["rows"]]
            except (ValueError, KeyError, TypeError, DataError):
                break
            whole += len(line)
        return whole

    def append(self, batch: int, rows: Sequence[SuiteRow]) -> None:
        """Keep a finished batch."""
        self.batches[batch] = list(rows)
        value = {"batch": batch, "rows": [row.journal_json() for row in rows]}
        self._write(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Put everything on the disk."""
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def _write(self, data: bytes) -> None:
        with storage_errors(self._path.parent):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        os.close(self._descriptor)
