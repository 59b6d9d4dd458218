"""A process that grades answers in a closed world: the inside of it.

Here: reading cases and answers, grading, one line an answer. Not here: starting, feeding and killing it
(``grading_pool``), the graders (``graders``). Run by the pool only.

Protocol. Standard input: frames of an 8-byte big-endian length and their bytes; the first is a pickled ``Setup``, each
later one a JSON list of ``[slice, case, answer]``. Standard output: one JSON value a line; ``["ready", how]`` once,
then ``[success, error, metrics, details]`` for each answer. JSON, so that the parent reads nothing that could run code.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import signal
import sys
from dataclasses import dataclass
from typing import Any

from posttrain.environments.records import Answer, Case
from posttrain.environments.suites.freeze import close_network
from posttrain.environments.suites.slice_records import SliceSpec
from posttrain.evaluation.suites.grading import SliceGrader
from posttrain.evaluation.suites.rows import Graded, answer_from

READY = "ready"
_PR_SET_PDEATHSIG = 1
_ERROR_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told when it starts."""

    slices: tuple[SliceSpec, ...]
    parent: int
    """Process id of the pool."""


def main() -> None:
    """Serve until the input ends."""
    source, sink = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what graders start must not read the protocol
    os.dup2(2, 1)  # nor write to it
    setup: Setup = pickle.loads(_read_frame(source))
    how = _confine(setup.parent)
    graders = {spec.name: SliceGrader(spec) for spec in setup.slices}
    cases = {case.id: case for spec in setup.slices for case in spec.cases}
    _write(sink, [READY, how])
    while frame := _read_frame(source):
        for slice_name, case_id, answer in json.loads(frame):
            graded = grade_safely(graders[slice_name], cases[case_id], answer_from(answer))
            _write(sink, [graded.success, graded.error, dict(graded.metrics), dict(graded.details)])


def grade_safely(grader: SliceGrader, case: Case, answer: Answer) -> Graded:
    """What the grader says; a grader that raises could not tell, and that is never a failure of the model."""
    try:
        return grader.grade(case, answer)
    except Exception as error:  # a boundary: recorded data
        return Graded(None, f"grader: {type(error).__name__}: {error}"[:_ERROR_CHARACTERS])


def _confine(parent: int) -> str:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # The soft limit only: the sandbox sets a hard one of its own, and could not raise it again.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the pool has gone")
    return close_network().how


def _write(sink: int, value: list[Any]) -> None:
    data = json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    while data:
        data = data[os.write(sink, data) :]


def _read_frame(source: int) -> bytes:
    """The next frame; empty at the end of the input."""
    header = _read_exactly(source, 8)
    return _read_exactly(source, int.from_bytes(header, "big")) if header else b""


def _read_exactly(source: int, size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := os.read(source, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
