"""Rolling a route back: verify, load, probe, swap, drain, journal, latch.

Here: one rollback from its trigger to its report. Not here: when to roll back (``rollout``), which target is earlier
(``history``). What serves now and only loses its canary needs no proof: the swap comes first and takes milliseconds. A
target that is not serving now is verified digest by digest, loaded where it is not running, and asked what it must
answer before any user is sent to it; where it fails that, nothing is changed and the report says what failed.

A drill does everything but change the traffic: it publishes the current snapshot again under the next epoch, so that
its times are those of a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.core.clock import utc_now
from posttrain.core.errors import StoreError
from posttrain.rollouts.errors import RolloutError
from posttrain.routing.records import Route, Snapshot, Target, Upstream
from posttrain.serving.control.history import (
    Latch,
    Latches,
    find_earlier,
    production_stack,
    upstreams_of,
)
from posttrain.serving.control.swap import Change, Swapper

Ready = Callable[[str, Target, tuple[Upstream, ...]], Awaitable[tuple[Target, tuple[Upstream, ...]]]]
"""Verify, load and probe a target of a route; gives it back with the upstreams that hold it now, or raises."""
Journal = Callable[[str, str, str, Mapping[str, Any]], None]
"""``(actor, action, subject, data)``: one line in the journal that is never changed."""


@dataclass(slots=True)
class RollbackReport:
    """What was done, and how long each step took."""

    route: str
    reason: str
    actor: str
    drill: bool
    before: str
    """Name of the target that was production."""
    after: str
    """Name of the target that is production now."""
    candidate: str | None
    """Name of the candidate that lost its traffic."""
    epoch: int = 0
    late: tuple[str, ...] = ()
    """Workers that had not confirmed in time."""
    drained: bool = False
    """Whether every request of earlier epochs had ended when this was written."""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """By step: ``ready`` (verified, loaded, probed), ``swap`` (until every worker was on the new epoch), ``moved``
    (from the beginning until then), ``drain``, ``total``."""


class Rollback:
    """Rolls routes back, one at a time."""

    def __init__(
        self,
        swapper: Swapper,
        latches: Latches,
        *,
        ready: Ready,
        journal: Journal,
        took_over: Callable[[str, Target, str], None],
        end_workers: Callable[[Sequence[str]], Awaitable[None]],
        drain_seconds: float = 30.0,
    ) -> None:
        """``took_over(route, target, by)`` is told when an earlier target has become a route's production;
        ``end_workers`` ends workers by name, which are then started again."""
        self._swapper = swapper
        self._latches = latches
        self._ready = ready
        self._journal = journal
        self._took_over = took_over
        self._end_workers = end_workers
        self._owed: list[tuple[RollbackReport, Target | None]] = []
        """Rollbacks that happened and are not in the journal."""
        self._settling = asyncio.Lock()
        """Who rolled back and who looks after what is owed may settle at the same time; each is written once."""
        self._drain_seconds = drain_seconds

    async def run(
        self,
        route: str,
        *,
        to: str | Target | None = None,
        reason: str,
        actor: str,
        drill: bool = False,
        first: Callable[[int], None] | None = None,
        wait: bool = True,
    ) -> RollbackReport:
        """Roll ``route`` back. Without ``to``: a candidate loses its traffic where there is one, else production moves
        to what it was before. ``first`` is given the new epoch before anything changes. Without ``wait`` what is in
        flight ends by itself, and nobody waits for it here.

        Raises RolloutError where there is nothing earlier, and whatever forbids serving the target.
        """
        begun = time.monotonic()
        snapshots = self._swapper.store.all()
        current = snapshots[-1].route(route) if snapshots else None
        if current is None:
            raise RolloutError(f"there is no route {route!r}", hint="`posttrain rollout status` lists them")
        candidate = _candidate(current)
        if isinstance(to, Target):
            target = to
        elif to is None and (
            candidate is not None or (drill and len(production_stack(snapshots, route)) < 2)
        ):
            target = current.production
        else:
            target = find_earlier(snapshots, route, to)
        # Where an upstream is, the newest word counts: its address may have changed since the target served.
        now = {upstream.name: upstream for upstream in snapshots[-1].upstreams}
        upstreams = tuple(now.get(each.name, each) for each in upstreams_of(snapshots, target))
        report = RollbackReport(
            route=route,
            reason=reason,
            actor=actor,
            drill=drill,
            before=current.production.name,
            after=current.production.name if drill else target.name,
            candidate=candidate,
        )
        if target != current.production or drill:
            target, upstreams = await self._ready(route, target, upstreams)
        report.milliseconds["ready"] = _since(begun)
        change = _unchanged if drill else back_to(route, target, upstreams)

        def latch(
            epoch: int,
        ) -> None:  # before the traffic moves: a kill in between must not leave the door open
            if first is not None:
                first(epoch)
            if not drill:
                self._latches.set(Latch(route=route, at=utc_now(), actor=actor, reason=reason, epoch=epoch))

        why = f"{'drill of a ' if drill else ''}rollback: {reason}"
        swapped = await self._swapper.swap(change, why, first=latch)
        report.epoch, report.late = swapped.epoch, swapped.late
        report.milliseconds |= {"swap": swapped.acked_ms, "moved": _since(begun)}
        if swapped.late:  # alive and deaf: it would go on sending users to what was rolled back from
            await self._end_workers(swapped.late)
        moved = target if target != current.production and not drill else None
        self._owed.append((report, moved))
        with contextlib.suppress(
            StoreError
        ):  # the traffic has moved; what cannot be written now is written later
            await self.settle()
        if wait:
            step = time.monotonic()
            report.drained = await self._swapper.drained(swapped.epoch, self._drain_seconds)
            report.milliseconds["drain"] = _since(step)
        report.milliseconds["total"] = _since(begun)
        return report

    @property
    def owes(self) -> bool:
        """Whether something is still to be written down."""
        return bool(self._owed)

    async def settle(self) -> None:
        """Write down every rollback that is not yet. Raises StoreError where that is not possible now."""
        async with self._settling:
            while self._owed:
                report, moved = self._owed[0]
                await asyncio.to_thread(self._write_down, report, moved)
                self._owed.pop(0)

    def _write_down(self, report: RollbackReport, moved: Target | None) -> None:
        """What waits for a disk, or for another process that has it: after the traffic has moved."""
        if moved is not None:
            self._took_over(report.route, moved, report.actor)
        what = "rollback.drill" if report.drill else "rollback"
        self._journal(report.actor, what, report.route, as_json(report))


def as_json(report: RollbackReport) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "route": report.route,
        "reason": report.reason,
        "actor": report.actor,
        "drill": report.drill,
        "before": report.before,
        "after": report.after,
        "candidate": report.candidate,
        "epoch": report.epoch,
        "late": list(report.late),
        "drained": report.drained,
        "milliseconds": {name: round(value, 3) for name, value in report.milliseconds.items()},
    }


def back_to(route: str, target: Target, upstreams: tuple[Upstream, ...]) -> Change:
    """The snapshot with the route's production replaced, and no candidate beside it."""

    def change(snapshot: Snapshot) -> Snapshot:
        routes = tuple(
            each.model_copy(update={"production": target, "canary": None, "shadow": None, "rollout": None})
            if each.model == route
            else each
            for each in snapshot.routes
        )
        kept = {upstream.name: upstream for upstream in (*snapshot.upstreams, *upstreams)}
        return snapshot.model_copy(update={"routes": routes, "upstreams": tuple(kept.values())})

    return change


def _unchanged(snapshot: Snapshot) -> Snapshot:
    return snapshot


def _candidate(route: Route) -> str | None:
    for beside in (route.canary, route.shadow):
        if beside is not None:
            return beside.target.name
    return None


def _since(begun: float) -> float:
    return (time.monotonic() - begun) * 1000
