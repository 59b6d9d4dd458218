"""Playing a whole suite: many batches at once, graded as they come, journalled, the same whatever the order.

Here: threads that ask the model, threads that hand answers to the grading processes, and the loop that keeps the
journal. Not here: one batch (``conversation``), one grading process (``grading_pool``), the report (``suite_report``),
the stage (``evaluate_suite``).

Which cases stand together in a batch is a function of the suite and of the model's batch size, never of order,
concurrency or of what was done before a kill; so is every seed. A batch counts when it is in the journal. *Covered*: an
engine that raises, fails or takes longer than its limit makes rows with an error; a thread that hangs is left behind.
*Not covered*: an engine that never gives the interpreter back.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from posttrain.artifacts.stage import StopRequest
from posttrain.engines.conversation import Job, Played, Player
from posttrain.environments.suites.freeze import Endpoint, closed_network, frozen_zone
from posttrain.environments.suites.suite import Suite
from posttrain.evaluation.graders import GradingResources
from posttrain.evaluation.outcomes import Value
from posttrain.evaluation.suites.grading_pool import GradingPool
from posttrain.evaluation.suites.journal import Journal
from posttrain.evaluation.suites.rows import Graded, SuiteRow

_POLL_SECONDS = 0.1
_AHEAD = 2
"""Batches under way for each thread: one that it works on, one that waits."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What tokens cost, where that is known."""

    prompt_usd_per_1k: float
    completion_usd_per_1k: float


@dataclass(frozen=True, slots=True)
class PlayPlan:
    """How a suite is played. Nothing in it but ``samples`` may decide a result: that is what ``--prove`` proves."""

    samples: int
    concurrency: int = 1
    """Batches that the engine is asked at once."""
    graders: int = 1
    """Grading processes."""
    order_seed: int | None = None
    """Shuffles the batches; None plays them in order."""
    hash_seed: int = 0
    """``PYTHONHASHSEED`` of the grading processes."""
    timeout_seconds: float = 900.0
    """For all turns of one batch."""
    grader_timeout_seconds: float = 60.0
    """For one answer."""
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class Outside:
    """What is used beside the frozen world."""

    endpoints: tuple[Endpoint, ...] = ()
    """Servers of the model and of judges: the only places that this process reaches meanwhile."""
    resources: GradingResources | None = None
    """Models of graders that ask one."""


Progress: TypeAlias = Callable[[int, int, float | None], None]
"""Called with rows done, rows in all, and the share of successes so far."""


def batches_of(suite: Suite, samples: int, batch_size: int) -> list[tuple[Job, ...]]:
    """Every job, in batches: by slice, case and sample."""
    jobs = [Job(case, sample) for case in suite.cases for sample in range(samples)]
    return [tuple(jobs[start : start + batch_size]) for start in range(0, len(jobs), batch_size)]


def play_suite(
    suite: Suite,
    player: Player,
    plan: PlayPlan,
    *,
    journal: Journal,
    outside: Outside | None = None,
    stop: StopRequest | None = None,
    progress: Progress | None = None,
) -> list[SuiteRow]:
    """Every row, by slice, case and sample. What the journal has is not played again.

    Raises Interrupted when ``stop`` is
    requested, and StageError where grading processes do not start.
    """
    batches = batches_of(suite, plan.samples, player.batch_size)
    todo = [number for number in range(len(batches)) if number not in journal.batches]
    if plan.order_seed is not None:
        todo.sort(key=lambda number: hashlib.sha256(f"{plan.order_seed}\0{number}".encode()).digest())
    with (
        closed_network(outside.endpoints if outside else ()),
        frozen_zone(),
        GradingPool(
            suite.slices,
            workers=plan.graders,
            timeout_seconds=plan.grader_timeout_seconds,
            hash_seed=plan.hash_seed,
            resources=outside.resources if outside else None,
        ) as pool,
    ):
        _Execution(suite, player, plan, pool=pool, journal=journal).run(
            {number: batches[number] for number in todo}, stop or StopRequest(), progress
        )
    return sorted((row for rows in journal.batches.values() for row in rows), key=lambda row: row.place)


