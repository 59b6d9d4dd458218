"""The journal of a rollout: its events on disk, appended, chained by digest.

Here: one file of JSON lines. Each line holds its number, its id, the digest of the line before and its own, so that a
line that was changed, taken out or put in is seen. A line is written whole and is on the disk when ``append`` returns.
Several processes may append: each append takes a lock and reads what others wrote first. Not here: what events mean.

*Covered*: a kill at any byte (the torn last line is dropped, its event did not happen), the same event appended twice,
clocks that go back. *Not covered*: whole lines cut off the end by somebody with write access to the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.core.atomic import locked, make_folder, storage_errors, sync_folder
from posttrain.core.canonical import canonical_json, digest_bytes
from posttrain.core.errors import DataError
from posttrain.rollouts.errors import RolloutError
from posttrain.rollouts.events import Entry, Event, event_from_json

_SCHEMA = 1
_START = digest_bytes(b"")


class RolloutJournal:
    """The events of one rollout. Nothing is kept open between calls."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises RolloutError where the chain is broken."""
        self.path = path
        self.entries: list[Entry] = []
        """In order; what other processes appended is seen after :meth:`refresh` or :meth:`append`."""
        self._by_id: dict[str, Entry] = {}
        self._tip = _START
        self._whole_bytes = 0
        self.refresh()

    @property
    def tip(self) -> str:
        """Digest of the last line: names the whole history."""
        return self._tip

    def refresh(self) -> list[Entry]:
        """Read what others appended; returns the new entries."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._whole_bytes)
                data = stream.read()
        except FileNotFoundError:
            data = b""
        known = len(self.entries)
        # What follows the last newline is an append that was cut, or one that another process is writing just now.
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            self._take(line)
        return self.entries[known:]

    def append(self, event: Event, *, id: str, at_ms: int) -> Entry:  # noqa: A002 - what the record calls it
        """Keep an event; one with a known ``id`` is not appended again, and its first entry is returned."""
        make_folder(self.path.parent)
        with locked(self.path.with_name(self.path.name + ".lock"), exclusive=True):
            self.refresh()
            if (known := self._by_id.get(id)) is not None:
                return known
            last = self.entries[-1] if self.entries else None
            body = {
                "v": _SCHEMA,
                "seq": last.seq + 1 if last else 1,
                "id": id,
                # A clock that went back must not make a stage look longer or shorter than it was.
                "at_ms": max(at_ms, last.at_ms) if last else at_ms,
                "prev": self._tip,
                "event": event.model_dump(mode="json"),
            }
            line = canonical_json({**body, "digest": digest_bytes(canonical_json(body))}) + b"\n"
            self._write(line)
            self._take(line)
        return self.entries[-1]

    def _write(self, line: bytes) -> None:
        fresh = not self.path.exists()
        with storage_errors(self.path.parent):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(
                    descriptor, self._whole_bytes
                )  # a torn line, whose writer is dead: we hold the lock
                os.lseek(descriptor, 0, os.SEEK_END)
                try:
                    rest = line
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, self._whole_bytes)
                    raise
            finally:
                os.close(descriptor)
        if fresh:
            sync_folder(self.path.parent)

    def _take(self, line: bytes) -> None:
        number = len(self.entries) + 1
        try:
            value: dict[str, Any] = json.loads(line)
            found = value.pop("digest")
            entry = Entry(value["seq"], value["id"], value["at_ms"], event_from_json(value["event"]))
            whole = digest_bytes(canonical_json(value)) == found
            in_place = value["prev"] == self._tip and entry.seq == number
        except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
            raise self._broken(number, f"it is not an event: {error!r}") from error
        if not whole:
            raise self._broken(number, "its bytes do not match its digest")
        if not in_place:
            raise self._broken(number, "it does not follow the line before")
        self.entries.append(entry)
        self._by_id.setdefault(entry.id, entry)
        self._tip = found
        self._whole_bytes += len(line)

    def _broken(self, number: int, what: str) -> RolloutError:
        return RolloutError(
            f"{self.path.name}, line {number}: {what}",
            hint=f"somebody changed {self.path}; restore it from a backup, or end the rollout: "
            "production serves on whatever the last snapshot says",
        )


def events_of(entries: list[Entry]) -> list[Mapping[str, Any]]:
    """Entries as JSON, for people and programs."""
    return [
        {
            "seq": entry.seq,
            "id": entry.id,
            "at_ms": entry.at_ms,
            **(entry.event.model_dump(mode="json") if entry.event is not None else {"kind": "unknown"}),
        }
        for entry in entries
    ]
