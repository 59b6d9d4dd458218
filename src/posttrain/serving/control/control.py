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
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

from posttrain.artifacts.errors import ConflictError
from posttrain.artifacts.home import Home
from posttrain.core.atomic import locked, make_folder
from posttrain.core.clock import utc_now
from posttrain.core.errors import PosttrainError, StoreError
from posttrain.serving.config import ServeConfig, split_address
from posttrain.serving.control.admin import AdminServer
from posttrain.serving.control.boot import first_snapshot
from posttrain.serving.control.deploy import Deployer
from posttrain.serving.control.helpers import Helpers, helper_commands
from posttrain.serving.control.history import Latches
from posttrain.serving.control.links import WorkerLink, WorkerLinks, socket_path
from posttrain.serving.control.pool import WorkerPool
from posttrain.serving.control.rollback import Rollback
from posttrain.serving.control.rollouts import RolloutKeeper
from posttrain.serving.control.snapshots import SnapshotStore
from posttrain.serving.control.surface import Surface
from posttrain.serving.control.swap import Change, Swapper
from posttrain.serving.errors import ServingError
from posttrain.serving.gateway.config import WorkerConfig
from posttrain.serving.records import Snapshot, Target, Upstream
from posttrain.serving.traffic.audit import OwnerCount, reconcile
from posttrain.serving.traffic.follow import Follower
from posttrain.serving.traffic.index import TrafficIndex
from posttrain.serving.traffic.indexer import index_once
from posttrain.serving.traffic.pseudonym import load_or_make_secret

TICK_SECONDS = 0.2
"""How often the traffic is looked at."""
ENGINE_SECONDS = 1.0
"""How often engines are asked whether they are well."""


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
            took_over=self._took_over,
            drain_seconds=config.grace_seconds,
        )
        self.rollouts = RolloutKeeper(
            self.folder / "rollouts",
            swapper=self.swapper,
            latches=self.latches,
            rollback=self.rollback,
            journal=self.journal,
            took_over=self._took_over,
        )
        names = [f"w{number}" for number in range(config.workers)]
        self.pool = WorkerPool(names, folder=self.folder / "workers", links=self.links)
        self._follower: Follower | None = None
        self._helpers = Helpers(helper_commands(config, self.traffic_folder, home), self.folder / "workers")
        self._admin: AdminServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: str | None = None
        """Why the last look at the traffic could not do what it should; it is tried again."""
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
            "url": self.url(),
            "models": [route.model for route in self.swapper.current.routes],
            "workers": self.config.workers,
            "epoch": self.swapper.current.epoch,
            "admin": admin,
            "traffic": str(self.traffic_folder),
            "keys": self.config.keys_required,
        }

    def url(self) -> str:
        """Base URL of the gateway, up to and including ``/v1``."""
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
        if self.rollouts.any_open():  # all of its rows, from the beginning
            self._follower = Follower(self.traffic_folder)
        self._helpers.start()
        await self.pool.start(self.config.start_seconds)
        host, port = split_address(self.config.admin)
        self._admin = AdminServer(Surface(self).handlers(), folder=self.folder, host=host, port=port)
        self._admin.start()
        self._tasks = [
            asyncio.create_task(watch())
            for watch in (self._watch_traffic, self._helpers.watch, self._watch_engines)
        ]
        for route in self.swapper.current.routes:
            self._took_over(route.model, route.production, "control")
        self.journal("control", "gateway.started", self.config.name, {"epoch": self.swapper.current.epoch})

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._admin is not None:
            await asyncio.to_thread(self._admin.stop)
        await self.pool.stop(self.config.grace_seconds)
        await self.links.stop()
        await asyncio.to_thread(self._helpers.stop)
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

    def _took_over(self, route: str, target: Target, by: str) -> None:
        """The home's lane ``production`` follows the first route. Where it cannot, traffic has moved all the same."""
        if target.release is None or route != self.config.routes[0].model:
            return
        head = self.home.registry.current_release("production")
        if head is not None and head.digest == target.release:
            return
        held = None if head is None else head.digest
        try:
            self.home.registry.publish_release("production", target.release, held, actor=by)
        except ConflictError as error:
            self.journal(by, "release.refused", "production", {"release": target.release, "why": str(error)})

    def follow(self) -> None:
        """Look at the traffic from now on: a rollout is about to begin. Between rollouts nobody does."""
        if self._follower is None or not self.rollouts.any_open():
            self._follower = Follower.from_now(self.traffic_folder)

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

    # -- what goes on --------------------------------------------------------------------------------

    async def _watch_traffic(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._follower is None or not self.rollouts.any_open():
                self._follower = None
                continue
            rows = await asyncio.to_thread(self._follower.poll)
            try:
                await self.rollouts.tick(rows)
                self.failure = None
            except PosttrainError as error:
                # It is tried again at the next look; until then the status and the journal say why.
                if str(error) != self.failure:
                    self._note_failure("rollout.failed", self.config.name, error)
                self.failure = str(error)

    async def _watch_engines(self) -> None:
        """Start an engine again that died, and tell the workers where it is now."""
        while True:
            await asyncio.sleep(ENGINE_SECONDS)
            for target in [target for route in self.swapper.current.routes for target in route.targets()]:
                if await asyncio.to_thread(self.deployer.is_well, target):
                    continue
                why = f"the engine of {target.name} was started again"
                try:
                    _, held = await self.deployer.ready(target, ())
                    await self.swapper.swap(_with_upstreams(held), why)
                except PosttrainError as error:
                    self._note_failure("engine.failed", target.name, error)

    def _note_failure(self, action: str, subject: str, error: PosttrainError) -> None:
        """In the journal, unless a full disk is what failed: control goes on."""
        with contextlib.suppress(StoreError):
            self.journal("control", action, subject, {"error": str(error)})


def _with_upstreams(held: tuple[Upstream, ...]) -> Change:
    """The same routes on upstreams that moved."""

    def change(snapshot: Snapshot) -> Snapshot:
        moved = {upstream.name: upstream for upstream in (*snapshot.upstreams, *held)}
        return snapshot.model_copy(update={"upstreams": tuple(moved.values())})

    return change


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
