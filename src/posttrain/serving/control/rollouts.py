"""Running the rollouts of a gateway: what their pure parts say, done.

Here: the rollouts on disk, a look at the traffic several times a second, the steps that follow, and what a person asks
for. Not here: what a step needs (``rollout.steps``), what the traffic shows (``rollout.observe``), swapping.

Order of writing, so that a kill at any instant leaves something that the next start finishes: first the event in the
rollout's journal, then the snapshot on disk, then the workers. A snapshot that does not fit the journal is made again
(:meth:`RolloutKeeper.tick`); an event that came too late in the journal changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.atomic import write_atomic
from posttrain.core.errors import StoreError, UnknownReferenceError
from posttrain.core.suggest import did_you_mean
from posttrain.serving.control.history import Latches
from posttrain.serving.control.rollback import Journal, Rollback, RollbackReport
from posttrain.serving.control.swap import Swapper, SwapReport
from posttrain.serving.errors import RolloutError
from posttrain.serving.records import Snapshot, Target, Upstream
from posttrain.serving.rollout.events import (
    CONTROL,
    Aborted,
    Advanced,
    Cleared,
    Completed,
    Created,
    DecisionAttached,
    Event,
    Held,
    Resumed,
    RolledBack,
    SnapshotAcked,
    Started,
    Tripped,
)
from posttrain.serving.rollout.fold import RolloutState, fold
from posttrain.serving.rollout.journal import RolloutJournal, events_of
from posttrain.serving.rollout.observe import Observer
from posttrain.serving.rollout.records import RolloutSpec
from posttrain.serving.rollout.snapshots import snapshot_for
from posttrain.serving.rollout.steps import Action, Facts, Step, allowed, next_step, progress, stage_requests
from posttrain.serving.rollout.triggers import evaluate

Rows = Iterable[Mapping[str, Any]]


def now_ms() -> int:
    """The clock of journals and observations."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Running:
    """One rollout that is not over, or has not been looked at since it was rolled back."""

    spec: RolloutSpec
    journal: RolloutJournal
    observer: Observer
    upstreams: tuple[Upstream, ...]
    """Of the candidate."""

    @property
    def state(self) -> RolloutState:
        """What its events add up to."""
        return fold(self.spec, self.journal.entries)

    def facts(self) -> Facts:
        """What is known now."""
        observation, now = self.observer.observation(), now_ms()
        return Facts(now, observation, evaluate(self.spec, self.state, observation, now))

    def append(self, event: Event, name: str) -> RolloutState:
        """Keep an event under an id that is the same for the same event; returns the state after it."""
        self.journal.append(event, id=f"{self.spec.id}:{name}", at_ms=now_ms())
        return self.state


