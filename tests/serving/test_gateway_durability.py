"""Nothing acknowledged is lost: the whole gateway, killed at random instants under load, and then reconciled.

*Covered*: SIGKILL of workers, the indexer, control and all at once; disks that fill; damaged tails; clocks that jump.
*Not covered*: power cuts, since no test may cut it. With ``durability: group`` one can cost the rows of about the last
``sync_seconds`` and a sync; ``strict`` sends no answer's last byte before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.traffic.segment_format import SegmentRow, list_segments, read_segment
from tests.serving.durability_world import (
    Books,
    GatewayProcesses,
    Kill,
    Load,
    Reconciled,
    check,
    look,
    processes,
    until,
)
from tests.serving.gateway_world import run

pytestmark = pytest.mark.xdist_group("durability")

_DURABILITIES = ("group", "strict")
_KINDS: tuple[Kill, ...] = ("worker", "worker", "indexer", "control", "respawning", "everything")


def killed(folder: Path, durability: str, kills: list[Kill]) -> None:
    """Run a gateway under load through these kills, stop it, and compare."""

    async def test() -> None:
        draw = random.Random(f"{durability} {len(kills)}")
        async with processes(folder, traffic={"durability": durability}) as gateway:
            load = Load(gateway.port, seed=len(kills))
            async with load.running() as books:
                for what in kills:
                    await load.progress()
                    await gateway.kill(what, draw)
                    if what in ("control", "respawning", "everything"):
                        await gateway.start()
                await load.progress(50)
            await gateway.stop()
            found = look(gateway.traffic)
            check(books, found)
            assert not books.others
            assert len(books.answers) > 10 * len(kills)
            assert books.thanked
            print(  # noqa: T201 - the figures of a long run
                f"{durability}: {len(kills)} kills, {books.asked} asked, {len(books.answers)} answered whole, "
                f"{books.cut} cut, {found.accepted} accepted, {len(found.lost)} lost, "
                f"{len(books.thanked)} of {len(books.told)} feedback acknowledged, {len(found.feedback)} kept"
            )

    run(test, 60 + 30 * len(kills))


@pytest.mark.parametrize(
    ("durability", "kills"),
    [("group", ["indexer", "worker", "everything"]), ("strict", ["worker", "control"])],
)
def test_nothing_acknowledged_is_lost_when_processes_are_killed(
    tmp_path: Path, durability: str, kills: list[Kill]
) -> None:
    killed(tmp_path, durability, kills)


@pytest.mark.slow
@pytest.mark.parametrize("durability", _DURABILITIES)
def test_nothing_acknowledged_is_lost_to_hundreds_of_kills_of_everything(
    tmp_path: Path, durability: str
) -> None:
    draw = random.Random(durability)
    count = int(os.environ.get("POSTTRAIN_KILLS", "200"))
    killed(tmp_path, durability, [draw.choice(_KINDS) for _ in range(count)])


# -- disks that fill -------------------------------------------------------------------------------


def limit_segments(gateway: GatewayProcesses, more: int | None) -> None:
    """No worker's segment may grow by more than this; None: they may again. It ends in the middle of a row."""
    known = json.loads((gateway.folder / "workers" / "workers.json").read_bytes())
    for owner, (pid, *_) in known.items():
        newest = max(name for name in list_segments(gateway.traffic) if name.owner == owner)
        size = (gateway.traffic / str(newest)).stat().st_size
        soft = resource.RLIM_INFINITY if more is None else size + more
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))


def test_a_full_disk_refuses_under_load_and_what_was_answered_is_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with processes(tmp_path, traffic={"on_full": "refuse"}) as gateway:
            load = Load(gateway.port, seed=1)
            refused = (503, "log_unavailable")
            async with load.running() as books:
                for _ in range(3):
                    await load.progress(40)
                    limit_segments(gateway, 2500)
                    wanted = books.others[refused] + 40
                    await until(lambda wanted=wanted: books.others[refused] >= wanted, 60)
                    limit_segments(gateway, None)
                await load.progress(40)
            await gateway.stop()
            found = look(gateway.traffic)
            check(books, found)
            assert set(books.others) == {refused}
            assert intact(gateway.traffic)

    run(test, 180)


def test_a_full_disk_sheds_rows_under_load_and_counts_each(tmp_path: Path) -> None:
    async def test() -> None:
        async with processes(tmp_path, traffic={"on_full": "shed"}) as gateway:
            load = Load(gateway.port, seed=2)
            async with load.running() as books:
                for _ in range(3):
                    await load.progress(40)
                    limit_segments(gateway, 2500)
                    await load.progress(60)
                    limit_segments(gateway, None)
                await load.progress(40)
            assert books.cut == 0 and not books.others
            assert books.thanked == books.told
            expected = 2 * books.asked + len(books.told)
            kept = len(gateway.rows())
            assert kept < expected

            async def counted() -> int:
                workers = (await gateway.status())["workers"]
                return sum(worker["stats"].get("lost_rows", 0) for worker in workers.values())

            while await counted() != expected - kept:  # workers say so every second
                await asyncio.sleep(0.1)
            await gateway.stop()
            found = look(gateway.traffic)
            assert all(count.agrees for count in found.counts), found.counts
            assert found.lost.isdisjoint(found.ends)
            assert intact(gateway.traffic)

    run(test, 180)


