"""Garbage collection: what nothing names any more is removed.

Kept, with everything they were made from as far as it is still here: what a ref, a release (current or past)
or a run names - as an input, as an output, or by having asked for the stage that made it - and everything
younger than ``min_age_seconds``. A file that a kept artifact shares is kept.

The registry forgets first, in one transaction, then manifests go, then objects: a kill in between leaves
nothing that looks complete and is not. Whoever publishes meanwhile waits; a runner that writes a stage's key
into its run before it asks for the stage's outputs either is seen here, or finds the stage gone and runs it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from posttrain.artifacts import tables as t
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.atomic import remove_tree, unique_name
from posttrain.core.canonical import is_digest, short
from posttrain.core.errors import CorruptArtifactError, StoreError

DEFAULT_MIN_AGE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection removed, or would remove."""

    dry_run: bool
    kept: int
    """Artifacts that stay."""
    removed: tuple[str, ...]
    """Digests of the artifacts that go, sorted."""
    stages: tuple[str, ...]
    """Keys of finished stages that run again when next asked for, since an output is gone; sorted."""
    objects: int
    """Files that go, those that no artifact named included."""
    freed_bytes: int
    """The sizes of those files together."""
    folders: int
    """Views, work folders and left-over temporary files that go."""


@dataclass(frozen=True, slots=True)
class _Named:
    """What the registry holds on to."""

    digests: set[str]
    """Artifacts that a ref, a release or a run names."""
    keys: set[str]
    """Stage keys of every run: what such a stage made is kept."""
    unfinished_keys: set[str]
    """Stage keys whose work folders are kept."""


def collect_garbage(
    home: Home, *, dry_run: bool = False, min_age_seconds: float = DEFAULT_MIN_AGE_SECONDS
) -> GcReport:
    """Remove what nothing names; with ``dry_run`` only say what that is.

    Raises CorruptArtifactError when a kept artifact's manifest is damaged (what it needs cannot be known) and
    StoreError when the registry is a new one beside old runs; nothing is removed then.
    """
    store = home.store
    youngest = time.time() - min_age_seconds
    with store.exclusive():
        present, damaged = _read_manifests(store)
        young = {d for d in (*present, *damaged) if _modified(store.manifest_path(d)) > youngest}
        database = home.registry.database
        naming = (t.runs, t.run_stages, t.refs, t.releases)
        with database.reading() if dry_run else database.writing(*t.INDEX, *naming) as connection:
            named = _read_named(connection)
            _refuse_lost_registry(home, connection)
            kept = _with_ancestors(_roots(named, present) | young, present)
            _refuse_damaged(kept & damaged)
            dead = (present.keys() | damaged) - kept
            # With a mirror, an output that is not here can still be fetched.
            stages = _lost_stages(connection, dead, None if store.mirror_url else present)
            work = list(_dead_work(home, named.unfinished_keys, youngest))
            if not dry_run:
                _forget(connection, dead, stages)
                # Out of the way before a runner can name these keys again, which waits for this transaction.
                work = [path.rename(store.temporary / unique_name()) for path in work]
        files = {entry.digest for digest in kept & present.keys() for entry in present[digest].files}
        objects = [store.object_path(d) for d in store.objects() if is_digest(d) and d not in files]
        folders = [*_dead_views(store, kept), *_orphan_provenance(store), *work, *store.stale_temporary()]
        freed_bytes = sum(path.stat().st_size for path in objects)
        if not dry_run:
            for digest in sorted(dead):
                store.remove(digest)
            for path in (*objects, *folders):
                remove_tree(path)
    return GcReport(
        dry_run=dry_run,
        kept=len(kept & present.keys()),
        removed=tuple(sorted(dead)),
        stages=tuple(sorted(stages)),
        objects=len(objects),
        freed_bytes=freed_bytes,
        folders=len(folders),
    )


