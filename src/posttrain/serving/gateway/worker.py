"""One worker: listens, serves one snapshot at any instant, logs, drains.

Here: putting the parts together, swapping, stopping. Not here: the process and its tie to control (``link``). It can be
run in any event loop; uvloop is what makes it quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.core.errors import ServingError
from posttrain.routing.config import RouterConfig
from posttrain.routing.records import Snapshot
from posttrain.serving.access import Access, SharedBudgets, TlsFiles
from posttrain.serving.gateway.choosing import Chooser
from posttrain.serving.gateway.config import WorkerConfig
from posttrain.serving.gateway.context import Context
from posttrain.serving.gateway.metrics import Metrics, rss_bytes
from posttrain.serving.gateway.plan import Plan
from posttrain.serving.gateway.routes import Routes
from posttrain.serving.gateway.rowlog import RowLog
from posttrain.serving.gateway.server import ServerDoor
from posttrain.serving.gateway.shadow import ShadowQueue
from posttrain.serving.gateway.upstream import UpstreamHandle
from posttrain.traffic.pseudonym import load_or_make_secret
from posttrain.traffic.segments import SegmentWriter

_SWEEP_SECONDS = 0.05
_SHELVE_SECONDS = 1.0
_BACKLOG = 4096


class Worker:
    """One worker of the gateway."""

    def __init__(self) -> None:
        self.port = 0
        """Where it listens; 0: not yet."""
        self.on_drained: Callable[[int], None] = lambda epoch: None
        """Called with the epoch in use when nothing of an earlier one is in flight any more."""
        self._context: Context
        self._config: WorkerConfig
        self._door: ServerDoor
        self._routes: Routes
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._handles: dict[str, dict[str, UpstreamHandle]] = {"user": {}, "shadow": {}}
        self._choosers: dict[str, Chooser] = {}
        self._tls: TlsFiles | None = None
        self._retired: list[UpstreamHandle] = []
        self.drained_epoch = 0
        """Nothing of an epoch below this is in flight."""

    @property
    def epoch(self) -> int:
        """Of the snapshot in use; 0 before the start."""
        return self._context.plan.epoch if self._server is not None else 0

    @property
    def context(self) -> Context:
        """The parts, for who looks on."""
        return self._context

    async def start(self, config: WorkerConfig, snapshot: Snapshot) -> int:
        """Open the log and the door; returns the port. Raises ServingError, ConfigError."""
        self._config = config
        folder = Path(config.traffic_folder)
        secret = config.hash_secret
        key = secret.get_secret_value().encode() if secret is not None else load_or_make_secret(folder)
        tls = self._tls = _tls(config)
        metrics = Metrics()
        writer = SegmentWriter(folder, owner=config.name, config=config.traffic)
        loop = asyncio.get_running_loop()
        writer.attach(loop)
        try:
            log = RowLog(writer, metrics)
            context = self._context = Context(config, log, metrics, key)
            context.plan = self._plan(snapshot)
            context.shadow = ShadowQueue(context)
            context.access = _access(config)
            context.on_epoch_empty = self._look_for_drained
            self._routes = Routes(context)
            self._door = ServerDoor(self._routes, config.limits)
            listener = _listen(config)
            self._server = await loop.create_server(
                lambda: self._door.connect().protocol,
                sock=listener,
                backlog=_BACKLOG,
                ssl=None if tls is None else tls.context,
                ssl_handshake_timeout=None if tls is None else config.limits.header_seconds,
            )
        except BaseException:
            writer.close()
            raise
        self.port = listener.getsockname()[1]
        self.drained_epoch = snapshot.epoch
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)
        self._shelve()
        return self.port

    def _shelve(self) -> None:
        """Show the other workers this one's metrics, every second."""
        if self._routes.shelf is not None and self._server is not None:
            self._routes.shelf.put(self._routes.metrics_page())
            asyncio.get_running_loop().call_later(_SHELVE_SECONDS, self._shelve)

    def swap(self, snapshot: Snapshot) -> None:
        """Use another snapshot for every request accepted from now on. Raises ServingError for an older one."""
        context = self._context
        if snapshot.epoch <= context.plan.epoch:
            if snapshot == context.plan.snapshot:
                return
            raise ServingError(
                f"epoch {snapshot.epoch} is not above epoch {context.plan.epoch}, which is in use"
            )
        context.plan = self._plan(snapshot)
        context.shadow.swapped(context.plan)
        self._look_for_drained()

    def reload_access(self) -> None:
        """Read the key file and the certificate again. Raises an error of ours, and then they stay as they were."""
        if self._context.access is not None:
            self._context.access.reload()
        if self._tls is not None:
            self._tls.reload()

    def stats(self) -> dict[str, Any]:
        """Counters since the start."""
        context = self._context
        metrics = context.metrics
        return {
            "epoch": context.plan.epoch,
            "drained_epoch": self.drained_epoch,
            "in_flight": context.admission.in_flight,
            "queue_depth": context.admission.waiting,
            "targets": [cell.to_json() for cell in metrics.cells.values()],
            "retries": metrics.retries,
            "feedback": metrics.feedback,
            "refused": sum(metrics.refused.values()),
            "shadow": {
                "queued": metrics.shadow_queued,
                "dropped": metrics.shadow_dropped,
                "failed": metrics.shadow_failed,
                "waiting": context.shadow.waiting,
                "active": context.shadow.active,
            },
            "routers_failing": sorted(
                model for model, chooser in self._choosers.items() if chooser.failing is not None
            ),
            "lost_rows": metrics.lost_rows,
            "log_failing": context.log.failing,
            "log_backlog_bytes": context.log.backlog_bytes,
            "breakers": {name: handle.breaker.state for name, handle in context.plan.handles.items()},
            "rss_bytes": rss_bytes(),
        }

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Take nothing new, let what is in flight end, close the log. What is left after the grace is cut off."""
        if self._server is None:
            return
        grace = self._config.grace_seconds if grace_seconds is None else grace_seconds
        until = time.monotonic() + grace
        server, self._server = self._server, None
        server.close()
        self._routes.draining = True
        self._door.drain()
        context = self._context
        context.shadow.stop()
        while time.monotonic() < until and (context.shadow.active or not self._door.is_done):
            await asyncio.sleep(0.01)
        context.shadow.abort()
        for connection in list(self._door.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for connections to be told that they are lost, and their rows to be written
        while self._door.connections:
            await asyncio.sleep(0.001)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for handle in (*self._handles["user"].values(), *self._handles["shadow"].values(), *self._retired):
            handle.pool.close()
        with contextlib.suppress(Exception):
            await server.wait_closed()
        context.log.flush()
        await asyncio.get_running_loop().run_in_executor(None, context.log.close)

    # -- inside -----------------------------------------------------------------------------------

    def _plan(self, snapshot: Snapshot) -> Plan:
        """Make a snapshot ready; what it shares with the one before keeps its connections and breakers."""
        for lane, old in self._handles.items():
            new = {}
            for upstream in snapshot.upstreams:
                known = old.get(upstream.name)
                same = known is not None and known.upstream == upstream
                new[upstream.name] = (
                    known if same and known else UpstreamHandle(upstream, self._config.breaker)
                )
            for name, handle in old.items():
                if new.get(name) is not handle:
                    handle.pool.retire()
                    self._retired.append(handle)
            self._handles[lane] = new
        self._choosers = {
            route.model: self._chooser(route.model, route.router, [choice.name for choice in route.choices])
            for route in snapshot.routes
            if route.router is not None
        }
        return Plan(
            snapshot,
            choosers=self._choosers,
            worker=self._config.name,
            handles=self._handles["user"],
            shadow_handles=self._handles["shadow"],
            metrics=self._context.metrics,
        )

    def _chooser(self, route: str, config: RouterConfig, choices: list[str]) -> Chooser:
        """The route's router, as it was made for an earlier snapshot where it is the same and works."""
        known = self._choosers.get(route)
        if known is not None and (known.config, known.choices, known.failing) == (
            config,
            frozenset(choices),
            None,
        ):
            return known
        return Chooser(config, choices)

    def _look_for_drained(self) -> None:
        epoch = self._context.plan.epoch
        if self.drained_epoch < epoch and not any(
            count for old, count in self._context.epochs.items() if old < epoch
        ):
            self.drained_epoch = epoch
            self.on_drained(epoch)

    def _sweep(self) -> None:
        """Everything that waits for a time, in one place."""
        now = time.monotonic()
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)
        self._door.sweep(now)
        self._context.admission.sweep(now)
        self._context.shadow.sweep(now)
        for handles in self._handles.values():
            for handle in handles.values():
                handle.pool.sweep(now)
        for handle in self._retired:
            handle.pool.sweep(now)
        self._retired = [handle for handle in self._retired if handle.pool.count or handle.pool.waiting]


def _listen(config: WorkerConfig) -> socket.socket:
    """A socket that several workers may listen on at once: the kernel spreads connections over them."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        raise ServingError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror or error}",
            hint="choose another `host` or `port`, or end what listens there",
        ) from error
    return listener


def _tls(config: WorkerConfig) -> TlsFiles | None:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return TlsFiles(Path(config.tls_certificate), Path(config.tls_key))


def _access(config: WorkerConfig) -> Access | None:
    if config.access is None:
        return None
    budgets = None
    if config.budgets is not None:
        budgets = SharedBudgets(Path(config.budgets), worker=config.index, workers=config.workers)
    return Access(Path(config.access), budgets)
