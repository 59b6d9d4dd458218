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
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from posttrain.artifacts.errors import ConflictError
from posttrain.artifacts.home import Home
from posttrain.core.atomic import locked, make_folder, write_atomic
from posttrain.core.clock import utc_now
from posttrain.core.errors import PosttrainError, ServingError
from posttrain.routing.records import Snapshot, Target, Upstream
from posttrain.serving.access.check import is_loopback, require_access
from posttrain.serving.config import ServeConfig, split_address
from posttrain.serving.control.admin import AdminServer
from posttrain.serving.control.boot import first_snapshot
from posttrain.serving.control.deploy import Deployer
from posttrain.serving.control.helpers import Helpers, helper_commands
from posttrain.serving.control.history import Latches, production_stack
from posttrain.serving.control.links import WorkerLink, WorkerLinks, socket_path
from posttrain.serving.control.pool import WorkerPool
from posttrain.serving.control.rollback import Rollback
from posttrain.serving.control.rollouts import RolloutKeeper
from posttrain.serving.control.snapshots import SnapshotStore
from posttrain.serving.control.surface import Surface
from posttrain.serving.control.swap import Change, Swapper
from posttrain.serving.gateway.config import WorkerConfig
from posttrain.traffic.audit import OwnerCount, reconcile
from posttrain.traffic.follow import Follower
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.indexer import index_once
from posttrain.traffic.pseudonym import load_or_make_secret

TICK_SECONDS = 0.2
"""How often the traffic is looked at."""
ENGINE_SECONDS = 1.0
"""How often engines are asked whether they are well."""
_MAX_PAUSE_SECONDS = 60.0
_ROWS = 100_000
"""Rows of one look."""


