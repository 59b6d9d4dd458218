"""What was removed for good: tombstones, so that no later reading of the log brings it back.

Here: the file ``removed.jsonl`` beside the segments, one line a removal, and asking it. Not here: removing
(``erasure``, ``retention``). A tombstone holds hashes, ids, times and counts, never content. Losing the file is safe as
long as the segments and the history that it speaks of are the ones that were scrubbed; it is for late rows and for
backups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from posttrain.core.atomic import write_atomic
from posttrain.traffic.columns import Entry
from posttrain.traffic.errors import TrafficLogError

REMOVED_FILE = "removed.jsonl"


@dataclass(frozen=True, slots=True)
class Removal:
    """One removal."""

    at_ms: int
    """When it was asked for: what a user wrote later is not concerned."""
    user: str | None = None
    """The hash whose rows went."""
    requests: tuple[str, ...] = ()
    """Ids of the requests that went: late feedback on them goes, too."""
    before_ms: int | None = None
    """Retention: every row older than this went."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was removed, by where."""


class Removals:
    """All removals of a traffic folder."""

    def __init__(self, removals: tuple[Removal, ...] = ()) -> None:
        self.removals = removals
        self._before_ms = max(
            (item.before_ms for item in removals if item.before_ms is not None), default=None
        )
        self._users: dict[str, int] = {}
        self._ids: set[str] = set()
        for item in removals:
            if item.user is not None:
                self._users[item.user] = max(item.at_ms, self._users.get(item.user, item.at_ms))
            self._ids.update(item.requests)

    @classmethod
    def load(cls, folder: Path) -> Removals:
        """What is in the folder's file. Raises TrafficLogError where it is damaged: then nothing may be indexed."""
        try:
            lines = (folder / REMOVED_FILE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return cls()
        try:
            found = [json.loads(line) for line in lines]
            return cls(tuple(Removal(**{**item, "requests": tuple(item["requests"])}) for item in found))
        except (ValueError, TypeError, KeyError) as error:
            raise TrafficLogError(
                f"{folder / REMOVED_FILE} is damaged: {error}",
                hint="put it back from a backup; without it, rows that were erased could return",
            ) from error

    def keeps(self, entry: Entry) -> bool:
        """Whether a row may be in the index."""
        if not self.removals:
            return True
        at_ms = entry.values.get("at_ms")
        if self._before_ms is not None and at_ms is not None and at_ms < self._before_ms:
            return False
        if entry.id in self._ids or entry.values.get("of") in self._ids:
            return False
        user = entry.values.get("user")
        return user not in self._users or (at_ms is not None and at_ms > self._users[user])


class RemovalsFile:
    """The folder's removals, read again when the file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[int, ...] | None = None
        self._removals = Removals()

    def now(self) -> Removals:
        """What is removed now. Raises TrafficLogError."""
        try:
            stat = (self._folder / REMOVED_FILE).stat()
        except FileNotFoundError:
            return Removals()
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen != self._seen:
            self._removals, self._seen = Removals.load(self._folder), seen
        return self._removals


def save_removal(folder: Path, removal: Removal) -> None:
    """Note a removal, durably; again with its counts takes its place. The caller holds the maintenance lock."""
    kept = [item for item in Removals.load(folder).removals if not _stands_for(removal, item)]
    lines = [json.dumps(asdict(item), separators=(",", ":")) + "\n" for item in (*kept, removal)]
    write_atomic(folder / REMOVED_FILE, "".join(lines).encode(), mode=0o600)


def _stands_for(new: Removal, old: Removal) -> bool:
    if new.before_ms is not None and old.before_ms is not None:
        return new.before_ms >= old.before_ms
    return (new.user, new.at_ms, new.requests) == (
        old.user,
        old.at_ms,
        old.requests,
    ) and old.before_ms is None
