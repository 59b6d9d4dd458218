"""Rewriting finished segments: rows are blanked, everything else stays where it is.

Here: replacing a segment whole. Not here: which rows go (``erasure``, ``retention``). A row that goes becomes an empty
object of the same length, so offsets, and with them everybody's cursors, stay right; ranges that are no records become
zeros, since nobody knows whose they were. The new file takes the old one's name in one step.

Only segments that nobody writes any more: the caller made sure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from posttrain.core.atomic import write_atomic
from posttrain.traffic.segment_format import Seal, encode, read_segment


def blank_rows(path: Path, goes: Callable[[bytes], bool]) -> int:
    """Blank the rows of a finished segment of which ``goes`` says so; how many. Nothing to blank: nothing is written.

    A segment with damaged bytes is always written anew, and sealed.
    """
    reader = read_segment(path)
    found = list(reader)
    gone = [row for row in found if goes(row.payload)]
    if not gone and not reader.corrupt and reader.torn_at is None:
        return 0
    content = bytearray(path.read_bytes()[: _end_of_rows(reader.offset, reader.seal)])
    for start, end in reader.corrupt:
        content[start:end] = bytes(end - start)
    for row in gone:
        content[row.offset : row.next_offset] = encode(b"{" + b" " * (len(row.payload) - 2) + b"}")
    closed = reader.seal is not None and reader.seal.closed
    seal = Seal(len(found), hashlib.sha256(content).hexdigest(), closed)
    write_atomic(path, bytes(content) + encode(seal.payload()), mode=0o600)
    return len(gone)


def _end_of_rows(offset: int, seal: Seal | None) -> int:
    return offset if seal is None else offset - len(encode(seal.payload()))