class RolloutKeeper:
    """The rollouts of one serving folder."""

    def __init__(
        self,
        folder: Path,
        *,
        swapper: Swapper,
        latches: Latches,
        rollback: Rollback,
        journal: Journal,
        took_over: Callable[[str, Target, str], None],
    ) -> None:
        """``took_over(route, target, by)`` is told when a candidate has become a route's production for good."""
        self._folder = folder
        self._swapper = swapper
        self._latches = latches
        self._rollback = rollback
        self._journal = journal
        self._took_over = took_over
        self._running: dict[str, Running] = {}
        self._alerts: list[dict[str, Any]] = []

    # -- what there is -------------------------------------------------------------------------------

    def load(self) -> None:
        """Read every rollout from disk."""
        for path in sorted(self._folder.glob("*/spec.json")):
            spec = RolloutSpec.from_json(path.read_bytes())
            raw = (path.parent / "upstreams.json").read_bytes()
            upstreams = tuple(Upstream.model_validate(each) for each in json.loads(raw))
            self._open(spec, upstreams)

    def create(self, spec: RolloutSpec, upstreams: tuple[Upstream, ...], *, by: str) -> Running:
        """Write a rollout down. Raises RolloutError where the route is latched or in another rollout."""
        self._latches.refuse(spec.route)
        for other in self._running.values():
            if other.spec.route == spec.route and other.state.end is None:
                raise RolloutError(
                    f"{spec.route!r} is in the rollout {other.spec.id} already",
                    hint=f"`posttrain rollout abort {other.spec.id}` ends it",
                )
        place = self._folder / spec.id
        dumped = [upstream.model_dump(mode="json") for upstream in upstreams]
        write_atomic(place / "upstreams.json", json.dumps(dumped).encode())
        write_atomic(place / "spec.json", spec.to_bytes())
        running = self._open(spec, upstreams)
        running.append(Created(spec=spec.digest, by=by), "created")
        self._journal(by, "rollout.created", spec.id, {"route": spec.route, "spec": spec.digest})
        return running

    def any_open(self) -> bool:
        """Whether traffic has to be looked at for some rollout."""
        return any(
            running.state.end is None or (running.state.end == "rolled_back" and not running.state.confirmed)
            for running in self._running.values()
        )

    def find(self, name: str | None) -> Running:
        """The rollout of this id; without one, the only one that is not over. Raises UnknownReferenceError."""
        if name:
            if name not in self._running:
                raise UnknownReferenceError(
                    f"there is no rollout {name!r}", hint=did_you_mean(name, self._running)
                )
            return self._running[name]
        open_ones = [running for running in self._running.values() if running.state.end is None]
        if len(open_ones) != 1:
            names = ", ".join(running.spec.id for running in open_ones) or "none"
            raise UnknownReferenceError("name a rollout", hint=f"under way: {names}")
        return open_ones[0]

    def status(self, running: Running) -> dict[str, Any]:
        """All that is known of one rollout, as JSON."""
        spec, state, facts = running.spec, running.state, running.facts()
        return {
            "id": spec.id,
            "route": spec.route,
            "candidate": spec.candidate.name,
            "production": None if spec.production is None else spec.production.name,
            "phase": state.phase(spec),
            "label": state.label(spec),
            "stages": [stage.label for stage in spec.stages],
            "stage": state.stage,
            "progress": progress(spec, state, facts) if state.active else "",
            "latched": state.latched,
            "auto_advance": spec.auto_advance,
            "contract": spec.contract_digest,
            "triggers": facts.report.to_json()["triggers"],
            "advance": list(allowed(spec, state, "advance", facts).reasons)
            if state.stage is not None
            else [],
            "ignored": list(state.ignored),
            "events": events_of(running.journal.entries),
        }

    def statuses(self) -> list[dict[str, Any]]:
        """Every rollout, the latest last."""
        return [self.status(running) for running in self._running.values()]

    def alerts(self) -> list[dict[str, Any]]:
        """What woke somebody since this process began."""
        return list(self._alerts)

    # -- what happens by itself ----------------------------------------------------------------------

    async def tick(self, rows: Rows) -> None:
        """Take new rows and do what follows from them."""
        kept = list(rows)
        for running in list(self._running.values()):
            state = running.state
            if state.end is not None and state.end != "rolled_back":
                continue
            running.observer.add(kept, received_ms=now_ms())
            if state.end is None and state.stage is not None:
                await self._repair(running)
                step = next_step(running.spec, running.state, running.facts())
                if step is not None:
                    await self._take(running, step)
            elif state.end == "rolled_back" and not state.confirmed:
                await self._move_back(running, state.end_reason, by=CONTROL)

    async def _take(self, running: Running, step: Step) -> None:
        spec = running.spec
        match step.action:
            case "trip":
                await self._trip(running, step)
            case "hold" | "invalid":
                running.append(
                    Held(reason=step.reason, trigger=step.trigger, invalid=step.action == "invalid"),
                    _unique("held"),
                )
                self._alert(spec, step.action, step.reason)
            case "resume":
                running.append(Resumed(reason=step.reason), _unique("resumed"))
            case "advance":
                await self._advance(running, by=CONTROL)
            case "complete":
                await self._complete(running)

    async def _trip(self, running: Running, step: Step) -> None:
        spec = running.spec
        assert step.trigger is not None, "a trip has its trigger"
        figures = next(
            (reading.figures for reading in running.facts().report.readings if reading.name == step.trigger),
            {},
        )

        def first(epoch: int) -> None:
            running.append(
                Tripped(trigger=str(step.trigger), line=step.reason, figures=dict(figures), epoch=epoch),
                "tripped",
            )

        self._alert(spec, "tripped", step.reason)
        await self._move_back(running, step.reason, by=CONTROL, first=first)

    async def _move_back(
        self, running: Running, reason: str, *, by: str, first: Callable[[int], None] | None = None
    ) -> RollbackReport:
        spec = running.spec
        report = await self._rollback.run(
            spec.route, to=spec.production, reason=f"rollout {spec.id}: {reason}", actor=by, first=first
        )
        running.append(RolledBack(reason=reason, epoch=report.epoch, by=by), "rolled_back")
        running.observer.enter(report.epoch, None)
        return report

    async def _complete(self, running: Running) -> None:
        running.append(Completed(), "completed")
        await self._swap(running, f"rollout {running.spec.id}: completed")
        self._journal(CONTROL, "rollout.completed", running.spec.id, {"route": running.spec.route})
        self._took_over(running.spec.route, running.spec.candidate, CONTROL)

    async def _repair(self, running: Running) -> None:
        """Publish what the journal says where a kill came between the two."""
        current = self._swapper.current
        wanted = self._wanted(running, current)
        if wanted.routes != current.routes:
            await self._swap(running, wanted.reason)

    # -- what a person asks for ----------------------------------------------------------------------

    async def act(self, running: Running, action: Action, *, by: str, reason: str = "") -> dict[str, Any]:
        """Do what was asked, or raise RolloutError with every reason why it may not be."""
        spec, facts = running.spec, running.facts()
        if action in ("start", "advance"):
            self._latches.refuse(spec.route)
        permission = allowed(spec, running.state, action, facts)
        if not permission.ok:
            raise RolloutError(
                f"rollout {spec.id} cannot {action} now: {'; '.join(permission.reasons)}",
                hint=f"`posttrain rollout status {spec.id}` shows what is missing",
            )
        match action:
            case "start":
                await self._start(running, by=by)
            case "advance":
                await self._advance(running, by=by)
            case "hold":
                running.append(Held(reason=reason or "by hand", by=by), _unique("held"))
            case "resume":
                running.append(Resumed(reason=reason, by=by), _unique("resumed"))
            case "abort":
                await self._abort(running, reason or "by hand", by=by)
            case "rollback":
                await self._move_back(running, reason or "by hand", by=by)
            case "clear":
                running.append(Cleared(reason=reason or "by hand", by=by), _unique("cleared"))
                self._latches.clear(spec.route)
            case "complete":
                await self._complete(running)
        self._journal(by, f"rollout.{action}", spec.id, {"route": spec.route, "reason": reason})
        return self.status(running)

    def attach(self, running: Running, decision: DecisionAttached) -> RolloutState:
        """Say what a gate decided; whether it counts is for the rollout's state to say."""
        return running.append(decision, f"decision:{decision.decision}")

    def cleared(self, route: str, *, by: str, reason: str) -> bool:
        """Take the latch off a route, and off the rollout that set it. False where there was none."""
        for running in self._running.values():
            if running.spec.route == route and running.state.latched:
                running.append(Cleared(reason=reason, by=by), _unique("cleared"))
        self._journal(by, "rollback.cleared", route, {"reason": reason})
        return self._latches.clear(route)

    def ended_by_hand(self, route: str, epoch: int, given: Mapping[str, Any]) -> None:
        """A person rolls ``route`` back: its rollout is over from ``epoch`` on."""
        for running in self._running.values():
            if running.spec.route == route and running.state.active:
                reason, by = str(given.get("reason") or "by hand"), str(given.get("by") or "somebody")
                running.append(RolledBack(reason=reason, epoch=epoch, by=by), "rolled_back")
                running.observer.enter(epoch, None)

    async def _start(self, running: Running, *, by: str) -> None:
        def first(epoch: int) -> None:
            running.append(Started(epoch=epoch, by=by), "started")
            running.observer.enter(epoch, 0)

        await self._swap(running, f"rollout {running.spec.id}: gated", first)

    async def _advance(self, running: Running, *, by: str) -> None:
        spec, state = running.spec, running.state
        assert state.stage is not None, "it was allowed"
        to = state.stage + 1
        facts = running.facts()
        requests = stage_requests(state, facts.observation)
        seconds = (facts.now_ms - state.since_ms) / 1000

        def first(epoch: int) -> None:
            event = Advanced(to=to, epoch=epoch, requests=requests, seconds=max(0.0, seconds), by=by)
            after = running.append(event, f"advanced:{to}:{epoch}")
            if after.stage != to:
                raise RolloutError(f"rollout {spec.id} went another way meanwhile: {after.label(spec)}")
            running.observer.enter(epoch, to)

        await self._swap(running, f"rollout {spec.id}: {spec.stages[to].label}", first)

    async def _abort(self, running: Running, reason: str, *, by: str) -> None:
        def first(epoch: int) -> None:
            running.append(Aborted(reason=reason, epoch=epoch, by=by), "aborted")
            running.observer.enter(epoch, None)

        if running.state.stage is None:
            running.append(Aborted(reason=reason, by=by), "aborted")
        else:
            await self._swap(running, f"rollout {running.spec.id}: aborted", first)

    # -- parts ---------------------------------------------------------------------------------------

    async def _swap(
        self, running: Running, reason: str, first: Callable[[int], None] | None = None
    ) -> SwapReport:
        report = await self._swapper.swap(lambda before: self._wanted(running, before), reason, first=first)
        if not report.late:
            workers = tuple(str(number) for number in range(report.workers))
            running.append(SnapshotAcked(epoch=report.epoch, workers=workers), f"acked:{report.epoch}")
        return report

    def _wanted(self, running: Running, before: Snapshot) -> Snapshot:
        return snapshot_for(before, running.spec, running.state, at=before.at, upstreams=running.upstreams)

    def _open(self, spec: RolloutSpec, upstreams: tuple[Upstream, ...]) -> Running:
        journal = RolloutJournal(self._folder / spec.id / "events.jsonl")
        running = Running(spec, journal, Observer(spec, fold(spec, journal.entries).entered), upstreams)
        self._running[spec.id] = running
        return running

    def _alert(self, spec: RolloutSpec, what: str, line: str) -> None:
        alert = {"at_ms": now_ms(), "rollout": spec.id, "route": spec.route, "what": what, "line": line}
        self._alerts.append(alert)
        # A journal that cannot be written now must not keep a bad candidate in traffic.
        with contextlib.suppress(StoreError):
            self._journal(CONTROL, f"rollout.{what}", spec.id, {"route": spec.route, "line": line})


def _unique(name: str) -> str:
    return f"{name}:{time.time_ns()}"
