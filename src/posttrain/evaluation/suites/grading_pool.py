"""Processes that grade answers while the world is closed, seen from outside.

Here: starting them frozen (UTC, C.UTF-8, a fixed hash seed, no network, nothing of the caller's environment), handing
answers out, and killing one that hangs. Slices whose graders ask a model are graded in this process, one answer at a
time, since that model is loaded or reached here. Not here: the inside of one (``grading_worker``), the graders.

An answer that a grader could not judge (it raised, hung, or its process died) has success None and a reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.core.errors import StageError
from posttrain.engines.conversation import Played
from posttrain.environments.records import Answer
from posttrain.environments.suites.freeze import frozen_environment
from posttrain.environments.suites.slice_records import SliceSpec
from posttrain.evaluation.graders import GradingResources
from posttrain.evaluation.suites.grading import SliceGrader, learned_graders
from posttrain.evaluation.suites.grading_worker import READY, Setup, grade_safely
from posttrain.evaluation.suites.rows import Graded, answer_json

START_LIMIT_SECONDS = 120.0
"""How long a worker may take to start, on a machine that may be busy."""
_READ_BYTES = 1 << 18
# The environment is not inherited, so the path is handed over: a worker runs the very code that this process runs.
_COMMAND = "import sys; sys.path[:] = sys.argv[1:]; from posttrain.evaluation.suites.grading_worker import main; main()"


class GradingPool:
    """A few workers that any thread may use. A context manager; leaving it ends them."""

    def __init__(
        self,
        slices: Sequence[SliceSpec],
        *,
        workers: int,
        timeout_seconds: float,
        hash_seed: int = 0,
        resources: GradingResources | None = None,
    ) -> None:
        learned = [spec for spec in slices if learned_graders(spec)]
        self._here = {spec.name: SliceGrader(spec, resources) for spec in learned}
        self._cases = {case.id: case for spec in learned for case in spec.cases}
        self._lock = threading.Lock()
        frozen = tuple(spec for spec in slices if spec.name not in self._here)
        self._workers = [_Worker(frozen, timeout_seconds, hash_seed) for _ in range(workers)]
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    @property
    def network(self) -> str:
        """How the workers' network is closed: ``namespace``, ``guard``, or ``unknown`` before one has started."""
        return next((worker.network for worker in self._workers if worker.network), "unknown")

    def grade(self, played: Sequence[Played]) -> list[Graded]:
        """What the graders say, in order; rows without an answer keep their error."""
        asked = [
            (row.slice, row.case, row.answer)
            for row in played
            if row.answer is not None and row.slice not in self._here
        ]
        graded: Iterator[Graded] = iter(())
        if asked:
            worker = self._free.get()
            try:
                graded = iter(worker.grade(asked))
            finally:
                self._free.put(worker)
        return [self._one(row, graded) for row in played]

    def _one(self, row: Played, graded: Iterator[Graded]) -> Graded:
        if row.answer is None:
            return Graded(None, row.error)
        if row.slice not in self._here:
            return next(graded)
        with self._lock:  # a model of this process draws and loads in one thread at a time
            return grade_safely(self._here[row.slice], self._cases[row.case], row.answer)

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.close()
        for grader in self._here.values():
            grader.close()


class _Worker:
    """One process, started when it is first needed and again after it was killed."""

    def __init__(self, slices: tuple[SliceSpec, ...], timeout_seconds: float, hash_seed: int) -> None:
        self._slices, self._timeout, self._hash_seed = slices, timeout_seconds, hash_seed
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._buffer = b""
        self.network = ""

    def grade(self, items: Sequence[tuple[str, str, Answer]]) -> list[Graded]:
        found: list[Graded] = []
        while len(found) < len(items):
            process = self._process or self._start()
            rest = [[name, case, answer_json(answer)] for name, case, answer in items[len(found) :]]
            if self._send(process, json.dumps(rest).encode()):
                for _ in rest:
                    value = self._receive(process, time.monotonic() + self._timeout)
                    if isinstance(value, str):
                        break
                    found.append(Graded(*value))
                else:
                    continue
            else:
                value = "its process died"
            self.close()
            found.append(Graded(None, f"grader: {value}"))
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        self._buffer = b""
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, *filter(None, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(frozen_environment(self._hash_seed)),
            process_group=0,  # Ctrl-C in a terminal goes to the runner alone
        )
        sent = self._send(process, pickle.dumps(Setup(self._slices, os.getpid())))
        ready = self._receive(process, time.monotonic() + START_LIMIT_SECONDS) if sent else "it died"
        if isinstance(ready, str) or ready[0] != READY:
            words = self._last_words()
            self.close()
            raise StageError(f"a grading process did not start: {words or ready}")
        self.network = ready[1]
        return process

    def _send(self, process: subprocess.Popen[bytes], payload: bytes) -> bool:
        assert process.stdin is not None
        try:
            process.stdin.write(len(payload).to_bytes(8, "big") + payload)
            process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def _receive(self, process: subprocess.Popen[bytes], deadline: float) -> list[Any] | str:
        """The next line, or why there is none."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(1000 * left):
                return f"no result within {self._timeout:g} s"
            data = os.read(descriptor, _READ_BYTES)
            if not data:
                return f"its process ended: {self._last_words() or 'without a word'}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        value: list[Any] = json.loads(line)
        return value

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """End the process, by its id, at once; the next use starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # unsent bytes to a dead process
                stream.close()
        process.wait()
