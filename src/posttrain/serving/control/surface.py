"""What may be asked of a running gateway: the functions behind the admin surface.

Here: one small function a route. Not here: HTTP (``admin``), doing things (``rollouts``, ``rollback``). To add one: a
method, and its line in :meth:`Surface.handlers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import PosttrainError, UnknownReferenceError, UsageError
from posttrain.core.suggest import did_you_mean
from posttrain.rollouts.steps import Action
from posttrain.serving.control.admin import Handler
from posttrain.serving.control.proposals import attach_decision, propose
from posttrain.serving.control.rollback import as_json

if TYPE_CHECKING:
    from posttrain.serving.control.control import Control

_ACTIONS: Mapping[str, Action] = {
    name: name for name in ("start", "advance", "hold", "resume", "abort", "clear", "rollback")
}


class Surface:
    """The admin surface of one gateway."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def handlers(self) -> dict[str, Handler]:
        """By method and path; see :class:`~posttrain.serving.control.admin.AdminServer`."""
        return {
            "GET /v1/status": self._status,
            "GET /v1/snapshots": self._snapshots,
            "GET /v1/rollouts": self._rollouts,
            "POST /v1/rollouts": self._propose,
            "GET /v1/rollouts/*": self._rollout,
            "POST /v1/rollouts/*": self._act,
            "POST /v1/rollback": self._roll_back,
            "POST /v1/rollback/clear": self._clear,
            "POST /v1/access": self._access,
        }

    async def _status(self, given: Mapping[str, Any]) -> Any:
        snapshot = self._control.swapper.current
        return {
            "gateway": self._control.config.name,
            "url": self._control.url(),
            "epoch": snapshot.epoch,
            "reason": snapshot.reason,
            "at": snapshot.at,
            "routes": [route.model_dump(mode="json") for route in snapshot.routes],
            "latched": {
                route.model: latch.reason
                for route in snapshot.routes
                if (latch := self._control.latches.get(route.model)) is not None
            },
            "workers": {
                name: {"pid": link.pid, "port": link.port, "epoch": link.epoch, "stats": link.stats}
                for name, link in sorted(self._control.links.by_name.items())
            },
            "restarts": self._control.pool.restarts,
            "engines": await asyncio.to_thread(self._control.deployer.status),
            "rollouts": self._control.rollouts.ids(),
            "alerts": self._control.rollouts.alerts(),
            "failure": self._control.failure,
        }

    async def _snapshots(self, given: Mapping[str, Any]) -> Any:
        store = self._control.swapper.store
        return [
            {"epoch": snapshot.epoch, "at": snapshot.at, "reason": snapshot.reason}
            for snapshot in map(store.get, store.epochs())
        ]

    async def _rollouts(self, given: Mapping[str, Any]) -> Any:
        return self._control.rollouts.statuses()

    async def _rollout(self, given: Mapping[str, Any]) -> Any:
        return self._control.rollouts.status(self._control.rollouts.find(given["rest"]))

    async def _propose(self, given: Mapping[str, Any]) -> Any:
        self._control.latches.refuse(self._route(given.get("route")))  # before anything is loaded
        spec, upstreams = await propose(
            given, self._control.home, self._control.deployer, self._control.swapper.current
        )
        await asyncio.to_thread(self._control.follow)
        running = self._control.rollouts.create(spec, upstreams, by=_by(given))
        if given.get("decision"):
            self._control.rollouts.attach(
                running, attach_decision(self._control.home, given["decision"], by=_by(given))
            )
        if not given.get("start", True):
            return self._control.rollouts.status(running)
        try:
            return await self._control.rollouts.act(running, "start", by=_by(given))
        except PosttrainError as error:  # what was refused must not stand in the way of the next one
            await self._control.rollouts.act(running, "abort", by=_by(given), reason=str(error))
            raise

    async def _act(self, given: Mapping[str, Any]) -> Any:
        name, _, action = str(given["rest"]).rpartition("/")
        running = self._control.rollouts.find("" if name == "-" else name, action)
        if action == "decision":
            self._control.rollouts.attach(
                running, attach_decision(self._control.home, given["decision"], by=_by(given))
            )
            return self._control.rollouts.status(running)
        if action not in _ACTIONS:
            raise UsageError(f"no action {action!r}", hint=did_you_mean(action, _ACTIONS))
        return await self._control.rollouts.act(
            running, _ACTIONS[action], by=_by(given), reason=str(given.get("reason") or "")
        )

    async def _roll_back(self, given: Mapping[str, Any]) -> Any:
        route = self._route(given.get("route"))
        drill = bool(given.get("drill"))
        report = await self._control.rollback.run(
            route,
            to=given.get("to") or None,
            reason=str(given.get("reason") or "by hand"),
            actor=_by(given),
            drill=drill,
            first=None if drill else lambda epoch: self._control.rollouts.ended_by_hand(route, epoch, given),
        )
        if not drill:
            self._control.rollouts.confirm_by_hand(route, report)
        return as_json(report)

    async def _clear(self, given: Mapping[str, Any]) -> Any:
        route = self._route(given.get("route"))
        cleared = self._control.rollouts.cleared(route, by=_by(given), reason=str(given.get("reason") or ""))
        return {"route": route, "cleared": cleared}

    async def _access(self, given: Mapping[str, Any]) -> Any:
        self._control.links.broadcast({"op": "access"})
        return {"workers": len(self._control.links.by_name), "keys": self._control.keys_in_force}

    def _route(self, name: Any) -> str:
        routes = [route.model for route in self._control.swapper.current.routes]
        if name is None and len(routes) == 1:
            return routes[0]
        if name not in routes:
            asked = "name a route" if name is None else f"there is no route {name!r}"
            raise UnknownReferenceError(asked, hint=f"there are: {', '.join(routes)}")
        return str(name)


def _by(given: Mapping[str, Any]) -> str:
    return str(given.get("by") or "somebody")