@pytest.fixture
def durability_small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB where the home will be, with the traffic log and its index."""
    folder = tmp_path / "home"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here (needs root); limits on file sizes are tested instead")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_for_log_and_index_and_a_worker_that_dies_meanwhile(
    tmp_path: Path, durability_small_disk: Path
) -> None:
    async def test() -> None:
        draw = random.Random(3)
        async with processes(tmp_path) as gateway:
            load = Load(gateway.port, seed=3)
            async with load.running() as books:
                await load.progress(40)
                ballast = durability_small_disk / "serving" / "ballast"
                with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
                    while stream.write(bytes(4096)):
                        pass
                await until(lambda: books.others[503, "log_unavailable"] >= 20, 60)
                await gateway.kill("worker", draw)
                async with asyncio.timeout(60):  # the next one cannot begin its log, and is not the last
                    while sum((await gateway.status())["restarts"].values()) < 2:
                        await asyncio.sleep(0.1)
                ballast.unlink()
                await load.progress(40)
                async with asyncio.timeout(60):
                    while await listening(gateway) < 2:
                        await asyncio.sleep(0.1)
            await gateway.stop()
            found = look(gateway.traffic)
            check(books, found)
            assert intact(gateway.traffic)

    run(test, 180)


async def listening(gateway: GatewayProcesses) -> int:
    """How many workers take requests."""
    workers = (await gateway.status())["workers"]
    return sum(worker["port"] > 0 for worker in workers.values())


def intact(traffic: Path) -> bool:
    """Whether no segment has bytes that are no rows."""
    for name in list_segments(traffic):
        reader = read_segment(traffic / str(name))
        list(reader)
        if reader.corrupt or reader.torn_at is not None:
            return False
    return True


# -- damaged tails ---------------------------------------------------------------------------------


def _cut_short(path: Path, last: SegmentRow) -> None:
    os.truncate(path, last.next_offset - 3)


def _garble(path: Path, last: SegmentRow) -> None:
    with path.open("r+b") as stream:
        stream.seek(last.next_offset - 5)
        stream.write(b"\xff\x00")
        stream.seek(0, os.SEEK_END)
        stream.write(bytes(4096))


def test_a_damaged_tail_costs_its_own_row_and_no_other(tmp_path: Path) -> None:
    async def test() -> None:
        draw = random.Random(4)
        async with processes(tmp_path) as gateway:
            load = Load(gateway.port, seed=4)
            async with load.running() as books:
                await load.progress(60)
                await gateway.kill("everything", draw)
                gone = []
                for owner, damage in (("w0", _cut_short), ("w1", _garble)):
                    path = gateway.traffic / f"{owner}-0000000001.seg"
                    rows = list(read_segment(path))
                    if rows:  # the kernel may have given one of the workers no connection
                        gone.append(json.loads(rows[-1].payload))
                        damage(path, rows[-1])
                assert gone
                # What the index had of the damaged rows is no evidence: it is made again from what is left.
                for path in gateway.traffic.glob("index.sqlite*"):
                    path.unlink()
                await gateway.start()
                await load.progress(60)
            await gateway.stop()
            found = look(gateway.traffic)
            for row in gone:
                _forget(row, books, found)
            check(books, found)

    run(test, 180)


def _forget(row: dict[str, Any], books: Books, found: Reconciled) -> None:
    """Take what a damaged row said out of the books; the request of an ``end`` must now be lost."""
    if row["kind"] == "feedback":
        books.thanked.discard(row["id"])
        assert row["id"] not in found.feedback
    elif row["kind"] == "end":
        assert row["id"] in found.lost
        books.answers.pop(row["id"], None)
    else:  # a begin: no more than the start of an answer was sent
        assert row["id"] not in found.requests
        books.named.discard(row["id"])
        assert row["id"] not in books.answers


# -- clocks that jump ------------------------------------------------------------------------------

_CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int file = -1;
    char text[32] = {0};
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (failed || clock != CLOCK_REALTIME) return failed;
    if (file < 0) file = open(getenv("TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
    if (file >= 0 && pread(file, text, sizeof text - 1, 0) > 0) now->tv_sec += atol(text);
    return 0;
}
"""


def test_a_wall_clock_that_jumps_costs_no_row_and_no_order(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(
            "sets the clock of the gateway's processes with a small library, which needs a C compiler"
        )
    (tmp_path / "clock.c").write_text(_CLOCK, encoding="utf-8")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True
    )
    jump = tmp_path / "jump"

    def set_clock(seconds: int) -> None:
        jump.write_text(f"{seconds:+012d}", encoding="ascii")  # always as long: never seen half-written

    async def test() -> None:
        async with processes(
            tmp_path,
            environment={"LD_PRELOAD": str(tmp_path / "clock.so"), "TEST_CLOCK": str(jump)},
        ) as gateway:
            load = Load(gateway.port, seed=5)
            async with load.running() as books:
                for seconds in (0, 7200, -7200, 30, 0):
                    set_clock(seconds)
                    await asyncio.sleep(0.3)
                    await load.progress(40)
            await gateway.stop()
            found = look(gateway.traffic)
            check(books, found)
            assert books.cut == 0 and not books.others
            rows = gateway.rows()
            owners = {row["worker"] for row in rows if row["kind"] == "begin"}
            assert owners  # the kernel may have given every connection to one of the two
            for owner in owners:
                times = [row["at_ms"] for row in rows if row["kind"] == "begin" and row["worker"] == owner]
                assert times == sorted(times)
                assert times[-1] - times[0] > 7_000_000  # the clock did jump
            assert all(0 <= row["latency_ms"] < 60_000 for row in rows if row["kind"] == "end")

    set_clock(0)
    run(test, 120)
