"""What a route's production was before, and the latch that a rollback leaves.

Here: pure questions to the chain of snapshots, and one small file. Not here: doing a rollback (``rollback``). History
is a stack, as people mean it: a promotion puts a target on it, a rollback takes it off, so rolling back twice goes back
twice and never forward to what was rolled back from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from posttrain.core.atomic import write_atomic
from posttrain.core.documents import Document
from posttrain.core.errors import DataError
from posttrain.rollouts.errors import RolloutError
from posttrain.routing.records import Snapshot, Target, Upstream


class Latch(Document):
    """Set by a rollback; while it is there no candidate meets traffic on the route."""

    record_kind: ClassVar[str] = "latch"

    route: str
    at: str
    """RFC 3339, UTC."""
    actor: str
    reason: str
    epoch: int
    """Of the snapshot that the rollback published."""


class Latches:
    """The latches of a serving folder, one file a route."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, route: str) -> Latch | None:
        """The latch of a route. A file that cannot be read counts as set: it takes a person to say otherwise."""
        try:
            return Latch.from_json(self._path(route).read_bytes())
        except FileNotFoundError:
            return None
        except (DataError, OSError) as error:
            return Latch(route=route, at="", actor="", reason=f"the latch cannot be read: {error}", epoch=0)

    def set(self, latch: Latch) -> None:
        """Set it, on the disk when this returns."""
        write_atomic(self._path(latch.route), latch.to_bytes())

    def clear(self, route: str) -> bool:
        """Take it off; False where there was none."""
        there = self._path(route).exists()
        self._path(route).unlink(missing_ok=True)
        return there

    def refuse(self, route: str) -> None:
        """Raise RolloutError where the route is latched."""
        latch = self.get(route)
        if latch is not None:
            raise RolloutError(
                f"{route!r} was rolled back at {latch.at} by {latch.actor}: {latch.reason}",
                hint=f"look into it, then `posttrain rollback --clear {route}`",
            )

    def _path(self, route: str) -> Path:
        return self._folder / f"{route.encode().hex()}.json"


def production_stack(snapshots: Iterable[Snapshot], route: str) -> list[Target]:
    """The production targets of a route that can be rolled back to, the current one last."""
    stack: list[Target] = []
    for snapshot in snapshots:
        found = snapshot.route(route)
        if found is None:
            continue
        target = found.production
        if target in stack:
            del stack[stack.index(target) + 1 :]
        else:
            stack.append(target)
    return stack


def find_earlier(snapshots: Iterable[Snapshot], route: str, to: str | None) -> Target:
    """The target to roll back to: the one before the current, or the one that ``to`` names (name or release digest,
    of any time). Raises RolloutError where there is none."""
    kept = list(snapshots)
    stack = production_stack(kept, route)
    if to is not None:
        named = [
            found.production
            for snapshot in kept
            if (found := snapshot.route(route)) is not None
            and (
                found.production.name == to or (found.production.release or "").startswith(_digest_prefix(to))
            )
        ]
        if not named:
            names = ", ".join(dict.fromkeys(target.name for target in stack)) or "none"
            raise RolloutError(f"{to!r} never was production of {route!r}", hint=f"there were: {names}")
        return named[-1]
    if len(stack) < 2:
        raise RolloutError(
            f"{route!r} has had one production only: there is nothing earlier",
            hint="name a release with --to",
        )
    return stack[-2]


def upstreams_of(snapshots: Iterable[Snapshot], target: Target) -> tuple[Upstream, ...]:
    """The upstreams that a target named when it last was served."""
    for snapshot in reversed(list(snapshots)):
        if any(target in route.targets() for route in snapshot.routes):
            return tuple(upstream for upstream in snapshot.upstreams if upstream.name in target.upstreams)
    return ()


def _digest_prefix(text: str) -> str:
    bare = text.removeprefix("sha256:")
    return f"sha256:{bare}" if len(bare) >= 6 else "\0"
