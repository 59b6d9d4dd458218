"""Segment files: their names, their bytes, and reading them.

Here: the format and a reader that bad bytes cannot stop. Not here: writing them live (``segments``), rewriting finished
ones (``rewriting``).

A file is eight bytes of magic and then records, ``length u32 | crc32 u32 | payload``, little-endian; the checksum
starts from the length, so that it covers both. Every payload is one JSON object: first the header (who writes, from
when), then rows, last the seal (how many rows, the digest of everything before it). A file without a seal is being
written, or its writer died.

A record that does not check is *corrupt* when a good one follows, and the reader goes on there; otherwise the file is
*torn* at that place, as a crash leaves it, or its writer has not finished the record. Looking for the next good record
cannot be led astray by what users write: JSON text has no byte below 0x20, and the length of every record has one.

To change the format: another magic, and a reader that knows both.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

try:
    from isal.isal_zlib import crc32
except ImportError:  # the same checksum, at an eighth of the speed
    from zlib import crc32

MAGIC = b"PTTLOG1\n"
HEAD = struct.Struct("<II")
_pack: Final = HEAD.pack
MAX_PAYLOAD_BYTES: Final = 256 << 20
"""Small enough that the highest byte of a length is never a byte of JSON text."""
SUFFIX = ".seg"

_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})-(\d{10})\.seg")
_HEADER_PREFIX = b'{"kind":"segment"'
_SEAL_PREFIX = b'{"kind":"seal"'
_READ_BYTES = 1 << 20


class SegmentName(NamedTuple):
    """Who wrote a segment, and the how manieth it is; names sort as they were written."""

    owner: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.owner}-{self.sequence:010d}{SUFFIX}"


class SegmentRow(NamedTuple):
    """One row and where it stands."""

    offset: int
    next_offset: int
    """Where reading goes on."""
    payload: bytes


class CorruptRange(NamedTuple):
    """Bytes that are no record, between two that are."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first record."""

    owner: str
    sequence: int
    first: int
    """Sequence of the first segment of the same writer: what a process that died wrote is known by it."""
    created_ms: int
    pid: int

    @property
    def writer(self) -> str:
        """Names one writer for ever: one owner, from one start."""
        return f"{self.owner}@{self.first}"

    def payload(self) -> bytes:
        """The record's bytes."""
        says = {"v": 1, **asdict(self)}
        return _HEADER_PREFIX + b"," + json.dumps(says, separators=(",", ":")).encode()[1:]


@dataclass(frozen=True, slots=True)
class Seal:
    """The last record of a finished segment."""

    rows: int
    sha256: str
    """Of every byte before the seal."""
    closed: bool
    """Whether the writer stopped in good order, so that no segment of it follows."""

    def payload(self) -> bytes:
        """The record's bytes."""
        return _SEAL_PREFIX + b"," + json.dumps(asdict(self), separators=(",", ":")).encode()[1:]


def encode(payload: bytes) -> bytes:
    """A record."""
    size = len(payload)
    return _pack(size, crc32(payload, size)) + payload


def parse_name(name: str) -> SegmentName | None:
    """What a file's name says, None where it is no segment."""
    match = _NAME.fullmatch(name)
    return SegmentName(match[1], int(match[2])) if match else None


