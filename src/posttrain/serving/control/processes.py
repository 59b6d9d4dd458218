"""Processes that outlive the one that started them, told apart from others that got their number.

Here: naming, waiting for and ending a process by id. Not here: what the processes do. A process id is given out again
after its owner's death; with the time of its start it never is. Linux only: the times come from ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple


class ProcessId(NamedTuple):
    """A process, and no other that ever had its number."""

    pid: int
    started: str
    """Clock ticks since boot; empty where the process was gone when it was asked."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return bool(self.started) and _started(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing where it is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, grace_seconds: float) -> None:
        """Ask it to stop, wait, and kill it where it does not."""
        self.send(signal.SIGTERM)
        if not self.wait(grace_seconds):
            self.send(signal.SIGKILL)
            self.wait(5.0)

    def wait(self, seconds: float) -> bool:
        """Wait until it is gone; False where it is still there after that time."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def process(pid: int) -> ProcessId:
    """The process that has this number now."""
    return ProcessId(pid, _started(pid))


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # The command in parentheses may hold spaces; state is the third field of the line, the start the 22nd.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""
