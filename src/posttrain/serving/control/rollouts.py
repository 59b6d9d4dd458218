"""Running the rollouts of a gateway: what their pure parts say, done.

Here: the rollouts on disk, a look at the traffic several times a second, the steps that follow, and what a person asks
for. Not here: what a step needs (``rollout.steps``), what the traffic shows (``rollout.observe``), swapping.

Order of writing, so that a kill at any instant leaves something that the next start finishes: first the event in the
rollout's journal, then the snapshot on disk, then the workers. A snapshot that does not fit the journal is made again
(:meth:`RolloutKeeper.step`); an event that came too late in the journal changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.core.atomic import write_atomic
from posttrain.core.clock import utc_now
from posttrain.core.errors import PosttrainError, StoreError, UnknownReferenceError
from posttrain.core.suggest import did_you_mean
from posttrain.rollouts.errors import RolloutError
from posttrain.rollouts.events import (
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
from posttrain.rollouts.fold import RolloutState, fold
from posttrain.rollouts.journal import RolloutJournal, events_of
from posttrain.rollouts.observe import Observer
from posttrain.rollouts.records import RolloutSpec
from posttrain.rollouts.snapshots import snapshot_for
from posttrain.rollouts.steps import Action, Facts, Step, allowed, next_step, progress, stage_requests
from posttrain.rollouts.triggers import evaluate
from posttrain.routing.records import Snapshot, Target, Upstream
from posttrain.serving.control.history import Latch, Latches
from posttrain.serving.control.rollback import Journal, Ready, Rollback, RollbackReport
from posttrain.serving.control.swap import Swapper, SwapReport

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

    async def bring_back(self, ready: Ready) -> tuple[Upstream, ...]:
        """After a restart: load the candidates of open rollouts again; where they are now.

        Their engines ended with the last control. A candidate that cannot be loaded is rolled back: production must
        serve, whatever is wrong with it.
        """
        held: list[Upstream] = []
        for running in self._running.values():
            spec = running.spec
            if running.state.end is None:
                try:
                    _, running.upstreams = await ready(spec.route, spec.candidate, running.upstreams)
                except PosttrainError as error:
                    self._lose(running, f"the candidate cannot be loaded again: {error}")
                else:
                    held += running.upstreams
        return tuple(held)

    def _lose(self, running: Running, reason: str) -> None:
        spec, epoch = running.spec, self._swapper.current.epoch
        if running.state.active:
            self._latches.set(
                Latch(route=spec.route, at=utc_now(), actor=CONTROL, reason=reason, epoch=epoch)
            )
            running.append(Tripped(trigger="restart", line=reason, epoch=epoch + 1), "tripped")
        else:
            running.append(Aborted(reason=reason), "aborted")
        self._alert(spec, "tripped", reason)

    def productions(self) -> dict[str, Target]:
        """By route: what was production before the rollout that is under way on it."""
        return {
            running.spec.route: running.spec.production
            for running in self._running.values()
            if running.state.active and running.spec.production is not None
        }

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
        """Whether there is a rollout that traffic, or what was left half done, has to be looked at for."""
        return any(self._is_open(running) for running in self._running.values())

    def _is_open(self, running: Running) -> bool:
        state = running.state
        if state.end is None or (state.end == "rolled_back" and not state.confirmed):
            return True
        return self._has_route(running)

    def _has_route(self, running: Running) -> bool:
        """Whether the current snapshot still says that this rollout is under way: a kill came before the next one."""
        route = self._swapper.current.route(running.spec.route)
        return route is not None and route.rollout == running.spec.id

    def candidates(self) -> list[tuple[str, Target]]:
        """Route and candidate of every rollout that is not over."""
        return [
            (running.spec.route, running.spec.candidate)
            for running in self._running.values()
            if running.state.end is None
        ]

    def ids(self) -> list[str]:
        """Of every rollout, the latest last."""
        return list(self._running)

    def moved(self, held: Iterable[Upstream]) -> None:
        """Engines of candidates are somewhere else now."""
        places = {upstream.name: upstream for upstream in held}
        for running in self._running.values():
            running.upstreams = tuple(places.get(each.name, each) for each in running.upstreams)

    def find(self, name: str | None, action: str = "") -> Running:
        """The rollout of this id; without one, the only one that ``action`` can mean. Raises UnknownReferenceError."""
        if name:
            if name not in self._running:
                raise UnknownReferenceError(
                    f"there is no rollout {name!r}", hint=did_you_mean(name, self._running)
                )
            return self._running[name]
        states = [(running, running.state) for running in self._running.values()]
        meant = [
            running
            for running, state in states
            if (state.latched if action == "clear" else state.end is None)
        ]
        if len(meant) != 1:
            names = ", ".join(running.spec.id for running in meant) or "none"
            raise UnknownReferenceError("name a rollout", hint=f"it could be: {names}")
        return meant[0]

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
            "pairs": {**asdict(facts.observation.pairs), "win_rate": facts.observation.pairs.win_rate},
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

    def observe(self, rows: Rows, *, live: bool = True) -> None:
        """Take new rows; not ``live``: rows of before this process began."""
        kept, received = list(rows), now_ms() if live else None
        for running in self._running.values():
            if self._is_open(running):
                running.observer.add(kept, received_ms=received)

    async def step(self) -> list[str]:
        """Do what follows from what was seen. What failed, one line each: it is tried again at the next look, and keeps
        no other rollout from its step."""
        failures = []
        try:
            await self._rollback.settle()
        except (PosttrainError, OSError) as error:
            failures.append(f"a rollback is not written down yet: {error}")
        for running in list(self._running.values()):
            if not self._is_open(running):
                continue
            try:
                await self._step(running)
            except (PosttrainError, OSError, ValueError) as error:  # a boundary: disks, registries, engines
                failures.append(f"rollout {running.spec.id}: {error}")
        return failures

    async def _step(self, running: Running) -> None:
        state = running.state
        if state.end == "rolled_back" and not state.confirmed:
            await self._confirm(running)
        elif state.active:
            await self._repair(running)
            step = next_step(running.spec, running.state, running.facts())
            if step is not None:
                await self._take(running, step)
        elif self._has_route(running):
            await self._repair(running)

    async def _confirm(self, running: Running) -> None:
        """A rollback that is not known to have reached every worker: say that it has, or do it (again)."""
        spec, current = running.spec, self._swapper.current
        route = current.route(spec.route)
        gone = route is None or (
            route.rollout != spec.id and all(target != spec.candidate for target in route.targets())
        )
        if not gone:
            await self._move_back(running, running.state.end_reason, by=CONTROL)
        elif not self._swapper.behind(current.epoch):
            self._acked(running, current.epoch)

    def _acked(self, running: Running, epoch: int) -> None:
        running.append(SnapshotAcked(epoch=epoch), f"acked:{epoch}")

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
        assert step.trigger is not None, "a trip has its trigger"
        readings = running.facts().report.readings
        figures = next((reading.figures for reading in readings if reading.name == step.trigger), {})
        epoch = self._swapper.current.epoch + 1
        # Before anything that may fail or take time: from here on it is rolled back, whoever has to finish it.
        running.append(
            Tripped(trigger=step.trigger, line=step.reason, figures=dict(figures), epoch=epoch), "tripped"
        )
        running.observer.enter(epoch, None)
        try:
            await self._move_back(running, step.reason, by=CONTROL)
        finally:
            self._alert(running.spec, "tripped", step.reason)

    async def _move_back(
        self, running: Running, reason: str, *, by: str, first: Callable[[int], None] | None = None
    ) -> RollbackReport:
        spec = running.spec
        report = await self._rollback.run(
            spec.route,
            to=spec.production,
            reason=f"rollout {spec.id}: {reason}",
            actor=by,
            first=first,
            wait=False,
        )
        if not report.late:
            self._acked(running, report.epoch)
        return report

    async def _complete(self, running: Running) -> None:
        spec = running.spec

        def first(epoch: int) -> None:
            self._latches.refuse(spec.route)  # it was rolled back while this waited for its turn
            after = running.append(Completed(), "completed")
            if after.end != "completed":
                raise RolloutError(f"rollout {spec.id} went another way meanwhile: {after.label(spec)}")

        await self._swap(running, f"rollout {spec.id}: completed", first)
        self._journal(CONTROL, "rollout.completed", spec.id, {"route": spec.route})
        self._took_over(spec.route, spec.candidate, CONTROL)

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
                why = reason or "by hand"
                await self._move_back(
                    running, why, by=by, first=lambda epoch: self._end(running, epoch, why, by)
                )
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
                self._end(running, epoch, reason, by)

    def confirm_by_hand(self, route: str, report: RollbackReport) -> None:
        """The rollback that a person asked for has reached every worker."""
        for running in self._running.values():
            state = running.state
            waits = running.spec.route == route and state.end == "rolled_back" and not state.confirmed
            if waits and not report.late:
                self._acked(running, report.epoch)

    def _end(self, running: Running, epoch: int, reason: str, by: str) -> None:
        if running.state.active:
            running.append(RolledBack(reason=reason, epoch=epoch, by=by), "rolled_back")
            running.observer.enter(epoch, None)

    async def _start(self, running: Running, *, by: str) -> None:
        spec = running.spec

        def first(epoch: int) -> None:
            route = self._swapper.current.route(spec.route)
            if route is None or route.production != spec.production:
                raise RolloutError(
                    f"production of {spec.route!r} has changed since rollout {spec.id} was written down",
                    hint=f"`posttrain rollout abort {spec.id}`, and start another",
                )
            running.append(Started(epoch=epoch, by=by), "started")
            running.observer.enter(epoch, 0)

        await self._swap(running, f"rollout {spec.id}: gated", first)

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
            self._acked(running, report.epoch)
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