class Control:
    """One gateway."""

    def __init__(self, config: ServeConfig, home: Home) -> None:
        self.config = config
        self.home = home
        self.folder = home.settings.home / "serving" / config.name
        self.traffic_folder = self.folder / "traffic"
        self.keys = self.folder / "keys.json"
        """API keys, hashed."""
        self.keys_in_force = False
        """Whether the workers were told to ask for keys."""
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
            end_workers=self._end_workers,
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
        self.pool = WorkerPool(
            names,
            folder=self.folder / "workers",
            links=self.links,
            told=lambda name: self._worker_config(name).digest,
        )
        self._follower: Follower | None = None
        self._caught_up = True
        self._helpers = Helpers(
            helper_commands(config, self.traffic_folder, home),
            self.folder / "workers",
            index=config.traffic.sink,
        )
        self._admin: AdminServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: str | None = None
        """Why the last look at the traffic could not do what it should; it is tried again."""
        self._reserved: socket.socket | None = None
        self._has_workers = False
        self._host = ""
        self.port = 0
        """Where the gateway listens."""

    @property
    def keys_required(self) -> bool:
        """Whether every request needs an API key."""
        if self.config.access is not None:
            return self.config.access == "keys"
        return self.keys.exists() or not is_loopback(split_address(self.config.listen)[0])

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
            "compiled": sum(link.compiled for link in self.links.by_name.values()),
            "epoch": self.swapper.current.epoch,
            "admin": admin,
            "traffic": str(self.traffic_folder),
            "keys": self.keys_in_force,
        }

    def url(self) -> str:
        """Base URL of the gateway, up to and including ``/v1``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http{'s' if self.config.tls else ''}://{host}:{self.port}/v1"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Control]:
        """Start, yield while it serves, stop. Raises ServingError where another control has the folder."""
        door = self.folder.parent / f"{self.config.listen.replace('/', '_')}.lock"
        with (
            locked(self.folder / "control.lock", exclusive=True, wait=False) as mine,
            # SO_REUSEPORT lets strangers of the same user share a port without a word.
            locked(door, exclusive=True, wait=False) as free,
        ):
            if not mine:
                raise ServingError(
                    f"a gateway {self.config.name!r} runs already",
                    hint="stop it first, or give the configuration another `name`",
                )
            if not free and split_address(self.config.listen)[1]:
                raise ServingError(
                    f"another gateway of this home listens on {self.config.listen}",
                    hint="set `listen` to another address",
                )
            try:
                await self._start()
                yield self
            finally:
                await self._stop()

    async def _end_workers(self, names: Sequence[str]) -> None:
        await self.pool.end(names)

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
        self.keys_in_force = self.keys_required
        require_access(host, self.keys, declared_open=self.config.access == "open")
        # Held for as long as control lives: workers come and go, and nobody else may take the port in between.
        self._reserved = self._reserve(host, port)
        self._host, self.port = host, self._reserved.getsockname()[1]
        write_atomic(self.folder / "port", str(self.port).encode())
        load_or_make_secret(self.traffic_folder)  # by one process, before the workers all look for it
        self.rollouts.load()
        before = self.swapper.store.current()
        snapshot = await first_snapshot(
            self.config,
            self.deployer,
            before,
            at=utc_now(),
            routers=self.folder / "routers",
            productions=self.rollouts.productions() if before is not None else {},
        )
        if snapshot is not None:
            self.swapper.store.publish(snapshot)
        held = await self.rollouts.bring_back(self.deployer.ready)
        # Not before there is something to say: workers that the last control left serve on, and ask again soon.
        await self.links.start()
        if self.rollouts.any_open():  # all of its rows, from the beginning
            self._follower, self._caught_up = Follower(self.traffic_folder), False
        self._helpers.start()
        self._has_workers = True
        await self.pool.start(self.config.start_seconds)
        if held:
            await self._moved(held, "candidates were loaded again")
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
        if self._has_workers:  # else those of the last control serve on
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

    def _needed(self) -> list[Target]:
        """Targets whose engines must stay: what serves, what a rollback would go to, what is being rolled out."""
        snapshots = self.swapper.store.all()
        needed = [target for _, target in self.rollouts.candidates()]
        for route in snapshots[-1].routes:
            needed += [*route.targets(), *production_stack(snapshots, route.model)[-2:]]
        return needed

    def follow(self) -> None:
        """Look at the traffic from now on: a rollout is about to begin. Between rollouts nobody does."""
        if self._follower is None:
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
            tls_certificate=None if tls is None else str(tls.certificate),
            tls_key=None if tls is None else str(tls.key),
            access=str(self.keys) if self.keys_in_force else None,
            budgets=str(self.folder / "budgets") if self.keys_in_force else None,
            metrics_folder=str(self.folder / "metrics") if config.workers > 1 else None,
            guardrails=config.guardrails if config.guardrails.rules else None,
            index=self.pool.names.index(name),
            workers=config.workers,
            grace_seconds=config.grace_seconds,
        )

    # -- what goes on --------------------------------------------------------------------------------

    async def _watch_traffic(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self._look()
                failures = await self.rollouts.step() if self._caught_up else []
            except (
                PosttrainError,
                OSError,
                ValueError,
            ) as error:  # a boundary: whatever it is, it is tried again
                failures = [str(error)]
            # Until it works, the status says why; the journal does so once.
            said = "; ".join(failures) or None
            if said is not None and said != self.failure:
                await self._note("rollout.failed", self.config.name, said)
            self.failure = said

    async def _look(self) -> None:
        """Take the rows that were written since the last look; after a restart, all of them before anything is done."""
        if self._follower is None:
            return
        if self._caught_up and not self.rollouts.any_open():
            self._follower = None
            return
        rows = await asyncio.to_thread(self._follower.poll, _ROWS)
        self.rollouts.observe(rows, live=self._caught_up)
        self._caught_up = self._caught_up or len(rows) < _ROWS

    async def _note(self, action: str, subject: str, error: str) -> None:
        with contextlib.suppress(PosttrainError, OSError):
            await asyncio.to_thread(self.journal, "control", action, subject, {"error": error})

    async def _watch_engines(self) -> None:
        """Start an engine again that died, and tell the workers where it is now."""
        later: dict[str, tuple[float, float]] = {}
        while True:
            await asyncio.sleep(ENGINE_SECONDS)
            try:
                for route, target in self._served():
                    at, pause = later.get(target.name, (0.0, ENGINE_SECONDS))
                    if time.monotonic() < at or await asyncio.to_thread(self.deployer.is_well, target):
                        continue
                    later[target.name] = (time.monotonic() + pause, min(_MAX_PAUSE_SECONDS, pause * 2))
                    await self._start_again(route, target)
                    later.pop(target.name)
                needed = self._needed()
                await asyncio.to_thread(self.deployer.retire, needed, self.config.grace_seconds)
            except (
                PosttrainError,
                OSError,
                ValueError,
            ) as error:  # a boundary: it is tried again, after a pause
                await self._note("engine.failed", self.config.name, str(error))

    def _served(self) -> list[tuple[str, Target]]:
        """Route and target of everything whose engine must run."""
        routes = self.swapper.current.routes
        served = [(route.model, target) for route in routes for target in route.targets()]
        return [*served, *self.rollouts.candidates()]

    async def _start_again(self, route: str, target: Target) -> None:
        _, held = await self.deployer.ready(route, target, ())
        self.rollouts.moved(held)
        await self._moved(held, f"the engine of {target.name} was started again")

    async def _moved(self, held: tuple[Upstream, ...], reason: str) -> None:
        """Tell the workers where upstreams are now, where that is news."""
        known = {upstream.name: upstream for upstream in self.swapper.current.upstreams}
        if any(known.get(upstream.name) != upstream for upstream in held):
            await self.swapper.swap(_with_upstreams(held), reason)

    def _reserve(self, host: str, port: int) -> socket.socket:
        """The address, bound and not listening: connections go to the workers, which share it by SO_REUSEPORT.

        Where any port will do, the last one is asked for first: workers that serve on listen there.
        """
        if port == 0:
            with contextlib.suppress(OSError, ValueError, ServingError):
                return _bind(host, int((self.folder / "port").read_text()))
        return _bind(host, port)


def _with_upstreams(held: tuple[Upstream, ...]) -> Change:
    """The same routes on upstreams that moved."""

    def change(snapshot: Snapshot) -> Snapshot:
        moved = {upstream.name: upstream for upstream in (*snapshot.upstreams, *held)}
        return snapshot.model_copy(update={"upstreams": tuple(moved.values())})

    return change


def _bind(host: str, port: int) -> socket.socket:
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
