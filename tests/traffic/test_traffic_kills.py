"""Writers killed at random instants, disks that fill, disks that refuse to sync: what was acknowledged is there."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import resource
import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.segment_format import MAX_PAYLOAD_BYTES, list_segments, read_segment
from posttrain.traffic.segments import SegmentWriter
from tests.traffic.traffic_world import child, numbers_in, read_all, row, rows_in

_GROUP = TrafficConfig(segment_bytes=16 << 10, sync_seconds=0.001)
_STRICT = TrafficConfig(segment_bytes=16 << 10, durability="strict")
_AT_ONCE = 7


def _write_group(folder: Path, first: int) -> Callable[[int], None]:
    """Append for ever, some rows at a time, saying their numbers once ``append_all`` has returned."""

    def work(pipe: int) -> None:
        writer = SegmentWriter(folder, owner="w0", config=_GROUP)
        number = first
        while True:
            numbers = range(number, number + random.randint(1, _AT_ONCE))
            rows = [row(number, text="x" * random.randrange(400)) for number in numbers]
            assert writer.append_all(rows) == len(rows)
            os.write(pipe, struct.pack(f"<{len(rows)}q", *numbers))
            number = numbers.stop

    return work


def _write_strict(folder: Path, first: int) -> Callable[[int], None]:
    """Append for ever, saying each number once it is on the disk."""

    async def serve(pipe: int) -> None:
        writer = SegmentWriter(folder, owner="w0", config=_STRICT)
        number = first

        def say(kept: bool, said: int) -> None:
            assert kept
            os.write(pipe, struct.pack("<q", said))

        while True:
            position = writer.append(row(number, text="x" * random.randrange(400)))
            writer.on_synced(position, lambda kept, said=number: say(kept, said))
            number += 1
            await asyncio.sleep(0)

    return lambda pipe: asyncio.run(serve(pipe))


def _killed(work: Callable[[int], None], seconds: float) -> list[int]:
    """What a writer acknowledged before it was killed, ``seconds`` after its first row."""
    with child(work) as (pid, pipe):
        first = os.read(pipe, 8)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        said = first + read_all(pipe)
    return [number for (number,) in struct.iter_unpack("<q", said[: len(said) // 8 * 8])]


def _kill_many(folder: Path, way: Callable[[Path, int], Callable[[int], None]], times: int) -> None:
    rng = random.Random(times)
    acknowledged: list[int] = []
    first = 0
    for number in range(times):
        said = _killed(way(folder, first), rng.uniform(0, 0.03))
        acknowledged += said
        found = numbers_in(folder)
        # The kernel may have one write more than was said; strict has all that still waited for the disk.
        first = max(found) + 1
        assert len(list_segments(folder)) > number
    counts = Counter(numbers_in(folder))
    assert set(counts.values()) == {1}
    assert set(acknowledged) <= set(counts)
    if way is _write_group:
        assert len(counts) - len(acknowledged) <= times * _AT_ONCE
    assert len(acknowledged) > times * 10
    for name in list_segments(folder):
        reader = read_segment(folder / str(name))
        list(reader)
        assert reader.corrupt == []


@pytest.mark.parametrize("way", [_write_group, _write_strict])
def test_nothing_acknowledged_is_lost_to_a_kill(
    tmp_path: Path, way: Callable[..., Callable[[int], None]]
) -> None:
    _kill_many(tmp_path, way, 15)


@pytest.mark.slow
@pytest.mark.parametrize("way", [_write_group, _write_strict])
def test_nothing_acknowledged_is_lost_to_hundreds_of_kills(
    tmp_path: Path, way: Callable[..., Callable[[int], None]]
) -> None:
    for number in range(20):
        _kill_many(tmp_path / str(number), way, 20)


# -- disks that fill -------------------------------------------------------------------------------


@pytest.fixture
def traffic_small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here (needs root); the file-size limit is tested instead")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fill(writer: SegmentWriter, first: int) -> list[int]:
    """Append until the log says that it cannot; what it took."""
    taken: list[int] = []
    for number in range(first, first + 100_000, 3):
        numbers = range(number, number + 3)
        try:
            count = writer.append_all([row(number, text="x" * (number * 37 % 3000)) for number in numbers])
        except TrafficLogError as error:
            assert "no space left" in str(error)
            assert error.hint is not None
            return taken
        taken += numbers[:count]
    raise AssertionError("the disk did not fill")


def test_a_disk_that_fills_keeps_what_it_took_and_works_again(traffic_small_disk: Path) -> None:
    folder = traffic_small_disk / "traffic"
    ballast = traffic_small_disk / "ballast"
    ballast.write_bytes(bytes(300 << 10))
    writer = SegmentWriter(folder, owner="w0", config=TrafficConfig(segment_bytes=64 << 10))
    taken = _fill(writer, 0)
    assert len(taken) > 50
    for _ in range(3):
        with pytest.raises(TrafficLogError):
            writer.append(row(-1, text="x" * 30_000))
    assert numbers_in(folder) == taken
    ballast.unlink()
    time.sleep(1.1)  # a new segment is tried again after a second
    more = _fill(writer, 1_000_000)
    writer.close()
    assert len(more) > 50
    assert numbers_in(folder) == taken + more
    for name in list_segments(folder):
        reader = read_segment(folder / str(name))
        list(reader)
        assert (reader.corrupt, reader.torn_at) == ([], None)


def test_a_writer_needs_space_to_begin(traffic_small_disk: Path) -> None:
    (traffic_small_disk / "w0.lock").touch()
    with (traffic_small_disk / "ballast").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            pass
    with pytest.raises(TrafficLogError, match="no space left"):
        SegmentWriter(traffic_small_disk, owner="w0")
    assert list_segments(traffic_small_disk) == []
    (traffic_small_disk / "ballast").unlink()
    writer = SegmentWriter(traffic_small_disk, owner="w0")
    writer.append(row(1))
    writer.close()
    assert numbers_in(traffic_small_disk) == [1]


def test_a_limit_in_the_middle_of_a_row_leaves_no_half_row(tmp_path: Path) -> None:
    def work(pipe: int) -> None:
        # The kernel writes up to the limit and returns less than was asked.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        writer = SegmentWriter(tmp_path, owner="w0")
        taken = _fill(writer, 0)
        writer.rotate()
        taken += _fill(writer, 1000)
        writer.close()
        os.write(pipe, struct.pack(f"<{len(taken)}q", *taken))

    with child(work) as (_, pipe):
        said = read_all(pipe)
    taken = [number for (number,) in struct.iter_unpack("<q", said)]
    assert numbers_in(tmp_path) == taken
    assert max(taken) >= 1000
    for name in list_segments(tmp_path):
        reader = read_segment(tmp_path / str(name))
        list(reader)
        assert (reader.corrupt, reader.torn_at) == ([], None)


def test_of_rows_that_do_not_all_fit_the_first_ones_stay(tmp_path: Path) -> None:
    """Whoever reads the file as it grows may have seen them: taken away, what comes next would stand at their place."""

    def work(pipe: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        writer = SegmentWriter(tmp_path, owner="w0")
        rows = [row(number, text="x" * 1000) for number in range(20)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        count = writer.append_all(rows)
        with pytest.raises(TrafficLogError, match="no space left"):
            writer.append_all(rows[count:])
        assert writer.append_all([row(100), *rows]) == 1, "what is small enough for the rest"
        assert writer.path.stat().st_size <= 10_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert writer.append_all(rows[count:]) == 20 - count
        writer.close()
        os.write(pipe, struct.pack("<q", count))

    with child(work) as (_, pipe):
        (count,) = struct.unpack("<q", read_all(pipe))
    assert 5 < count < 10
    assert numbers_in(tmp_path) == [*range(count), 100, *range(count, 20)]
    (name,) = list_segments(tmp_path)
    reader = read_segment(tmp_path / str(name))
    assert len(list(reader)) == 21
    assert (reader.corrupt, reader.torn_at) == ([], None)


def test_a_row_that_is_too_long_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0")
    with pytest.raises(TrafficLogError, match="at most"):
        writer.append_all([row(1), bytes(MAX_PAYLOAD_BYTES + 1)])
    writer.append(row(2))
    writer.close()
    assert numbers_in(tmp_path) == [2]


def test_a_backlog_is_a_full_log(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, owner="w0", config=TrafficConfig(sync_seconds=10, backlog_bytes=20_000))
    with pytest.raises(TrafficLogError, match="does not keep up"):
        for number in range(1000):
            writer.append(row(number, text="x" * 1000))
    assert 18 <= len(numbers_in(tmp_path)) <= 20
    writer.close()


# -- disks that refuse to sync ---------------------------------------------------------------------


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter)))


_FDATASYNC = {"x86_64": 75, "aarch64": 83}


def _refuse_to_sync(descriptor: int | None) -> None:
    """From now on the kernel answers fdatasync of this descriptor (None: of any) in this process with EIO."""
    load, equal, answer = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 5
    lines = [(load, 0, 0, 0), (equal, 0, 3 if descriptor is not None else 1, _FDATASYNC[os.uname().machine])]
    if descriptor is not None:
        lines += [(load, 0, 0, 16), (equal, 0, 1, descriptor)]
    lines += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    filters = (_Filter * len(lines))(*(_Filter(*line) for line in lines))
    program = _Program(len(lines), filters)
    library = ctypes.CDLL(None, use_errno=True)
    assert library.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    # seccomp(SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC): for the thread that syncs, too.
    number = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
    assert library.syscall(number, 1, 1, ctypes.byref(program)) == 0


def _say_what_syncing_told(folder: Path, pipe: int, *, every: bool) -> None:
    async def serve() -> str:
        writer = SegmentWriter(folder, owner="w0", config=_STRICT)
        told: list[bool] = []
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def tell(kept: bool) -> None:
            told.append(kept)
            done.set()

        async def append(number: int) -> None:
            done.clear()
            writer.on_synced(writer.append(row(number)), tell)
            await asyncio.wait_for(done.wait(), 60)

        await append(1)
        _refuse_to_sync(None if every else writer._segment.descriptor)
        await append(2)
        if not every:
            await append(3)
        names = [failure.segment for failure in writer.failures]
        rewritten = [failure.rewritten for failure in writer.failures]
        assert loop.is_running()
        writer.close()
        return repr((told, names, rewritten))

    os.write(pipe, asyncio.run(serve()).encode())


def _needs_seccomp() -> None:
    if os.uname().sysname != "Linux" or os.uname().machine not in _FDATASYNC:
        pytest.skip("makes a sync fail by a system-call filter of Linux on x86-64 or ARM")


def test_rows_whose_sync_failed_are_written_again(tmp_path: Path) -> None:
    _needs_seccomp()
    with child(lambda pipe: _say_what_syncing_told(tmp_path, pipe, every=False)) as (_, pipe):
        said = read_all(pipe).decode()
    assert said == repr(([True, True, True], ["w0-0000000001.seg"], [True]))
    by_file = {
        str(name): [found.payload for found in read_segment(tmp_path / str(name))]
        for name in list_segments(tmp_path)
    }
    assert by_file == {"w0-0000000001.seg": [row(1), row(2)], "w0-0000000002.seg": [row(2), row(3)]}
    first = read_segment(tmp_path / "w0-0000000001.seg")
    list(first)
    assert first.seal is None


def test_a_disk_that_never_syncs_is_never_called_synced(tmp_path: Path) -> None:
    _needs_seccomp()
    with child(lambda pipe: _say_what_syncing_told(tmp_path, pipe, every=True)) as (_, pipe):
        said = read_all(pipe).decode()
    told, names, rewritten = eval(said)  # our own child's repr
    assert told == [True, False]
    assert len(names) >= 2
    assert set(names) >= {"w0-0000000001.seg", "w0-0000000002.seg"}
    assert rewritten[0]
    assert {found["number"] for found in rows_in(tmp_path)} == {1, 2}
