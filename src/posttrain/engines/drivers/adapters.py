"""The life of LoRA adapters on one engine: load, probe, route, drain, unload.

Here: which adapters an engine holds, and when one goes. An engine knows an adapter by ``name@sha12``: other weights
have another name, so what it cached under a name is never another adapter's. Least recently used goes first; never one
that is routed, or has requests. Not here: files (``adapter_files``), who gets which answer (the snapshot), engines.

The caller's part: ``route`` a name before a snapshot that holds it is published, ``unroute`` it when every worker has
left the last one that did.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from posttrain.core.atomic import make_folder, remove_tree
from posttrain.engines.drivers.adapter_files import stage
from posttrain.engines.drivers.probe import Probe, probe
from posttrain.engines.drivers.protocol import EngineDriver
from posttrain.engines.drivers.records import AdapterRef
from posttrain.engines.errors import EngineError, ReleaseRefused

State: TypeAlias = Literal["loading", "ready", "draining"]
_POLL_SECONDS = 0.05
WARM_UP = Probe(
    id="warm-up", messages=({"role": "user", "content": "Hello"},), max_tokens=1, expect={"kind": "answers"}
)
"""What every adapter must do before it is routed: answer at all."""


@dataclass(slots=True)
class LoadedAdapter:
    """One adapter on the engine."""

    adapter: AdapterRef
    state: State
    routed: bool = False
    """Whether a snapshot may send requests to it."""
    uses: int = 0
    """Requests begun by :meth:`AdapterManager.use`."""
    used_at: float = 0.0
    """When it was last asked for, by a clock of this process."""


class AdapterManager:
    """The adapters of one engine. Methods block, and may be called from any thread."""

    def __init__(
        self,
        driver: EngineDriver,
        *,
        url: str,
        store: Path,
        staging: Path,
        max_loaded: int | None = None,
        probe_seconds: float = 30.0,
        key: str | None = None,
    ) -> None:
        """``url`` is what ``driver.start()`` gave; only adapters inside ``store`` are loaded, by way of ``staging``.

        ``staging`` is this manager's own folder. ``max_loaded`` is the engine's own number where none is given;
        ``key`` is for an engine that asks for one.
        """
        self._driver = driver
        self._url = url
        self._store = store
        self._staging = staging
        self._most = driver.max_adapters if max_loaded is None else min(max_loaded, driver.max_adapters)
        self._probe_seconds = probe_seconds
        self._key = key
        self._loaded: dict[str, LoadedAdapter] = {}
        self._digests: dict[str, str] = {}
        """Every name there ever was, and what it stood for."""
        self._lock = threading.RLock()
        self._changing = threading.Lock()
        """One adapter is loaded or unloaded at a time."""
        make_folder(staging)

    def load(self, adapter: AdapterRef, *, probes: Sequence[Probe] = ()) -> str:
        """Load an adapter, and see that it answers; the name to send as ``model``.

        The same digest twice is one. ``probes`` are asked after the warm-up; each must pass. Raises ReleaseRefused for
        files that are not the adapter's, EngineError where the engine is full, or a probe fails.
        """
        name = adapter.served_name
        with self._changing:
            with self._lock:
                if (held := self._loaded.get(name)) is not None and held.state == "ready":
                    self._same(adapter)
                    held.used_at = time.monotonic()
                    return name
                self._same(adapter)
            folder = stage(adapter, store=self._store, staging=self._staging)
            try:
                self._make_room()
                with self._lock:
                    self._digests[name] = adapter.digest
                    self._loaded[name] = LoadedAdapter(adapter, "loading", used_at=time.monotonic())
                sent = self._driver.load_adapter(name, folder)
                self._prove(sent, [WARM_UP, *probes])
            except BaseException:
                self._forget(name, folder)
                raise
            with self._lock:
                self._loaded[name].state = "ready"
            return sent

    def route(self, name: str) -> None:
        """From now on snapshots may hold ``name``: it stays until :meth:`unroute`. Raises EngineError."""
        with self._lock:
            self._ready(name).routed = True

    def unroute(self, name: str) -> None:
        """No worker sends requests to ``name`` any more; one that is not loaded is fine."""
        with self._lock:
            if (held := self._loaded.get(name)) is not None:
                held.routed = False
                held.used_at = time.monotonic()

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[str]:
        """Hold ``name`` for one request of this process. Raises EngineError where it is not ready."""
        with self._lock:
            held = self._ready(name)
            held.uses += 1
            held.used_at = time.monotonic()
        try:
            yield name
        finally:
            with self._lock:
                held.uses -= 1

    def unload(self, name: str, *, drain_seconds: float = 30.0) -> None:
        """Take ``name`` off the engine once its requests have ended; one that is not loaded is fine.

        Raises EngineError where it is routed, or still has requests after ``drain_seconds``: it then stays.
        """
        with self._changing:
            self._unload(name, drain_seconds)

    def loaded(self) -> dict[str, LoadedAdapter]:
        """What is held now, by name."""
        with self._lock:
            return dict(self._loaded)

    def move(self, url: str) -> None:
        """The engine was started again, and answers at ``url`` now; :meth:`reconcile` brings its adapters back."""
        with self._changing:
            self._url = url

    def reconcile(self) -> list[str]:
        """After a restart of the engine: load again what it should hold and does not; the names of those."""
        with self._changing:
            there = {model.name for model in self._driver.models()}
            with self._lock:
                lost = [
                    (name, held) for name, held in self._loaded.items()
                    if name not in there and held.state == "ready"
                ]  # fmt: skip
            for name, held in lost:
                folder = stage(held.adapter, store=self._store, staging=self._staging)
                self._driver.load_adapter(name, folder)
                self._prove(name, [WARM_UP])
            return [name for name, _ in lost]

    def _make_room(self) -> None:
        if self._most < 1:
            raise EngineError("this engine holds no adapters", hint="set `max_adapters` to 1 or more")
        while len(self._loaded) >= self._most:
            with self._lock:
                free = [
                    (held.used_at, name) for name, held in self._loaded.items()
                    if not held.routed and not held.uses
                ]  # fmt: skip
            busy = self._driver.busy([name for _, name in free])
            idle = sorted((at, name) for at, name in free if not busy.get(name))
            if not idle:
                raise EngineError(
                    f"all {len(self._loaded)} adapters of the engine are routed or have requests",
                    hint="raise `max_adapters`, or end a rollout first",
                )
            self._unload(idle[0][1], drain_seconds=0.0)

    def _unload(self, name: str, drain_seconds: float) -> None:
        with self._lock:
            held = self._loaded.get(name)
            if held is None:
                return
            if held.routed:
                raise EngineError(f"{name} is routed, and stays", hint="take it out of the snapshot first")
            held.state = "draining"
        until = time.monotonic() + drain_seconds
        while held.uses or self._driver.busy([name]).get(name):
            if time.monotonic() >= until:
                with self._lock:
                    held.state = "ready"
                raise EngineError(
                    f"{name} still has requests after {drain_seconds:g} s, and stays",
                    hint="try again, or raise `drain_seconds`",
                )
            time.sleep(_POLL_SECONDS)
        self._driver.unload_adapter(name)
        with self._lock:
            del self._loaded[name]
        remove_tree(self._staged(held.adapter))

    def _prove(self, name: str, probes: Sequence[Probe]) -> None:
        """Raises EngineError where a probe fails."""
        for result in probe(self._url, name, probes, seconds=self._probe_seconds, key=self._key):
            if not result.passed:
                raise EngineError(
                    f"{name} failed the probe {result.id}: {result.reason}",
                    hint="the adapter was taken off again; compare its recorded outputs",
                )

    def _forget(self, name: str, folder: Path) -> None:
        """Undo a load that failed, as far as the engine lets us."""
        with self._lock:
            self._loaded.pop(name, None)
        with contextlib.suppress(EngineError):
            self._driver.unload_adapter(name)
        remove_tree(folder)

    def _ready(self, name: str) -> LoadedAdapter:
        held = self._loaded.get(name)
        if held is None or held.state != "ready":
            state = "not loaded" if held is None else held.state
            raise EngineError(f"{name} is {state}", hint="load it first")
        return held

    def _same(self, adapter: AdapterRef) -> None:
        """A name never stands for two contents, not even by a chance of 12 digits."""
        name = adapter.served_name
        if self._digests.get(name, adapter.digest) != adapter.digest:
            raise ReleaseRefused(
                f"the name {name} has stood for other weights on this engine",
                hint="give the adapter another name",
            )

    def _staged(self, adapter: AdapterRef) -> Path:
        return self._staging / adapter.digest.removeprefix("sha256:")
