"""Writers that are killed, rows, and segments read back: what the tests of the traffic log share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain.traffic.segment_format import list_segments, read_segment

MAY_TAKE_SECONDS = 60


def row(number: int, **fields: Any) -> bytes:
    """A small row."""
    return json.dumps({"v": 1, "kind": "end", "id": f"r-{number}", "number": number, **fields}).encode()


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """Every row of every segment, in order, duplicates too."""
    return [
        json.loads(found.payload)
        for name in list_segments(folder)
        for found in read_segment(folder / str(name))
    ]


def numbers_in(folder: Path) -> list[int]:
    """The numbers of all rows."""
    return [found["number"] for found in rows_in(folder)]


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where the system has one: for properties that are tried many times."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def child(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """A process that does ``work(pipe)``; its pid and the pipe's other end. It is killed when the block ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            work(writing)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        yield pid, reading
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)


def read_all(descriptor: int) -> bytes:
    """Everything until the other end is gone."""
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something that another process or thread does."""
    deadline = time.monotonic() + MAY_TAKE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
