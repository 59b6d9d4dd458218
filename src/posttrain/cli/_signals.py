"""Ctrl-C: the first one asks the work to stop at its next safe point, the second one stops it at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from posttrain.artifacts.stage import StopRequest


@contextlib.contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """Inside the block SIGINT and SIGTERM set ``stop``; a second one raises KeyboardInterrupt where the code
    is."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        # Not print: the handler may interrupt a print, and Python's streams refuse to be entered twice.
        os.write(2, b"\nstopping at the next safe point; press Ctrl-C again to stop at once\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
