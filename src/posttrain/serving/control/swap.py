"""Changing what every worker serves, at once and whole.

Here: the next snapshot made from the current one, kept, sent, acknowledged, drained. Not here: what to change
(``rollout``, ``rollback``). One swap at a time; the change is a function of the snapshot that is current when its turn
comes, so that two changes never undo each other. A snapshot is on the disk before any worker has it: a worker that is
started in between gets it at its hello.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from posttrain.core.clock import utc_now
from posttrain.core.errors import ServingError
from posttrain.routing.records import Snapshot
from posttrain.serving.control.links import WorkerLinks
from posttrain.serving.control.snapshots import SnapshotStore

Change = Callable[[Snapshot], Snapshot]
"""From the current snapshot to the wanted one; epoch, time and reason are set by the swap."""


@dataclass(frozen=True, slots=True)
class SwapReport:
    """How a swap went."""

    epoch: int
    reason: str
    kept_ms: float
    """Until the snapshot was on the disk."""
    acked_ms: float
    """Until every worker served it."""
    workers: int
    late: tuple[str, ...] = ()
    """Workers that had not said so in time; they are told again when they come back."""


class Swapper:
    """The one place that publishes snapshots."""

    def __init__(self, store: SnapshotStore, links: WorkerLinks) -> None:
        self.store = store
        self._links = links
        self._turn = asyncio.Lock()

    @property
    def current(self) -> Snapshot:
        """What is served. Raises ServingError before the first."""
        snapshot = self.store.current()
        if snapshot is None:
            raise ServingError("nothing is served yet")
        return snapshot

    async def swap(
        self,
        change: Change,
        reason: str,
        *,
        first: Callable[[int], None] | None = None,
        ack_seconds: float = 5.0,
    ) -> SwapReport:
        """Change the traffic; returns when every connected worker serves the new snapshot, or after ``ack_seconds``.

        ``first`` is given the new epoch before the change is asked for; where it raises, nothing is changed.
        """
        async with self._turn:
            begun = time.monotonic()
            before = self.current
            if first is not None:
                first(before.epoch + 1)
            wanted = change(before)
            snapshot = Snapshot(
                epoch=before.epoch + 1,
                at=utc_now(),
                reason=reason,
                upstreams=wanted.upstreams,
                routes=wanted.routes,
            )
            self.store.publish(snapshot)
            kept = time.monotonic()
            self._links.broadcast({"op": "snapshot", "snapshot": snapshot.to_json()})
            await self._links.wait_until(lambda: not self.behind(snapshot.epoch), ack_seconds)
            done = time.monotonic()
        return SwapReport(
            epoch=snapshot.epoch,
            reason=reason,
            kept_ms=(kept - begun) * 1000,
            acked_ms=(done - begun) * 1000,
            workers=len(self._links.by_name),
            late=tuple(self.behind(snapshot.epoch)),
        )

    async def drained(self, epoch: int, seconds: float) -> bool:
        """Wait until no worker has a request of an earlier epoch in flight; False where one still has by then."""
        return await self._links.wait_until(
            lambda: all(link.drained >= epoch for link in self._links.by_name.values()), seconds
        )

    def behind(self, epoch: int) -> list[str]:
        """Connected workers that do not serve ``epoch`` yet."""
        return [name for name, link in self._links.by_name.items() if link.epoch < epoch]
