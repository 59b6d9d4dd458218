"""Releases on engines.

Here: from the name of a release to a target that answers: verified digest by digest, its engine started, its adapter
loaded, its probes passed. Not here: engines (``drivers``), what a release is (``artifacts.releases``), who gets it. Two
releases of the same weights, tokenizer and template share an engine; an adapter's name on it carries its digest.

An engine whose release nobody can be sent to any more is stopped by :meth:`Deployer.retire`, never by chance.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.artifacts.errors import ReleaseError
from posttrain.artifacts.home import Home
from posttrain.core.atomic import make_folder, remove_tree
from posttrain.core.canonical import digest_json, short
from posttrain.core.errors import ConfigError, StoreError
from posttrain.core.explain import Written, check_model
from posttrain.core.suggest import did_you_mean
from posttrain.core.yaml_text import parse_document
from posttrain.engines.drivers.adapters import AdapterManager
from posttrain.engines.drivers.probe import Probe, probe
from posttrain.engines.drivers.protocol import EngineDriver
from posttrain.engines.drivers.recorded import RecordedDriver
from posttrain.engines.drivers.records import AdapterRef, EngineConfig, ServedFolder
from posttrain.engines.drivers.registry import create_driver
from posttrain.engines.errors import EngineError, ReleaseRefused
from posttrain.releases.load import LoadedRelease, load_release
from posttrain.routing.records import EngineKind, Target, Upstream
from posttrain.serving.config import RouteConfig, ServeConfig, TargetConfig

_SILENT_LOOKS = 4
BASE = "base"
"""What ``adapter:`` says for a release that has adapters and is to be served without one."""


@dataclass(slots=True)
class _Engine:
    """An engine that was started for some releases."""

    name: str
    kind: EngineKind
    driver: EngineDriver
    url: str
    adapters: AdapterManager
    releases: set[str] = field(default_factory=set)
    silent: int = 0
    """How often in a row it has not answered."""
    unneeded_since: float | None = None
    """Since when nothing that may be asked for is on it, by a clock of this process."""


class Deployer:
    """The engines of one gateway."""

    def __init__(self, home: Home, folder: Path, config: ServeConfig) -> None:
        """``folder`` takes the engines' logs and what is made from models for them."""
        self._home = home
        self._folder = folder
        self._config = config
        self._engines: dict[str, _Engine] = {}
        self._targets: dict[str, TargetConfig] = {}
        self._recorded: dict[str, RecordedDriver] = {}
        self._recorded_at: dict[str, str] = {}
        self._one = threading.Lock()
        """Engines are started and stopped one at a time; two would fight for the cores."""

    async def deploy(self, route: str, wanted: TargetConfig) -> tuple[Target, tuple[Upstream, ...]]:
        """The target that ``wanted`` means, ready to answer, with the upstreams that hold it.

        Raises ReleaseRefused for a release that may not be served, EngineError for an engine or a probe that failed.
        """
        if wanted.release is None:
            target = wanted.on_upstream(route)
            known = (*self._config.upstreams, *await asyncio.to_thread(self.start_recorded))
            return target, tuple(each for each in known if each.name in target.upstreams)
        return await asyncio.to_thread(self._deploy, route, wanted)

    async def ready(
        self, route: str, target: Target, upstreams: tuple[Upstream, ...]
    ) -> tuple[Target, tuple[Upstream, ...]]:
        """A target of an earlier snapshot, verified, loaded and probed again; see ``rollback.Ready``."""
        if target.upstreams[0] in self._recorded:
            started = await asyncio.to_thread(self.start_recorded)
            return target, tuple(each for each in started if each.name in target.upstreams)
        if target.release is None:
            await asyncio.to_thread(self._ask, self._route_config(route), target.model, upstreams)
            return target, upstreams
        wanted = (
            self._targets.get(_key(target))
            or TargetConfig(  # or an earlier control deployed it
                release=target.release,
                adapter=target.adapter or BASE,
                fallbacks=target.upstreams[1:],
                sampling=target.sampling,
                usd_per_1k_prompt_tokens=target.usd_per_1k_prompt_tokens,
                usd_per_1k_completion_tokens=target.usd_per_1k_completion_tokens,
            )
        )
        again, held = await asyncio.to_thread(self._deploy, route, wanted)
        if again != target:
            raise ReleaseRefused(
                f"{target.name} cannot be served as it was: {_difference(target, again)}",
                hint="the engine of its route is configured otherwise now; name another release with --to",
            )
        return target, held

    def start_recorded(self) -> tuple[Upstream, ...]:
        """Start every set of recorded answers of the configuration that does not run; where they are."""
        with self._one:
            for config in self._config.recorded:
                driver = self._recorded.get(config.name)
                if driver is None or not driver.health().ok:
                    driver = RecordedDriver(config, workdir=self._folder / f"recorded-{config.name}")
                    self._recorded[config.name] = driver
                    self._recorded_at[config.name] = driver.start()
            return tuple(
                Upstream(name=name, url=url, engine="recorded") for name, url in self._recorded_at.items()
            )

    def is_well(self, target: Target) -> bool:
        """Whether the engine of a target that we run answers; what others run is theirs to watch."""
        if (recorded := self._recorded.get(target.upstreams[0])) is not None:
            return recorded.health().ok
        if target.release is None:
            return True
        engine = next((each for each in list(self._engines.values()) if each.name in target.upstreams), None)
        if engine is None or _is_dead(engine):
            return False
        return target.model == engine.driver.base or target.model in engine.adapters.loaded()

    def status(self) -> list[dict[str, Any]]:
        """Every engine that runs, and whether it answers."""
        return [
            {
                "name": engine.name,
                "engine": engine.kind,
                "url": engine.url,
                "releases": sorted(engine.releases),
                "adapters": {name: held.state for name, held in engine.adapters.loaded().items()},
                "health": engine.driver.health().model_dump(mode="json"),
                "determinism": engine.driver.determinism().model_dump(mode="json"),
            }
            for engine in list(self._engines.values())
        ]

    def retire(self, wanted: Iterable[Target], grace_seconds: float) -> list[str]:
        """Stop every engine that none of ``wanted`` has needed for ``grace_seconds``; the names of those. Adapters that
        are not wanted may make room for others from now on."""
        kept = list(wanted)
        needed, models = (
            {name for target in kept for name in target.upstreams},
            {target.model for target in kept},
        )
        now, stopped = time.monotonic(), []
        with self._one:
            for key, engine in list(self._engines.items()):
                for name, held in engine.adapters.loaded().items():
                    if name not in models:
                        engine.adapters.unroute(name)
                    elif held.state == "ready":
                        # It may have been seen here between its loading and the snapshot that names it.
                        engine.adapters.route(name)
                if engine.name in needed:
                    engine.unneeded_since = None
                    continue
                if engine.unneeded_since is None:
                    engine.unneeded_since = now
                if now - engine.unneeded_since >= grace_seconds:
                    engine.driver.stop()
                    del self._engines[key]
                    stopped.append(engine.name)
        return stopped

    def stop(self) -> None:
        """Stop every engine."""
        self.retire((), 0.0)
        for driver in self._recorded.values():
            driver.stop()

    # -- one release ---------------------------------------------------------------------------------

    def _deploy(self, route: str, wanted: TargetConfig) -> tuple[Target, tuple[Upstream, ...]]:
        assert wanted.release is not None, "the caller looked"
        config = self._route_config(route)
        loaded = self._load(wanted.release)
        engine = self._engine(loaded, config)
        model, adapter = self._model(engine, loaded, wanted)
        engine.releases.add(loaded.manifest.name)
        manifest = loaded.manifest
        target = Target(
            name=manifest.name,
            upstreams=(engine.name, *wanted.fallbacks),
            model=model,
            release=loaded.digest,
            adapter=adapter,
            template=loaded.template_digest,
            sampling=wanted.sampling or dict(manifest.sampling),
            usd_per_1k_prompt_tokens=wanted.usd_per_1k_prompt_tokens,
            usd_per_1k_completion_tokens=wanted.usd_per_1k_completion_tokens,
        )
        upstreams = (Upstream(name=engine.name, url=engine.url, engine=engine.kind),)
        self._ask(config, model, upstreams)
        # By digest: a name or a lane may mean another release when this target is wanted again.
        self._targets[_key(target)] = wanted.model_copy(update={"release": loaded.digest})
        return target, upstreams

    def _load(self, reference: str) -> LoadedRelease:
        signatures = self._config.signatures
        try:
            return load_release(
                self._home,
                reference,
                public_key=None if signatures is None else signatures.public_key,
                require_signature=signatures is not None,
                # What was hashed once in this process and has not changed on disk since is not hashed again: a rollback
                # to a release that serves must take milliseconds.
                deep=False,
            )
        except ReleaseError as error:
            raise ReleaseRefused(str(error), hint=error.hint) from error
        except StoreError as error:
            raise ReleaseRefused(f"release {reference} cannot be read: {error}", hint=error.hint) from error

    def _engine(self, loaded: LoadedRelease, config: RouteConfig) -> _Engine:
        if loaded.base is None:
            raise ReleaseRefused(f"release {loaded.manifest.name} has no weights in the store")
        parts = {
            "base": loaded.manifest.base.identity,
            "tokenizer": None if loaded.manifest.tokenizer is None else loaded.manifest.tokenizer.identity,
            "template": loaded.template_digest,
        }
        # Its name comes from what is served and not from the engine's options: targets of earlier snapshots stay good.
        key, place = digest_json({**parts, "engine": dict(config.engine)}), digest_json(parts)
        found = self._engines.get(key)
        if found is not None and not _is_dead(found):
            return found  # without waiting for another engine that is being started
        with self._one:
            found = self._engines.get(key)
            if found is not None and not _is_dead(found):
                return found
            if found is not None:
                found.driver.stop()
                del self._engines[key]
            taken = {engine.name for engine in self._engines.values()}
            names = (f"engine-{short(place)}" + ("" if number == 1 else f"-{number}") for number in count(1))
            name = next(name for name in names if name not in taken)
            model = self._served_folder(loaded, place)
            engine = self._start(name, config.engine_for(str(loaded.base)), model)
            self._engines[key] = engine
        return engine

    def _start(self, name: str, config: EngineConfig, model: ServedFolder) -> _Engine:
        driver = create_driver(config, model, workdir=self._folder / name, cache=self._folder / "cache")
        url = driver.start()
        manager = AdapterManager(
            driver,
            url=url,
            store=self._home.settings.home,
            staging=self._folder / name / "adapters",
        )
        return _Engine(name, config.engine, driver, url, manager)

    def _model(self, engine: _Engine, loaded: LoadedRelease, wanted: TargetConfig) -> tuple[str, str | None]:
        """The name to send as ``model``, and the digest of the adapter behind it."""
        if not loaded.adapters or wanted.adapter == BASE:
            return engine.driver.base, None
        chosen = [
            adapter for adapter in loaded.adapters if wanted.adapter in (None, adapter.name, adapter.digest)
        ]
        if len(chosen) != 1:
            names = [adapter.name for adapter in loaded.adapters]
            hint = (
                did_you_mean(wanted.adapter, names) if wanted.adapter else f"set `adapter` to one of {names}"
            )
            raise ConfigError(
                f"release {loaded.manifest.name} has the adapters {', '.join(names)}", hint=hint
            )
        adapter = chosen[0]
        try:
            ref = AdapterRef(
                name=adapter.name, digest=adapter.digest, folder=adapter.folder, files=adapter.files
            )
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            raise ReleaseRefused(
                f"release {loaded.manifest.name} has an adapter {adapter.name!r} that cannot be served: {first['msg']}",
                hint="make a release whose adapter is named with letters, digits and ._-",
            ) from error
        name = engine.adapters.load(ref)
        engine.adapters.route(name)
        return name, adapter.digest

    def _served_folder(self, loaded: LoadedRelease, identity: str) -> ServedFolder:
        """The base with the release's own tokenizer and template, where those are not the base's."""
        assert loaded.base is not None, "the caller looked"
        name = loaded.manifest.name
        folder = self._folder / "served" / identity.removeprefix("sha256:")
        remove_tree(folder)
        make_folder(folder)
        parts = [path for path in (loaded.tokenizer, loaded.base) if path is not None]
        for part in parts:  # the first to have a name wins
            # Links by name: another hard link would change the times by which verified files are known again.
            for path in part.iterdir():
                if path.is_file() and not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path.resolve())
        if loaded.chat_template is not None and loaded.chat_template.suffix == ".jinja":
            template = folder / "chat_template.jinja"
            template.unlink(missing_ok=True)
            template.symlink_to(loaded.chat_template.resolve())
        return ServedFolder(folder=folder, digest=identity, name=name)

    # -- probes --------------------------------------------------------------------------------------

    def _ask(self, route: RouteConfig, model: str, upstreams: Iterable[Upstream]) -> None:
        """Raises EngineError where a probe of the route fails on one of the upstreams."""
        probes = read_probes(route.probes) if route.probes is not None else [WARM_UP]
        for upstream in upstreams:
            for result in probe(upstream.url, model, probes, key=_secret(upstream)):
                if not result.passed:
                    raise EngineError(
                        f"{model} on {upstream.name} failed the probe {result.id}: {result.reason}",
                        hint="no user was sent to it; look at the engine's log, or at `probes` of the route",
                    )

    def _route_config(self, route: str) -> RouteConfig:
        found = next((each for each in self._config.routes if each.model == route), None)
        if found is None:
            names = [each.model for each in self._config.routes]
            raise ConfigError(f"the configuration has no route {route!r}", hint=did_you_mean(route, names))
        return found