class _Execution:
    """One process playing what is left of a suite."""

    def __init__(
        self, suite: Suite, player: Player, plan: PlayPlan, *, pool: GradingPool, journal: Journal
    ) -> None:
        self.plan, self.journal = plan, journal
        self.done: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
        self.players = _Crew("played", player.play, self.done)
        self.graders = _Crew("graded", lambda played: (played, pool.grade(played)), self.done)
        self.total = len(suite.cases) * plan.samples
        self.rows = sum(map(len, journal.batches.values()))
        self.scored = self.successes = 0
        for rows in journal.batches.values():
            self._count(rows)

    def run(
        self, batches: Mapping[int, tuple[Job, ...]], stop: StopRequest, progress: Progress | None
    ) -> None:
        self.players.hire(self.plan.concurrency)
        self.graders.hire(self.plan.graders)
        room = _AHEAD * (self.plan.concurrency + self.plan.graders)
        waiting, playing, grading = iter(batches.items()), dict[int, tuple[Job, ...]](), set[int]()
        try:
            while True:
                self._refill(waiting, playing, room - len(grading))
                if not playing and not grading:
                    return
                stop.check()
                try:
                    kind, number, value = self.done.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    self._leave_behind(playing, grading)
                    continue
                if kind == "failed":
                    raise value
                if kind == "played" and playing.pop(number, None) is not None:
                    grading.add(number)
                    self.graders.give(number, value)
                elif kind == "graded":
                    grading.remove(number)
                    self._keep(number, *value)
                    if progress is not None:
                        progress(self.rows, self.total, self.rate)
        finally:
            self.players.dismiss()
            self.graders.dismiss()

    @property
    def rate(self) -> float | None:
        """Successes among what could be scored."""
        return self.successes / self.scored if self.scored else None

    def _refill(
        self, waiting: Iterator[tuple[int, tuple[Job, ...]]], playing: dict[int, tuple[Job, ...]], room: int
    ) -> None:
        while len(playing) < room:
            item = next(waiting, None)
            if item is None:
                return
            playing[item[0]] = item[1]
            self.players.give(*item)

    def _leave_behind(self, playing: dict[int, tuple[Job, ...]], grading: set[int]) -> None:
        """Give up on batches whose engine has not answered in time, and hire a thread for each that hangs."""
        limit = self.plan.timeout_seconds
        for number in self.players.overdue(limit):
            jobs = playing.pop(number, None)
            if jobs is None:
                continue
            self.players.hire(1)
            error = f"engine: no answer within {limit:g} s"
            played = [Played(job.case.id, job.case.slice, job.sample, None, error) for job in jobs]
            grading.add(number)
            self.graders.give(number, played)

    def _keep(self, number: int, played: Sequence[Played], graded: Sequence[Graded]) -> None:
        rows = [
            SuiteRow(p, g, live_metrics(p, self.plan.prices)) for p, g in zip(played, graded, strict=True)
        ]
        self.journal.append(number, rows)
        self.rows += len(rows)
        self._count(rows)

    def _count(self, rows: Sequence[SuiteRow]) -> None:
        found = [row.graded.success for row in rows if row.graded.success is not None]
        self.scored += len(found)
        self.successes += sum(found)


class _Crew:
    """Threads that all do the same; they are daemons, so one that hangs does not keep the process alive."""

    def __init__(
        self, kind: str, work: Callable[[Any], Any], done: queue.SimpleQueue[tuple[str, int, Any]]
    ) -> None:
        self._kind, self._work, self._done = kind, work, done
        self._jobs: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._started: dict[int, float] = {}
        self._hired = 0

    def hire(self, count: int) -> None:
        """Start threads."""
        for _ in range(count):
            self._hired += 1
            threading.Thread(target=self._serve, name=f"posttrain-{self._kind}", daemon=True).start()

    def give(self, number: int, job: Any) -> None:
        """Hand out a job."""
        self._jobs.put((number, job))

    def overdue(self, limit: float) -> list[int]:
        """Jobs that were begun longer ago than ``limit``."""
        now = time.monotonic()
        return [number for number, started in list(self._started.items()) if now - started > limit]

    def dismiss(self) -> None:
        """Let the threads end once they have nothing to do."""
        for _ in range(self._hired):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            number, job = item
            self._started[number] = time.monotonic()
            try:
                self._done.put((self._kind, number, self._work(job)))
            except BaseException as error:  # a boundary: the thread that waits raises it
                self._done.put(("failed", number, error))
            del self._started[number]


def live_metrics(played: Played, prices: Prices | None) -> dict[str, Value]:
    """What only a live lane measures of an answer: nothing in a replay."""
    answer = played.answer
    if answer is None or played.seconds is None:
        return {}
    found: dict[str, Value] = {"latency_ms": round(1000 * played.seconds, 3)}
    if prices is not None and answer.prompt_tokens is not None and answer.completion_tokens is not None:
        cost = answer.prompt_tokens * prices.prompt_usd_per_1k
        cost += answer.completion_tokens * prices.completion_usd_per_1k
        found["cost_usd"] = cost / 1000
    return found
