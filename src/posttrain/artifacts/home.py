"""A home: one store, one registry and the folders beside them; and finding an artifact by what a person
types.

Here: opening them together, the places in the folder, resolving references, building the index again. Not
here: what may be deleted (``gc``), what is wrong (``verify``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from posttrain.artifacts import tables as t
from posttrain.artifacts.records import Artifact, RunStageRecord
from posttrain.artifacts.registry import Registry, insert_artifact, insert_stage
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.atomic import make_folder, remove_tree
from posttrain.core.canonical import is_digest, short
from posttrain.core.errors import UnknownReferenceError
from posttrain.core.settings import Settings
from posttrain.core.suggest import did_you_mean

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")


@dataclass(frozen=True, slots=True)
class Home:
    """An open home."""

    store: ArtifactStore
    registry: Registry
    settings: Settings

    def work_folder(self, key: str) -> Path:
        """The private folder of the stage with this key, made when missing; it survives kills."""
        folder = self.work_path(key)
        make_folder(folder)
        return folder

    def work_path(self, key: str) -> Path:
        """Where that folder is, whether it is there or not."""
        return self.settings.home / "work" / key.removeprefix("sha256:")

    def run_folder(self, run_id: str) -> Path:
        """The folder of a run (events, copies of reports), made when missing; nothing in it is hashed."""
        folder = self.settings.home / "runs" / run_id
        make_folder(folder)
        return folder

    def delete_run(self, run_id: str) -> None:
        """Forget a run and remove its folder; what only it named may then be collected."""
        self.registry.delete_run(run_id)
        remove_tree(self.settings.home / "runs" / run_id)


def open_home(settings: Settings) -> Home:
    """Open or create the home that ``settings`` names. Raises NewerStoreError, UsageError, StoreError."""
    store = ArtifactStore(settings.home, mirror_url=settings.mirror_url)
    if settings.registry_url is None:
        registry = Registry.open_file(settings.home / "registry.sqlite")
    else:
        registry = Registry.open(settings.registry_url)
    return Home(store, registry, settings)


def resolve(home: Home, reference: str) -> Artifact:
    """The artifact that ``reference`` names.

    In this order: a full digest; ``RUN:STAGE.OUTPUT``, or ``RUN:STAGE`` where the stage has one output; a
    ref; the first six or more hex digits of a digest. Raises UnknownReferenceError where it names nothing or
    more than one.
    """
    if is_digest(reference):
        return home.store.get(reference)
    run_id, colon, rest = reference.partition(":")
    if colon and run_id != "sha256":
        return home.store.get(_run_output(home, run_id, rest))
    refs = home.registry.refs()
    if reference in refs:
        return home.store.get(refs[reference])
    if match := _PREFIX.fullmatch(reference):
        return home.store.get(_only_match(home, match[1]))
    raise UnknownReferenceError(
        f"{reference!r} names nothing",
        hint=f"{did_you_mean(reference, refs)}; or a digest, its first 6 digits or more, or RUN:STAGE.OUTPUT",
    )


def _only_match(home: Home, prefix: str) -> str:
    query = sa.select(t.artifacts.c.digest).where(t.artifacts.c.digest.startswith(f"sha256:{prefix}"))
    with home.registry.database.reading() as connection:
        indexed = set(connection.scalars(query))
    found = sorted(indexed | set(home.store.matching(prefix)))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownReferenceError(
            f"no artifact's digest begins with {prefix}", hint="`posttrain runs` lists runs"
        )
    names = ", ".join(short(digest) for digest in found[:5])
    raise UnknownReferenceError(
        f"{len(found)} artifacts begin with {prefix}: {names}", hint="give more digits"
    )


def _run_output(home: Home, run_id: str, rest: str) -> str:
    home.registry.run(run_id)  # says so when there is no such run
    stages: dict[str, RunStageRecord] = {stage.name: stage for stage in home.registry.run_stages(run_id)}
    name, _, output = rest.rpartition(".")
    if rest in stages:
        name, output = rest, ""
    if name not in stages:
        raise UnknownReferenceError(
            f"run {run_id} has no stage {name or rest!r}", hint=did_you_mean(name or rest, stages)
        )
    outputs = stages[name].outputs
    if not outputs:
        raise UnknownReferenceError(
            f"stage {name!r} of run {run_id} has no outputs: it is {stages[name].status}"
        )
    if not output and len(outputs) == 1:
        return next(iter(outputs.values()))
    if output not in outputs:
        written = ", ".join(f"{run_id}:{name}.{known}" for known in outputs)
        what = f"no output {output!r}" if output else f"{len(outputs)} outputs"
        raise UnknownReferenceError(
            f"stage {name!r} of run {run_id} has {what}", hint=f"write one of {written}"
        )
    return outputs[output]


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What ``reindex_home`` found."""

    artifacts: int
    stages: int


def reindex_home(home: Home, outputs_by_kind: Mapping[str, Collection[str]] | None = None) -> ReindexReport:
    """Build the index of artifacts and finished stages again from the manifests in the store.

    ``outputs_by_kind`` names the outputs that each stage kind has: a stage counts as finished only where all
    of them are here and unchanged. Without it finished stages are left as they are, since the manifests alone
    cannot tell a finished stage from one that was killed between two outputs. Of several artifacts for one
    output the youngest counts. Runs, refs, releases and the journal are not touched.
    """
    found = [home.store.read_manifest(digest) for digest in home.store.digests() if home.store.has(digest)]
    found.sort(key=lambda artifact: home.store.manifest_path(artifact.digest).stat().st_mtime_ns)
    outputs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for artifact in found:
        for made_by in artifact.producers:
            outputs[made_by.key, made_by.stage][made_by.output] = artifact.digest
    finished = {
        (key, kind): made
        for (key, kind), made in outputs.items()
        if outputs_by_kind is not None and kind in outputs_by_kind and set(outputs_by_kind[kind]) == set(made)
    }
    database = home.registry.database
    with database.writing(*t.INDEX) as connection:
        if home.settings.registry_url is None:  # a shared registry also indexes what other homes hold
            connection.execute(t.artifacts.delete())
        for artifact in found:
            insert_artifact(connection, artifact)
        if outputs_by_kind is not None:
            connection.execute(t.stages.delete())
            for (key, kind), made in finished.items():
                insert_stage(connection, key, kind, made)
    return ReindexReport(artifacts=len(found), stages=len(finished))
