"""Segments: what was written is there, whatever happens to the file; bad bytes are located and cost only themselves."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.traffic.audit import check_segment
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.segment_format import (
    MAGIC,
    CorruptRange,
    SegmentHeader,
    SegmentName,
    encode,
    list_segments,
    parse_name,
    read_header,
    read_segment,
)
from posttrain.traffic.segments import SegmentWriter, ask_for_rotation
from tests.traffic.traffic_world import child, numbers_in, row, wait_until

_SMALL = TrafficConfig(segment_bytes=4096)


def test_rows_come_back_in_order_over_many_segments(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0", config=_SMALL)
    positions = [writer.append(row(number, text="x" * 300)) for number in range(100)]
    writer.close()
    assert positions == sorted(set(positions))
    assert numbers_in(tmp_path) == list(range(100))
    names = list_segments(tmp_path)
    assert len(names) > 5
    assert [str(name) for name in names] == sorted(str(name) for name in names)
    readers = [read_segment(tmp_path / str(name)) for name in names]
    counts = [len(list(reader)) for reader in readers]
    seals = [reader.seal for reader in readers]
    assert [seal.rows for seal in seals if seal] == counts
    assert [seal.closed for seal in seals if seal] == [False] * (len(names) - 1) + [True]


def test_a_seal_is_the_digest_of_what_stands_before_it(tmp_path: Path) -> None:
    import hashlib

    writer = SegmentWriter(tmp_path, owner="w0")
    writer.append(row(1))
    writer.close()
    data = writer.path.read_bytes()
    reader = read_segment(writer.path)
    end = [found.next_offset for found in reader][-1]
    assert reader.seal is not None
    assert reader.seal.sha256 == hashlib.sha256(data[:end]).hexdigest()


class _Growing(io.FileIO):
    """A file that is written on just after its end was seen."""

    def __init__(self, path: Path, rest: bytes) -> None:
        super().__init__(path, "rb")
        self._path = path
        self._rest = rest

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        if not data and self._rest:
            with self._path.open("ab") as stream:
                stream.write(self._rest)
            self._rest = b""
        return data


@pytest.mark.parametrize("seen", [1, 8, 30, -1])
def test_a_row_that_is_half_there_when_it_is_looked_at_is_not_skipped(tmp_path: Path, seen: int) -> None:
    """Nor taken for damage, where more rows follow by the time that the rest is read."""
    writer = SegmentWriter(tmp_path, owner="w0")
    for number in range(3):
        writer.append(row(number))
    writer.close()
    path = tmp_path / str(SegmentName("w0", 1))
    whole = path.read_bytes()
    cut = whole.index(encode(row(1))) + (seen if seen > 0 else len(encode(row(1))) - 1)
    path.write_bytes(whole[:cut])
    reader = read_segment(path)
    with _Growing(path, whole[cut:]) as stream:
        found = [payload for _, payload in reader._records(cast(BinaryIO, stream))]
    assert found[1:4] == [row(number) for number in range(3)]
    assert (reader.corrupt, reader.torn_at, reader.offset) == ([], None, len(whole))


def test_what_the_disk_changed_before_the_seal_is_seen(tmp_path: Path) -> None:
    """Even where its own checksum is right: the digest is of what was written, not of what is read."""
    writer = SegmentWriter(tmp_path, owner="w0")
    first, second = row(1, text="yes"), row(1, text="no ")
    writer.append(first)
    start = writer.path.read_bytes().index(encode(first))
    with writer.path.open("r+b") as stream:
        stream.seek(start)
        stream.write(encode(second))
    writer.close()
    assert check_segment(tmp_path, SegmentName("w0", 1), final=True).problem == "it is not what was sealed"


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0")
    reader = read_segment(writer.path)
    assert list(reader) == []
    for number in range(5):
        writer.append(row(number))
        assert [json.loads(found.payload)["number"] for found in reader] == [number]
        assert reader.torn_at is None
    writer.close()
    assert list(reader) == []
    assert reader.seal is not None


def test_one_owner_one_writer_and_never_the_same_file_again(tmp_path: Path) -> None:
    first = SegmentWriter(tmp_path, owner="w0")
    first.append(row(1))
    with pytest.raises(TrafficLogError, match="already writes"):
        SegmentWriter(tmp_path, owner="w0")
    other = SegmentWriter(tmp_path, owner="w1")
    first.close()
    before = first.path.read_bytes()
    second = SegmentWriter(tmp_path, owner="w0")
    second.append(row(2))
    second.close()
    other.close()
    assert first.path.read_bytes() == before
    headers = [read_header(tmp_path / str(name)) for name in list_segments(tmp_path)]
    assert [header.writer for header in headers if header] == ["w0@1", "w0@2", "w1@1"]


@pytest.mark.parametrize("owner", ["", "a/b", "../x", ".x", "a b"])
def test_an_owner_cannot_be_a_path(tmp_path: Path, owner: str) -> None:
    with pytest.raises(TrafficLogError, match="cannot name a segment"):
        SegmentWriter(tmp_path, owner=owner)


def test_a_segment_is_finished_by_age(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0", config=TrafficConfig(segment_seconds=0.01))
    writer.append(row(1))
    wait_until(lambda: len(list_segments(tmp_path)) == 2)
    time.sleep(0.5)  # an empty segment gets no older
    assert len(list_segments(tmp_path)) == 2
    writer.close()


def test_another_process_can_ask_for_rotation(tmp_path: Path) -> None:
    with child(lambda pipe: ask_for_rotation(tmp_path, "w0")):
        writer = SegmentWriter(tmp_path, owner="w0")
        first = writer.path
        writer.append(row(1))
        wait_until(lambda: not (tmp_path / "w0.rotate").exists() and writer.path != first)
    reader = read_segment(first)
    assert len(list(reader)) == 1
    assert reader.seal is not None
    writer.close()


def test_a_closed_log_takes_no_rows(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0")
    writer.close()
    writer.close()
    with pytest.raises(TrafficLogError, match="closed"):
        writer.append(row(1))


def test_a_forked_child_neither_writes_nor_keeps_the_owner(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0")
    writer.append(row(1))

    def work(pipe: int) -> None:
        try:
            writer.append(row(2))
        except TrafficLogError:
            os.write(pipe, b"refused")
        time.sleep(60)

    with child(work) as (_, pipe):
        assert os.read(pipe, 100) == b"refused"
        writer.append(row(3))
        writer.close()
        SegmentWriter(tmp_path, owner="w0").close()
    assert numbers_in(tmp_path) == [1, 3]


@pytest.mark.parametrize("durability", ["group", "strict"])
def test_whoever_waits_is_called_on_the_loop_once_the_row_is_on_the_disk(
    tmp_path: Path, durability: str
) -> None:
    writer = SegmentWriter(tmp_path, owner="w0", config=TrafficConfig(durability=durability))
    told: list[tuple[int, bool, bool]] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def tell(number: int, position: int, kept: bool) -> None:
            told.append((number, kept, writer.synced >= position))
            if len(told) == 50:
                done.set_result(None)

        for number in range(50):
            position = writer.append(row(number))
            writer.on_synced(position, lambda kept, n=number, p=position: tell(n, p, kept))
            await asyncio.sleep(0)
        await asyncio.wait_for(done, 60)
        late = loop.create_future()
        writer.on_synced(1, late.set_result)
        assert not late.done()
        assert await late

    asyncio.run(serve())
    assert told == [(number, True, True) for number in range(50)]
    assert writer.backlog_bytes == 0
    assert writer.strict == (durability == "strict")
    writer.close()


# -- bad bytes -------------------------------------------------------------------------------------


def _file(folder: Path, payloads: list[bytes]) -> tuple[Path, list[tuple[int, int]]]:
    """A segment and where its rows stand."""
    path = folder / "w0-0000000001.seg"
    data = MAGIC + encode(SegmentHeader("w0", 1, 1, 0, 0).payload())
    places = []
    for payload in payloads:
        places.append((len(data), len(data) + len(encode(payload))))
        data += encode(payload)
    path.write_bytes(data)
    return path, places


def test_a_tail_torn_at_any_byte_costs_only_itself(tmp_path: Path) -> None:
    path, places = _file(tmp_path, [row(number, text="é{}" * number) for number in range(3)])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        reader = read_segment(path)
        found = [json.loads(item.payload)["number"] for item in reader]
        assert found == list(range(sum(end <= size for _, end in places)))
        ends = [0, len(MAGIC), places[0][0], *(end for _, end in places)]
        last = max(end for end in ends if end <= size)
        assert reader.torn_at == (last if last < size else None)
        assert reader.offset == last
        assert reader.corrupt == []
        # What a power cut can leave behind the end of what was synced.
        path.write_bytes(whole[:size] + bytes(500))
        assert [json.loads(item.payload)["number"] for item in read_segment(path)] == found


def test_a_writer_goes_on_beside_a_torn_tail(tmp_path: Path) -> None:
    path, _ = _file(tmp_path, [row(1), row(2)])
    path.write_bytes(path.read_bytes()[:-3])
    writer = SegmentWriter(tmp_path, owner="w0")
    writer.append(row(3))
    writer.close()
    assert numbers_in(tmp_path) == [1, 3]


_texts = st.text(max_size=40) | st.just("").map(lambda _: encode(row(99)).decode("latin1"))


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(_texts, min_size=1, max_size=8), data=st.data())
def test_flipped_bytes_cost_only_the_rows_that_they_are_in(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    payloads = [row(number, text=text) for number, text in enumerate(texts)]
    path, places = _file(folder, payloads)
    content = bytearray(path.read_bytes())
    spots = data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6))
    for spot in spots:
        content[spot] ^= data.draw(st.integers(1, 255))
    changed = [spot for spot in spots if content[spot] != path.read_bytes()[spot]]
    path.write_bytes(content)
    reader = read_segment(path)
    found = [(item.offset, item.next_offset, item.payload) for item in reader]
    good = [
        (start, end, payload)
        for (start, end), payload in zip(places, payloads, strict=True)
        if not any(start <= spot < end for spot in changed)
    ]
    assert found == good
    bad = [*reader.corrupt]
    if reader.torn_at is not None:
        bad.append(CorruptRange(reader.torn_at, len(content)))
    assert all(any(spot in range(*item) for item in bad) for spot in changed)


def test_a_corrupt_record_is_located_and_reading_goes_on_from_any_offset(tmp_path: Path) -> None:
    path, places = _file(tmp_path, [row(number) for number in range(5)])
    content = bytearray(path.read_bytes())
    content[places[2][0]] ^= 0xFF  # its length
    path.write_bytes(content)
    for first in range(3):
        reader = read_segment(path, places[first][0])
        assert [json.loads(item.payload)["number"] for item in reader] == [
            n for n in range(first, 5) if n != 2
        ]
        assert reader.corrupt == [CorruptRange(*places[2])]


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=300))
def test_no_bytes_at_all_make_the_reader_raise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("noise") / "w0-0000000001.seg"
    for start in (b"", MAGIC):
        path.write_bytes(start + content)
        assert list(read_segment(path)) == []
        assert read_header(path) is None


def test_large_rows_are_read_whole(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0", config=TrafficConfig(segment_bytes=16 << 20))
    for number in range(4):
        writer.append(row(number, text="x" * (5 << 20)))
        writer.append(row(10 + number))
    writer.close()
    assert numbers_in(tmp_path) == [0, 10, 1, 11, 2, 12, 3, 13]


def test_names() -> None:
    assert parse_name("w0-0000000001.seg") is not None
    for name in ("w0.lock", "w0-1.seg", "w0-0000000001.seg.part", "-0000000001.seg", "secret"):
        assert parse_name(name) is None


def test_rows_of_many_threads_are_whole(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    writer = SegmentWriter(tmp_path, owner="w0", config=_SMALL)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: writer.append(row(number, text="x" * 100)), range(500)))
    writer.close()
    assert sorted(numbers_in(tmp_path)) == list(range(500))
