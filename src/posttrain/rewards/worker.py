"""A verifier process: reads chunks of samples, writes one line a sample.

Here: the inside of a worker. Not here: starting, feeding and killing workers (``pool``, ``_process``). Run by
the pool only.

Protocol. Standard input: frames of an 8-byte big-endian length and a pickle; the first is a ``Setup``, each
later one a list of ``(index, Sample)``. Standard output: one JSON array a line; ``["ready"]`` once, then
``[index, value, [part values], reason]`` for each sample as soon as it is scored. JSON, not pickle, so that
the parent reads nothing that could run code. The worker ends at the end of its input.

Three things end a worker whose parent is gone: end of input when idle, PR_SET_PDEATHSIG (where the pool was
started by the main thread: the signal follows the *thread* that started the process), and a kernel timer that
each sample sets.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import resource
import select
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.rewards.compose import Composed
from posttrain.rewards.records import MEMORY, Sample, Score

READY = "ready"
TIMER_GRACE_SECONDS = 3.0
"""How long after the wall clock the kernel ends a worker that no pool has ended."""
_PR_SET_PDEATHSIG = 1
_PARENT_CHECK_MILLISECONDS = 2000


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told when it starts."""

    reward: Composed
    timeout_seconds: float
    memory_bytes: int
    parent: int
    """Process id of the pool."""
    follow_thread: bool
    """Whether to die with the thread that started the worker."""


def main() -> None:
    """Serve until the input ends."""
    source = os.dup(0)
    sink = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not reach the protocol
    setup: Setup = _read_frame(source)
    _confine(setup)
    setup.reward.warm_up()
    os.write(sink, _line([READY]))
    while _input_waits(source, setup.parent):
        chunk = _read_frame(source)
        if chunk is None:
            break
        for index, sample in chunk:
            signal.setitimer(signal.ITIMER_REAL, setup.timeout_seconds + TIMER_GRACE_SECONDS)
            os.write(sink, _line(_message(index, _score(setup, sample))))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _confine(setup: Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # On top of what the interpreter has mapped: an allocation that scoring needs should succeed and be seen in the
        # peak, since a failed one leaves no trace once sympy has swallowed its MemoryError.
        limit = _mapped_bytes() + setup.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if setup.follow_thread:
            import ctypes  # ten milliseconds that only this branch needs

            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != setup.parent:
        sys.exit("the pool has gone")


def _score(setup: Setup, sample: Sample) -> Score:
    names = setup.reward.part_names
    peak_before = _peak_bytes()
    try:
        score = setup.reward.score(sample)
    except MemoryError:
        return Score(None, dict.fromkeys(names), MEMORY)
    except (
        Exception
    ) as error:  # a verifier that fails on one odd text must cost that sample only, and never be a zero
        return Score(None, dict.fromkeys(names), f"error: {type(error).__name__}")
    # math-verify and sympy swallow MemoryError and then find two formulas "different": do not believe them.
    if _peak_bytes() - peak_before > setup.memory_bytes // 8:
        return Score(None, dict.fromkeys(names), MEMORY)
    return score


def _mapped_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * resource.getpagesize()


def _peak_bytes() -> int:
    """Most memory that this program ever held. Not ``ru_maxrss`` on Linux: a child of a large trainer inherits that of
    its parent, and no growth would ever show."""
    if sys.platform != "linux":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    status = os.pread(_status_descriptor(), 4096, 0)
    return int(status.split(b"VmHWM:", 1)[1].split(maxsplit=1)[0]) * 1024


@functools.cache
def _status_descriptor() -> int:
    return os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)


def _message(index: int, score: Score) -> list[Any]:
    return [index, score.value, list(score.parts.values()), score.reason]


def _line(value: list[Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _input_waits(source: int, parent: int) -> bool:
    """Wait for input; False when the parent has gone, even while another process still holds the pipe
    open."""
    poller = select.poll()
    poller.register(source, select.POLLIN)
    while not poller.poll(_PARENT_CHECK_MILLISECONDS):
        if os.getppid() != parent:
            return False
    return True


def _read_frame(source: int) -> Any:
    header = _read_exactly(source, 8)
    return pickle.loads(_read_exactly(source, int.from_bytes(header, "big"))) if header else None


def _read_exactly(source: int, size: int) -> bytes:
    """``size`` bytes, unbuffered so that ``poll`` sees what is left; less only at the end of the input."""
    pieces: list[bytes] = []
    while size > 0 and (piece := os.read(source, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
