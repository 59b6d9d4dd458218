"""One at a time in a traffic folder: the indexer, and whoever removes or moves rows.

Here: locks that the kernel frees with their holder. Not here: the lock of a writer (``owner_lock``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from posttrain.core.atomic import make_folder
from posttrain.traffic.errors import TrafficLogError

_POLL_SECONDS = 0.05


@contextlib.contextmanager
def folder_lock(folder: Path, name: str, *, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Hold ``NAME.lock`` of the folder; yields whether it could be had in time."""
    make_folder(folder)
    descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
                    continue
                yield False
                return
            yield True
            return
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def maintenance(folder: Path, *, wait_seconds: float = 60.0) -> Iterator[None]:
    """Be the only one who removes or moves rows. Raises TrafficLogError when another does for too long."""
    with folder_lock(folder, "maintenance", wait_seconds=wait_seconds) as held:
        if not held:
            raise TrafficLogError(
                f"another process is removing or moving rows of {folder}", hint="wait until it is done"
            )
        yield