def _read_manifests(store: ArtifactStore) -> tuple[dict[str, Artifact], set[str]]:
    """Every artifact here by digest, and the digests whose manifests or provenances are damaged."""
    present: dict[str, Artifact] = {}
    damaged: set[str] = set()
    for digest in filter(is_digest, store.digests()):
        try:
            present[digest] = store.read_manifest(digest)
        except CorruptArtifactError:
            damaged.add(digest)
            continue
        if store.read_provenance(digest)[1]:
            damaged.add(digest)
    return present, damaged


def _read_named(connection: sa.Connection) -> _Named:
    named = _Named(set(), set(), set())
    named.digests.update(connection.scalars(sa.select(t.refs.c.digest)))
    named.digests.update(connection.scalars(sa.select(t.releases.c.digest)))
    columns = t.run_stages.c
    for row in connection.execute(sa.select(columns.key, columns.status, columns.inputs, columns.outputs)):
        named.digests.update(json.loads(row.inputs).values(), json.loads(row.outputs).values())
        if row.key is not None:
            named.keys.add(row.key)
            if row.status not in {"finished", "reused"}:
                named.unfinished_keys.add(row.key)
    for key, digest in connection.execute(sa.select(t.stage_outputs.c.key, t.stage_outputs.c.digest)):
        if key in named.keys:
            named.digests.add(digest)
    return named


def _refuse_lost_registry(home: Home, connection: sa.Connection) -> None:
    if connection.scalar(sa.select(sa.func.count()).select_from(t.runs)):
        return
    folders = [path.name for path in (home.settings.home / "runs").iterdir()]
    if folders:
        raise StoreError(
            f"{home.settings.home / 'runs'} has runs ({min(folders)}…) but the registry knows none; "
            "nothing was removed",
            hint="set POSTTRAIN_REGISTRY to the registry of these runs, or remove their folders",
        )


def _refuse_damaged(needed: Collection[str]) -> None:
    if needed:
        raise CorruptArtifactError(
            f"artifact {short(min(needed))} is needed, its manifest or provenance damaged; nothing was removed",
            hint="run the recipe that makes it again, or remove the run, ref or release that names it",
        )


def _roots(named: _Named, present: Mapping[str, Artifact]) -> set[str]:
    made = {
        d for d, artifact in present.items() if named.keys & {made_by.key for made_by in artifact.producers}
    }
    return named.digests | made


def _with_ancestors(roots: set[str], present: Mapping[str, Artifact]) -> set[str]:
    """``roots`` and everything they were made from, as far as the manifests here tell."""
    kept: set[str] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in kept:
            kept.add(digest)
            if digest in present:
                waiting.extend(present[digest].parents)
    return kept


def _lost_stages(connection: sa.Connection, dead: set[str], present: Collection[str] | None) -> set[str]:
    """Keys of finished stages with an output that goes, or (``present`` given) that is not here."""
    rows = connection.execute(sa.select(t.stage_outputs.c.key, t.stage_outputs.c.digest))
    return {
        row.key for row in rows if row.digest in dead or (present is not None and row.digest not in present)
    }


def _forget(connection: sa.Connection, dead: set[str], stages: set[str]) -> None:
    for digest in dead:
        connection.execute(t.artifacts.delete().where(t.artifacts.c.digest == digest))
    for key in stages:
        connection.execute(t.stages.delete().where(t.stages.c.key == key))


def _dead_views(store: ArtifactStore, kept: set[str]) -> Iterator[Path]:
    for path in (store.root / "views").iterdir():
        if f"sha256:{path.name}" not in kept:
            yield path


def _orphan_provenance(store: ArtifactStore) -> Iterator[Path]:
    """Provenances without a manifest: their writer was killed between the two."""
    for path in (store.root / "provenance").glob("??/*"):
        digest = f"sha256:{path.parent.name}{path.name}"
        if not is_digest(digest) or not store.manifest_path(digest).exists():
            yield path


def _dead_work(home: Home, unfinished_keys: set[str], youngest: float) -> Iterator[Path]:
    for path in (home.settings.home / "work").iterdir():
        times = [_modified(path), *(map(_modified, path.iterdir()) if path.is_dir() else ())]
        if f"sha256:{path.name}" not in unfinished_keys and max(times) <= youngest:
            yield path


def _modified(path: Path) -> float:
    return path.lstat().st_mtime
