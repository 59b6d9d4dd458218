"""Rows of one turn of the loop: one write, everybody told, one that cannot be written alone to suffer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from posttrain.serving.gateway.metrics import Metrics
from posttrain.serving.gateway.rowlog import RowLog
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.segment_format import MAX_PAYLOAD_BYTES
from posttrain.traffic.segments import SegmentWriter
from tests.traffic.traffic_world import numbers_in, row


@contextmanager
def row_log(folder: Path, **config: Any) -> Iterator[tuple[RowLog, Metrics]]:
    """A log of its own, in the running loop."""
    metrics = Metrics()
    writer = SegmentWriter(folder, owner="w0", config=TrafficConfig(**config))
    writer.attach(asyncio.get_running_loop())
    log = RowLog(writer, metrics)
    try:
        yield log, metrics
    finally:
        log.close()


def noting(told: list[tuple[int, bool]], number: int) -> Callable[[bool], None]:
    return lambda kept: told.append((number, kept))


def test_rows_are_written_and_told_of_in_their_order_at_the_end_of_the_turn(tmp_path: Path) -> None:
    async def test() -> None:
        told: list[tuple[int, bool]] = []
        with row_log(tmp_path) as (log, _):
            for number in range(5):
                log.put(row(number), noting(told, number))
            assert not told and numbers_in(tmp_path) == []
            await asyncio.sleep(0)
            assert told == [(number, True) for number in range(5)]
            assert numbers_in(tmp_path) == [0, 1, 2, 3, 4]

    asyncio.run(test())


def test_a_fault_after_one_row_keeps_no_other_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(kept: bool) -> None:
        raise RuntimeError("a fault of ours")

    async def test() -> None:
        told: list[tuple[int, bool]] = []
        with row_log(tmp_path) as (log, _):
            log.put(row(0), fault)
            log.put(row(1), noting(told, 1))
            await asyncio.sleep(0)
            assert told == [(1, True)]

    asyncio.run(test())
    assert "a fault of ours" in caplog.text


def test_what_is_put_when_a_row_was_written_is_written_too(tmp_path: Path) -> None:
    async def test() -> None:
        told: list[tuple[int, bool]] = []
        with row_log(tmp_path) as (log, _):
            log.put(row(0), lambda kept: log.put(row(1), noting(told, 1)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert told == [(1, True)]
            assert numbers_in(tmp_path) == [0, 1]

    asyncio.run(test())


@pytest.mark.parametrize("policy", ["refuse", "shed"])
def test_a_row_that_cannot_be_written_takes_none_with_it(tmp_path: Path, policy: str) -> None:
    async def test() -> None:
        told: list[tuple[int, bool]] = []
        with row_log(tmp_path, on_full=policy) as (log, metrics):
            for number in range(3):
                long = bytes(MAX_PAYLOAD_BYTES + 1) if number == 1 else b""
                log.put(long or row(number), noting(told, number))
            await asyncio.sleep(0)
            assert told == [(0, True), (1, policy == "shed"), (2, True)]
            assert metrics.lost_rows == (policy == "shed")
            assert numbers_in(tmp_path) == [0, 2]

    asyncio.run(test())


def test_strict_waits_for_the_disk_but_where_it_need_not(tmp_path: Path) -> None:
    async def test() -> None:
        told: list[tuple[int, bool]] = []
        with row_log(tmp_path, durability="strict") as (log, _):
            log.put(row(0), noting(told, 0))
            log.put(row(1), noting(told, 1), on_disk=False)
            log.flush()
            assert told == [(1, True)]
            async with asyncio.timeout(20):
                while len(told) < 2:
                    await asyncio.sleep(0.001)
            assert told[1] == (0, True)

    asyncio.run(test())
