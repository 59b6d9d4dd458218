"""Does the index have what the segments say, and are the segments whole?

Here: counting both and naming the differences. Not here: mending; the indexer does that by reading on, or from the
beginning where the index is moved away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from posttrain.traffic.columns import ENDED, REQUESTS, entry_of
from posttrain.traffic.history import verify_parts
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.indexer import look_at
from posttrain.traffic.removals import Removals
from posttrain.traffic.segment_format import SegmentName, encode, read_header, read_segment

_NAMED = 20
"""How many ids a difference names."""


@dataclass(frozen=True, slots=True)
class OwnerCount:
    """One owner's requests, in its segments and in the index."""

    owner: str
    accepted: int
    """Requests with a ``begin`` in the segments that are there, without erased ones."""
    ended: int
    """Of those, with an ``end`` in the segments."""
    indexed: int
    """Of the accepted, those in the index."""
    lost: int
    """Of the accepted, those that the index calls lost."""
    missing: tuple[str, ...]
    """Ids that are accepted and not in the index; the first twenty."""
    unended: tuple[str, ...]
    """Ids that ended in the segments and not in the index; the first twenty."""
    extra: tuple[str, ...]
    """Ids in the index that neither a segment nor the history could have brought; the first twenty."""

    @property
    def agrees(self) -> bool:
        """Whether there is no difference."""
        return not self.missing and not self.unended and not self.extra


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One segment, checked byte by byte."""

    name: str
    rows: int
    sealed: bool
    final: bool
    """Whether nothing more comes to it."""
    corrupt: tuple[tuple[int, int], ...]
    """Where bytes are that are no records."""
    torn_bytes: int
    problem: str | None
    """Why it is not what its writer wrote; None also for a tail that a crash tore or a living writer is writing."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A whole traffic folder, checked."""

    segments: tuple[SegmentState, ...]
    owners: tuple[OwnerCount, ...]
    history: tuple[str, ...]
    """What is wrong with it."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return (
            not self.history
            and all(o.agrees for o in self.owners)
            and not any(s.problem for s in self.segments)
        )


def verify_log(folder: Path, index: TrafficIndex) -> Verified:
    """Check checksums, seals, the history's digests, and that the index agrees."""
    look = look_at(folder)
    states = tuple(check_segment(folder, name, final=name in look.final) for name in look.names)
    return Verified(states, tuple(reconcile(folder, index)), tuple(verify_parts(folder, index)))


def check_segment(folder: Path, name: SegmentName, *, final: bool) -> SegmentState:
    """Check one segment."""
    path = folder / str(name)
    reader = read_segment(path)
    rows = sum(1 for _ in reader)
    torn = 0 if reader.torn_at is None else path.stat().st_size - reader.torn_at
    problem, header = None, read_header(path)
    if reader.corrupt:
        damaged = sum(end - start for start, end in reader.corrupt)
        problem = f"{damaged} bytes in {len(reader.corrupt)} places are damaged"
    elif header is not None and (header.owner, header.sequence) != name:
        problem = f"it says that it is {SegmentName(header.owner, header.sequence)}"
    elif reader.seal is not None:
        end = reader.offset - len(encode(reader.seal.payload()))
        if (
            reader.seal.rows != rows
            or reader.seal.sha256 != hashlib.sha256(path.read_bytes()[:end]).hexdigest()
        ):
            problem = "it is not what was sealed"
        elif torn:
            problem = f"{torn} bytes follow the seal"
    places = tuple((item.start, item.end) for item in reader.corrupt)
    return SegmentState(str(name), rows, reader.seal is not None, final, places, torn, problem)


def reconcile(folder: Path, index: TrafficIndex) -> list[OwnerCount]:
    """Accepted requests beside rows in the index, for each owner of segments that are there.

    Rows of the last moments may not be indexed yet: call it with the indexer at rest, or look twice.
    """
    removals = Removals.load(folder)
    began: dict[str, set[str]] = {}
    ended: dict[str, set[str]] = {}
    known: dict[str, set[str]] = {}
    writers: dict[str, set[str]] = {}
    for name in look_at(folder).names:
        header = read_header(folder / str(name))
        writers.setdefault(name.owner, set()).add(
            header.writer if header else f"{name.owner}@{name.sequence}"
        )
        began.setdefault(name.owner, set())
        ended.setdefault(name.owner, set())
        for row in read_segment(folder / str(name)):
            entry = entry_of(row.payload, "")
            if entry is None or entry.table is not REQUESTS or not removals.keeps(entry):
                continue
            known.setdefault(name.owner, set()).add(entry.id)
            if entry.accepts:
                began[name.owner].add(entry.id)
            elif entry.rank >= ENDED:
                ended[name.owner].add(entry.id)
    with index.database.reading() as connection:
        found = connection.exec_driver_sql('SELECT id, "rank", finish, writer FROM requests').all()
    rank = {row[0]: row[1] for row in found}
    lost = {row[0] for row in found if row[2] == "lost"}
    cursors = index.cursors()
    counted = []
    for owner in sorted(began):
        accepted = began[owner]
        # A writer some of whose segments left for the history: the index rightly has what no segment has.
        moved = {
            cursor.writer
            for cursor in cursors.values()
            if not (folder / cursor.segment).exists() or cursor.archived
        }
        here = writers[owner] - moved
        extra = {row[0] for row in found if row[3] in here} - known.get(owner, set())
        counted.append(
            OwnerCount(
                owner,
                len(accepted),
                len(accepted & ended[owner]),
                len(accepted & rank.keys()),
                len(accepted & lost),
                _some(accepted - rank.keys()),
                _some(name for name in ended[owner] if name not in rank or rank[name] < ENDED),
                _some(extra),
            )
        )
    return counted


def _some(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names)[:_NAMED])