def list_segments(folder: Path) -> list[SegmentName]:
    """All segments of all owners, each owner's in order; a folder that is not there has none."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(found for name in names if (found := parse_name(name)) is not None)


def read_segment(path: Path, offset: int = 0) -> SegmentReader:
    """Iterate over the rows from ``offset`` on: 0, or a ``next_offset`` of before."""
    return SegmentReader(path, offset)


def read_header(path: Path) -> SegmentHeader | None:
    """The header; None where it is not (yet) there, or the bytes are not ours."""
    with path.open("rb") as stream:
        start = stream.read(4096)
    if not start.startswith(MAGIC):
        return None
    record = _record_at(start, len(MAGIC))
    if record is None or not record.startswith(_HEADER_PREFIX):
        return None
    return _header(record)


class SegmentReader:
    """Iterates over :class:`SegmentRow`; what was met on the way is in its fields afterwards.

    Never raises for bad bytes. Raises FileNotFoundError where the file is gone, as every open does.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Where the next reading goes on: after the last good record."""
        self.corrupt: list[CorruptRange] = []
        """Ranges in the middle that are no records."""
        self.torn_at: int | None = None
        """Where bytes begin that are no whole record, to the end of the file."""
        self.seal: Seal | None = None
        """The seal, if it was read."""

    def __iter__(self) -> Iterator[SegmentRow]:
        with self.path.open("rb") as stream:
            for start, payload in self._records(stream):
                if payload.startswith(_SEAL_PREFIX) and (seal := _seal(payload)) is not None:
                    self.seal = seal
                elif not payload.startswith(_HEADER_PREFIX):
                    yield SegmentRow(start, self.offset, payload)

    def _records(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        self.torn_at = None
        if self.offset == 0 and not self._skip_magic(stream):
            return
        stream.seek(self.offset)
        buffer, at = b"", 0  # the next record begins at buffer[at], which is self.offset in the file
        while True:
            record = _record_at(buffer, at)
            if record is None:
                buffer, at = _refill(stream, buffer[at:]), 0
                if not buffer:
                    return
                record = _record_at(buffer, 0)
            if record is None:
                # Not whole, or not right: only the rest of the file tells which. What was there of it is read again:
                # it may be whole by now, or another one that took its place when the disk was full.
                stream.seek(self.offset)
                buffer = stream.read()
                at = _next_record(buffer, 0)
                if at < 0:
                    self.torn_at = self.offset
                    return
                if at > 0:
                    self.corrupt.append(CorruptRange(self.offset, self.offset + at))
                    self.offset += at
                continue
            start = self.offset
            at += HEAD.size + len(record)
            self.offset += HEAD.size + len(record)
            yield start, record

    def _skip_magic(self, stream: BinaryIO) -> bool:
        start = stream.read(len(MAGIC))
        if start == MAGIC:
            self.offset = len(MAGIC)
            return True
        at = _next_record(start + stream.read(), 0)
        if at < 0:
            self.torn_at = 0 if start else None
            return False
        self.corrupt.append(CorruptRange(0, at))
        self.offset = at
        return True


def _refill(stream: BinaryIO, rest: bytes) -> bytes:
    """``rest`` and enough of the file behind it for the record that it begins with."""
    wanted = _READ_BYTES
    if len(rest) >= HEAD.size:
        size = HEAD.unpack_from(rest)[0]
        wanted += size if size <= MAX_PAYLOAD_BYTES else 0
    return rest + stream.read(wanted)


def _record_at(buffer: bytes, at: int) -> bytes | None:
    """The payload of a good record at this place."""
    body = at + HEAD.size
    if body > len(buffer):
        return None
    size, checksum = HEAD.unpack_from(buffer, at)
    if not 2 <= size <= MAX_PAYLOAD_BYTES or body + size > len(buffer):
        return None
    payload = buffer[body : body + size]
    return payload if crc32(payload, size) == checksum else None


def _next_record(buffer: bytes, start: int) -> int:
    """Where the next good record begins, -1 where none does."""
    brace = buffer.find(b"{", start + HEAD.size)
    while brace >= 0:
        if _record_at(buffer, brace - HEAD.size) is not None:
            return brace - HEAD.size
        brace = buffer.find(b"{", brace + 1)
    return -1


def _header(payload: bytes) -> SegmentHeader | None:
    try:
        value: dict[str, Any] = json.loads(payload)
        return SegmentHeader(**{field.name: value[field.name] for field in fields(SegmentHeader)})
    except (ValueError, KeyError):
        return None


def _seal(payload: bytes) -> Seal | None:
    try:
        value: dict[str, Any] = json.loads(payload)
        return Seal(**{field.name: value[field.name] for field in fields(Seal)})
    except (ValueError, KeyError):
        return None
