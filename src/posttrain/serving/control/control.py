"""The process above the workers.

Here: one gateway from its start to its stop, and what the admin surface may ask of it. Not here: traffic (``gateway``),
the log (``traffic``), what a rollout needs (``rollout``), engines (``deploy``). One control per folder, held by a lock.

What survives what: a killed worker is started again and gets the current snapshot; when control is killed the workers
serve on, and the next control adopts them, reads the chain of snapshots and the rollouts' journals, and finishes what
was begun. Engines that control starts end with it: where that must not be, run them beside and name their URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from posttrain.artifacts.home import Home
from posttrain.core.atomic import locked, make_folder
from posttrain.core.clock import utc_now
from posttrain.core.errors import UnknownReferenceError, UsageError
from posttrain.core.suggest import did_you_mean
from posttrain.serving.config import ServeConfig, split_address
from posttrain.serving.control.admin import AdminServer, Handler
from posttrain.serving.control.boot import first_snapshot
from posttrain.serving.control.deploy import Deployer
from posttrain.serving.control.history import Latches
from posttrain.serving.control.links import WorkerLink, WorkerLinks, socket_path
from posttrain.serving.control.pool import WorkerPool
from posttrain.serving.control.proposals import attach_decision, propose
from posttrain.serving.control.rollback import Rollback, as_json
from posttrain.serving.control.rollouts import RolloutKeeper
from posttrain.serving.control.snapshots import SnapshotStore
from posttrain.serving.control.swap import Swapper
from posttrain.serving.errors import ServingError
from posttrain.serving.gateway.config import WorkerConfig
from posttrain.serving.rollout.steps import Action
from posttrain.serving.traffic.audit import OwnerCount, reconcile
from posttrain.serving.traffic.follow import Follower
from posttrain.serving.traffic.index import TrafficIndex
from posttrain.serving.traffic.indexer import index_once
from posttrain.serving.traffic.pseudonym import load_or_make_secret

TICK_SECONDS = 0.2
"""How often the traffic is looked at."""
_ACTIONS: Mapping[str, Action] = {
    name: name for name in ("start", "advance", "hold", "resume", "abort", "clear", "rollback")
}


class Control:
    """One gateway."""

    def __init__(self, config: ServeConfig, home: Home) -> None:
        self.config = config
        self.home = home
        self.folder = home.settings.home / "serving" / config.name
        self.traffic_folder = self.folder / "traffic"
        make_folder(self.traffic_folder)
        self.links = WorkerLinks(socket_path(self.folder), self._hello)
        self.swapper = Swapper(SnapshotStore(self.folder / "snapshots"), self.links)
        self.latches = Latches(self.folder / "latches")
        self.deployer = Deployer(home, self.folder / "engines", config)
        self.rollback = Rollback(
            self.swapper,
            self.latches,
            ready=self.deployer.ready,
            journal=self.journal,
            drain_seconds=config.grace_seconds,
        )
        self.rollouts = RolloutKeeper(
            self.folder / "rollouts",
            swapper=self.swapper,
            latches=self.latches,
            rollback=self.rollback,
            journal=self.journal,
        )
        names = [f"w{number}" for number in range(config.workers)]
        self.pool = WorkerPool(names, folder=self.folder / "workers", links=self.links)
        self._follower = Follower(self.traffic_folder)
        self._indexer: subprocess.Popen[bytes] | None = None
        self._admin: AdminServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: str | None = None
        self._reserved: socket.socket | None = None
        self._host, self._secret = "", b""
        self.port = 0
        """Where the gateway listens."""

    def journal(self, actor: str, action: str, subject: str, data: Mapping[str, Any]) -> None:
        """One line in the home's journal, which nothing changes or removes again."""
        self.home.registry.append_journal(actor, action, subject, {"gateway": self.config.name, **data})

    def where(self) -> dict[str, Any]:
        """Where everything is, for whoever started it."""
        admin = "" if self._admin is None else f"http://{self._admin.host}:{self._admin.port}/v1"
        return {
            "gateway": self.config.name,
            "url": self._url(),
            "models": [route.model for route in self.swapper.current.routes],
            "workers": self.config.workers,
            "epoch": self.swapper.current.epoch,
            "admin": admin,
            "traffic": str(self.traffic_folder),
            "keys": self.config.keys_required,
        }

    def _url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'s' if self.config.tls else ''}://{host}:{self.port}/v1"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Control]:
        """Start, yield while it serves, stop. Raises ServingError where another control has the folder."""
        with locked(self.folder / "control.lock", exclusive=True, wait=False) as mine:
            if not mine:
                raise ServingError(
                    f"a gateway {self.config.name!r} runs already",
                    hint="stop it first, or give the configuration another `name`",
                )
            try:
                await self._start()
                yield self
            finally:
                await self._stop()

    async def wait(self) -> None:
        """Serve until a signal asks to stop, or a part that cannot be done without fails."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        waiting = [asyncio.create_task(stop.wait()), *self._tasks]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    # -- start and stop ------------------------------------------------------------------------------

    async def _start(self) -> None:
        host, port = split_address(self.config.listen)
        # Held for as long as control lives: workers come and go, and nobody else may take the port in between.
        self._reserved = _reserve(host, port)
        self._host, self.port = host, self._reserved.getsockname()[1]
        self._secret = load_or_make_secret(self.traffic_folder)
        await self.links.start()
        before = self.swapper.store.current()
        snapshot = await first_snapshot(self.config, self.deployer, before, at=utc_now())
        if snapshot is not None:
            self.swapper.store.publish(snapshot)
        self.rollouts.load()
        self._indexer = self._start_indexer()
        await self.pool.start(self.config.start_seconds)
        host, port = split_address(self.config.admin)
        self._admin = AdminServer(self._handlers(), folder=self.folder, host=host, port=port)
        self._admin.start()
        self._tasks = [asyncio.create_task(self._watch_traffic()), asyncio.create_task(self._watch_indexer())]
        self.journal("control", "gateway.started", self.config.name, {"epoch": self.swapper.current.epoch})

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._admin is not None:
            await asyncio.to_thread(self._admin.stop)
        await self.pool.stop(self.config.grace_seconds)
        await self.links.stop()
        if self._indexer is not None:
            self._indexer.terminate()
            await asyncio.to_thread(self._indexer.wait)
        await asyncio.to_thread(self.deployer.stop)
        if self._reserved is not None:
            self._reserved.close()

    def _hello(self, link: WorkerLink) -> Mapping[str, Any] | None:
        """What a worker that says hello is told."""
        snapshot = self.swapper.current
        if link.epoch == 0:
            config = self._worker_config(link.name)
            return {"op": "start", "config": config.to_json(), "snapshot": snapshot.to_json()}
        if link.epoch < snapshot.epoch:
            return {"op": "snapshot", "snapshot": snapshot.to_json()}
        return None

    def reconcile(self) -> list[OwnerCount]:
        """Accepted requests beside rows in the index, once everything has stopped."""
        index = TrafficIndex.open(self.traffic_folder, self.config.traffic.sink)
        index_once(self.traffic_folder, index)
        return reconcile(self.traffic_folder, index)

    def _worker_config(self, name: str) -> WorkerConfig:
        config, tls = self.config, self.config.tls
        return WorkerConfig(
            name=name,
            host=self._host,
            port=self.port,
            control=str(self.links.path),
            traffic_folder=str(self.traffic_folder),
            traffic=config.traffic,
            limits=config.limits,
            retries=config.retries,
            breaker=config.breaker,
            shadow=config.shadow,
            hash_secret=self._secret.hex(),
            tls_certificate=None if tls is None else str(tls.certificate),
            tls_key=None if tls is None else str(tls.key),
            access=str(self.folder / "keys.json") if config.keys_required else None,
            grace_seconds=config.grace_seconds,
        )

    def _start_indexer(self) -> subprocess.Popen[bytes]:
        make_folder(self.folder / "workers")
        command = [sys.executable, "-m", "posttrain.serving.traffic", "--folder", str(self.traffic_folder)]
        traffic = self.config.traffic
        for option, value in (
            ("--index", traffic.sink),
            ("--history-after", traffic.history_after_seconds),
            ("--retention-days", traffic.retention_days),
        ):
            if value is not None:
                command += [option, str(value)]
        with (self.folder / "workers" / "indexer.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ.copy(),
            )

    # -- what goes on --------------------------------------------------------------------------------

    async def _watch_traffic(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            rows = await asyncio.to_thread(self._follower.poll)
            try:
                await self.rollouts.tick(rows)
                self._failure = None
            except ServingError as error:
                # It is tried again at the next look; until then the status and the journal say why.
                if str(error) != self._failure:
                    self.journal("control", "rollout.failed", self.config.name, {"error": str(error)})
                self._failure = str(error)

    async def _watch_indexer(self) -> None:
        pause = 0.1
        while True:
            await asyncio.sleep(pause)
            if self._indexer is not None and self._indexer.poll() is not None:
                pause = min(5.0, pause * 2)
                self._indexer = self._start_indexer()
            else:
                pause = 0.1

    # -- the admin surface ---------------------------------------------------------------------------

    def _handlers(self) -> dict[str, Handler]:
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
        snapshot = self.swapper.current
        return {
            "gateway": self.config.name,
            "url": self._url(),
            "epoch": snapshot.epoch,
            "reason": snapshot.reason,
            "at": snapshot.at,
            "routes": [route.model_dump(mode="json") for route in snapshot.routes],
            "latched": {
                route.model: latch.reason
                for route in snapshot.routes
                if (latch := self.latches.get(route.model)) is not None
            },
            "workers": {
                name: {"pid": link.pid, "port": link.port, "epoch": link.epoch, "stats": link.stats}
                for name, link in sorted(self.links.by_name.items())
            },
            "restarts": self.pool.restarts,
            "engines": await asyncio.to_thread(self.deployer.status),
            "rollouts": [running["id"] for running in self.rollouts.statuses()],
            "alerts": self.rollouts.alerts(),
            "failure": self._failure,
        }

    async def _snapshots(self, given: Mapping[str, Any]) -> Any:
        store = self.swapper.store
        return [
            {"epoch": snapshot.epoch, "at": snapshot.at, "reason": snapshot.reason}
            for snapshot in map(store.get, store.epochs())
        ]

    async def _rollouts(self, given: Mapping[str, Any]) -> Any:
        return self.rollouts.statuses()

    async def _rollout(self, given: Mapping[str, Any]) -> Any:
        return self.rollouts.status(self.rollouts.find(given["rest"]))

    async def _propose(self, given: Mapping[str, Any]) -> Any:
        spec, upstreams = await propose(given, self.home, self.deployer, self.swapper.current)
        running = self.rollouts.create(spec, upstreams, by=_by(given))
        if given.get("decision"):
            self.rollouts.attach(running, attach_decision(self.home, given["decision"], by=_by(given)))
        if given.get("start", True):
            return await self.rollouts.act(running, "start", by=_by(given))
        return self.rollouts.status(running)

    async def _act(self, given: Mapping[str, Any]) -> Any:
        name, _, action = str(given["rest"]).rpartition("/")
        running = self.rollouts.find("" if name == "-" else name)
        if action == "decision":
            self.rollouts.attach(running, attach_decision(self.home, given["decision"], by=_by(given)))
            return self.rollouts.status(running)
        if action not in _ACTIONS:
            raise UsageError(f"no action {action!r}", hint=did_you_mean(action, _ACTIONS))
        return await self.rollouts.act(
            running, _ACTIONS[action], by=_by(given), reason=str(given.get("reason") or "")
        )

    async def _roll_back(self, given: Mapping[str, Any]) -> Any:
        route = self._route(given.get("route"))
        drill = bool(given.get("drill"))
        report = await self.rollback.run(
            route,
            to=given.get("to") or None,
            reason=str(given.get("reason") or "by hand"),
            actor=_by(given),
            drill=drill,
            first=None if drill else lambda epoch: self.rollouts.ended_by_hand(route, epoch, given),
        )
        return as_json(report)

    async def _clear(self, given: Mapping[str, Any]) -> Any:
        route = self._route(given.get("route"))
        cleared = self.rollouts.cleared(route, by=_by(given), reason=str(given.get("reason") or ""))
        return {"route": route, "cleared": cleared}

    async def _access(self, given: Mapping[str, Any]) -> Any:
        self.links.broadcast({"op": "access"})
        return {"workers": len(self.links.by_name)}

    def _route(self, name: Any) -> str:
        routes = [route.model for route in self.swapper.current.routes]
        if name is None and len(routes) == 1:
            return routes[0]
        if name not in routes:
            asked = "name a route" if name is None else f"there is no route {name!r}"
            raise UnknownReferenceError(asked, hint=f"there are: {', '.join(routes)}")
        return str(name)


def _by(given: Mapping[str, Any]) -> str:
    return str(given.get("by") or "somebody")


def _reserve(host: str, port: int) -> socket.socket:
    """The address, bound and not listening: connections go to the workers, which share it by SO_REUSEPORT."""
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise ServingError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="set `listen` to a free address"
        ) from error
    return reserved