def _is_dead(engine: _Engine) -> bool:
    """Whether its process has ended, or it has not answered several times: once may be a moment of overload."""
    health = engine.driver.health()
    engine.silent = 0 if health.ok else engine.silent + 1
    return not health.ok and ("ended with status" in health.detail or engine.silent >= _SILENT_LOOKS)


def _difference(wanted: Target, found: Target) -> str:
    names = [name for name in type(wanted).model_fields if getattr(wanted, name) != getattr(found, name)]
    return ", ".join(f"{name} is {getattr(found, name)!r}" for name in names)


WARM_UP = Probe(
    id="warm-up", messages=({"role": "user", "content": "Hello"},), max_tokens=1, expect={"kind": "answers"}
)
"""What every target must do where its route has no probes: answer at all."""


def read_probes(path: Path) -> list[Probe]:
    """The probes of a YAML file: a list. Raises ConfigError with the place of what is wrong."""
    try:
        document = parse_document(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"probes: {path} cannot be read: {error}") from error
    if not isinstance(document.value, list) or not document.value:
        raise ConfigError(f"{path.name}: expected a list of probes", hint="each has id, messages and expect")
    return [
        check_model(Written(value, f"{path.name}, probe {number}"), Probe)
        for number, value in enumerate(document.value, start=1)
    ]


def _key(target: Target) -> str:
    # All but the name: a choice of a route may be the release that is its production, sampled in another way.
    return digest_json(target.model_dump(mode="json", exclude={"name"}))


def _secret(upstream: Upstream) -> str | None:
    return os.environ.get(upstream.key_variable) if upstream.key_variable else None
