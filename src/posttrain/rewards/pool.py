r"""Scoring in processes that can be killed, with a wall clock a sample.

Here: handing samples out, taking answers in, and what happens when a worker hangs or dies. Not here: the
processes themselves (``_process``, ``worker``), the limit on unscored samples (``monitor``).

Why. ``\boxed{\dfrac{5^{5^{5^{5^5}}-4}-5}{16}}`` never returns from math-verify, and nothing inside a Python
process can stop it. Here its worker is killed, that sample has no value (reason ``timeout``), and a new
worker goes on with the rest.

Covered: hangs, crashes, memory, a verifier that raises, a parent that dies, Ctrl-C. Not covered: hostile code
(no sandbox: nothing that a completion says is executed); a clock that counts time a loaded machine spent
elsewhere, so a verification that takes nearly the whole limit may be None in one run and scored in another.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from posttrain.core.errors import StageError
from posttrain.rewards._process import START_LIMIT_SECONDS, WorkerProcess
from posttrain.rewards.compose import Composed
from posttrain.rewards.config import RewardConfig
from posttrain.rewards.monitor import RewardMonitor
from posttrain.rewards.records import CRASH, MEMORY, TIMEOUT, Sample, Score
from posttrain.rewards.registry import build_reward

_MAX_CHUNK_SAMPLES = 128
_CHUNKS_PER_WORKER = 4
_START_ATTEMPTS = 3
"""Failed starts in a row, of any workers, after which the pool gives up."""


class VerifierPool:
    """Workers that score samples with the verifiers of one RewardConfig. A context manager; one thread at a
    time scores."""

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self.reward: Composed = build_reward(config)
        self.monitor = RewardMonitor(config.max_none_rate)
        """Counts every sample that the pool scores; the caller decides when to ``check()``."""
        self.restarts = 0
        """Workers that had to be replaced."""
        self._workers: list[WorkerProcess] = []
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the workers without waiting for them. Called by ``with`` and, where needed, by
        ``score_many``."""
        while len(self._workers) < self.config.workers:
            self._workers.append(self._new_worker())

    def close(self) -> None:
        """End every worker, by its process id. Safe to call again; a forked child of the owner ends
        nothing."""
        if os.getpid() != self._owner:
            return
        while self._workers:
            self._workers.pop().kill()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(worker.pid for worker in self._workers)

    def score_many(self, samples: Sequence[Sample]) -> list[Score]:
        """Score ``samples``; results are in their order.

        A sample whose verification hangs, dies or takes too much memory has value None and reason
        ``timeout``, ``crash`` or ``memory``. Raises StageError where a worker cannot start at all.
        """
        with self._lock:
            self.start()
            batch = _Batch(samples, self.reward.part_names, self.config.workers)
            try:
                while batch.unfinished:
                    self._hand_out(batch)
                    self._take_in(batch)
            finally:
                self._drop_busy()  # only an exception leaves any
            self.monitor.record(batch.finished)
            return batch.finished

    def _new_worker(self) -> WorkerProcess:
        memory_bytes = self.config.worker_memory_mib << 20
        return WorkerProcess(
            self.reward, timeout_seconds=self.config.timeout_seconds, memory_bytes=memory_bytes
        )

    def _drop_busy(self) -> None:
        for worker in [worker for worker in self._workers if worker.in_flight]:
            worker.kill()
            self._workers.remove(worker)

    def _hand_out(self, batch: _Batch) -> None:
        for worker in [worker for worker in self._workers if worker.state == "idle"]:
            if not batch.pending:
                break
            chunk = batch.take()
            if not worker.assign(chunk):  # died while idle: no sample is to blame
                batch.give_back([index for index, _ in chunk])
                self._replace(worker)

    def _take_in(self, batch: _Batch) -> None:
        watched = [worker for worker in self._workers if worker.state != "idle"]
        with selectors.DefaultSelector() as selector:
            for worker in watched:
                selector.register(worker, selectors.EVENT_READ)
            wait = max(0.0, min(worker.deadline for worker in watched) - time.monotonic())
            readable = [key.fileobj for key, _ in selector.select(wait)]
        for worker in watched:
            if worker in readable:
                self._take_messages(worker, worker.receive(), batch)
            elif time.monotonic() > worker.deadline:
                self._fail(worker, batch, TIMEOUT)

    def _take_messages(self, worker: WorkerProcess, messages: list[list[Any]] | None, batch: _Batch) -> None:
        if messages is None:
            timer_fired = worker.exit_status() == -signal.SIGALRM
            self._fail(worker, batch, TIMEOUT if timer_fired else CRASH)
            return
        self._failed_starts = 0
        for index, value, parts, reason in messages:
            batch.finish(index, Score(value, dict(zip(batch.part_names, parts, strict=True)), reason))
        if any(message[3] == MEMORY for message in messages):
            batch.give_back(worker.in_flight)
            self._replace(worker)

    def _fail(self, worker: WorkerProcess, batch: _Batch, reason: str) -> None:
        if worker.state == "starting":
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS:
                raise self._did_not_start(worker)
        if worker.in_flight:
            culprit, *rest = worker.in_flight
            batch.finish(culprit, Score(None, dict.fromkeys(batch.part_names), reason))
            batch.give_back(rest)
        self._replace(worker)

    def _replace(self, worker: WorkerProcess) -> None:
        worker.in_flight.clear()
        worker.kill()
        self.restarts += 1
        self._workers[self._workers.index(worker)] = self._new_worker()

    def _did_not_start(self, worker: WorkerProcess) -> StageError:
        words = worker.last_words()
        status = worker.kill()
        self.close()  # the others fare no better; a later call starts afresh
        self._failed_starts = 0
        return StageError(
            f"a verifier process did not start (exit status {status}, limit {START_LIMIT_SECONDS:.0f} s)"
            + (f": {words}" if words else ""),
            hint="raise rewards.worker_memory_mib; `posttrain doctor` shows what is installed",
        )


class _Batch:
    """What is to be scored, what is out, what came back."""

    def __init__(self, samples: Sequence[Sample], part_names: tuple[str, ...], workers: int) -> None:
        self.part_names = part_names
        self.pending = deque(range(len(samples)))
        self.unfinished = len(samples)
        self._samples = samples
        self._scores: list[Score | None] = [None] * len(samples)
        self._chunk_samples = min(_MAX_CHUNK_SAMPLES, max(1, len(samples) // (workers * _CHUNKS_PER_WORKER)))

    @property
    def finished(self) -> list[Score]:
        """The scores so far, in order."""
        return [score for score in self._scores if score is not None]

    def take(self) -> list[tuple[int, Sample]]:
        """The next chunk to hand out."""
        indexes = [self.pending.popleft() for _ in range(min(self._chunk_samples, len(self.pending)))]
        return [(index, self._samples[index]) for index in indexes]

    def give_back(self, indexes: Sequence[int]) -> None:
        """Put samples that were not scored back in front."""
        self.pending.extendleft(reversed(indexes))

    def finish(self, index: int, score: Score) -> None:
        """Keep one result."""
        assert self._scores[index] is None, f"sample {index} was scored twice"
        self._scores[index] = score
        self.unfinished -= 1
