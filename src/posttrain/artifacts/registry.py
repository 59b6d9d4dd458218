"""The registry: what the store cannot say by itself, in one small database.

Here: the index of artifacts and their lineage, finished stages, runs, refs, releases and the journal. Not
here: bytes (``store``), what may be deleted (``gc``), the database itself (``database``). Artifacts and
finished stages are an index that ``reindex_home`` builds again from the manifests; the rest is kept nowhere
else.

To add a table: a migration, its twin in ``tables``, and methods here that each do one transaction.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from posttrain.artifacts import tables as t
from posttrain.artifacts.database import Database
from posttrain.artifacts.errors import ConflictError
from posttrain.artifacts.records import (
    Artifact,
    JournalEntry,
    Problem,
    Provenance,
    Release,
    RunRecord,
    RunStageRecord,
    RunStatus,
    parse_canonical,
)
from posttrain.core.canonical import canonical_json, is_digest, short
from posttrain.core.clock import utc_now
from posttrain.core.errors import UnknownReferenceError, UsageError

_IN_MANIFEST = "manifest"
"""The record of inputs that stand in the manifest itself."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@+-]{0,127}")


def new_run_id(now: datetime | None = None) -> str:
    """A new run id: UTC second and four random hex digits, ``20261123-150405-ab12``; sorts by time."""
    return (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


class StageOutput(NamedTuple):
    """One output of a finished stage."""

    key: str
    name: str
    digest: str


class Registry:
    """One open registry. Every method is one transaction; safe to use from several processes and threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, url: str) -> Registry:
        """Open ``sqlite:///PATH`` or ``postgresql://…``, applying the migrations that are missing."""
        return cls(Database(url))

    @classmethod
    def open_file(cls, path: Path) -> Registry:
        """Open the SQLite file ``path``, made when missing."""
        return cls(Database(sa.URL.create("sqlite", database=str(path)).render_as_string()))

    # -- artifacts and lineage ---------------------------------------------------------------------

    def record(self, artifact: Artifact) -> None:
        """Put an artifact into the index; again changes nothing."""
        with self.database.writing(t.artifacts, t.provenance, t.provenance_inputs) as connection:
            insert_artifact(connection, artifact)

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Indexed artifacts, of one kind or all, the most recently recorded last."""
        columns = t.artifacts.c
        query = sa.select(columns.digest, columns.manifest).order_by(columns.recorded_at, columns.digest)
        if kind is not None:
            query = query.where(columns.kind == kind)
        kept: dict[str, list[Provenance]] = defaultdict(list)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
            for row in connection.execute(sa.select(t.provenance).order_by(t.provenance.c.record)):
                kept[row.digest].append(Provenance.from_document(parse_canonical(row.document)))
        return [Artifact.from_manifest(parse_canonical(row.manifest), kept[row.digest]) for row in rows]

    def children(self, digest: str) -> list[str]:
        """Digests of the indexed artifacts that were made directly from this one, sorted."""
        inputs = t.provenance_inputs.c
        query = sa.select(inputs.digest).where(inputs.input_digest == digest)
        with self.database.reading() as connection:
            return sorted(set(connection.scalars(query)) - {digest})

    def ancestors(self, digest: str) -> list[str]:
        """Digests of everything this one was made from, directly or not, sorted; also those no longer
        indexed."""
        inputs = t.provenance_inputs
        lineage = (
            sa.select(inputs.c.input_digest.label("found"))
            .where(inputs.c.digest == digest)
            .cte(recursive=True)
        )
        lineage = lineage.union(
            sa.select(inputs.c.input_digest).join(lineage, inputs.c.digest == lineage.c.found)
        )
        with self.database.reading() as connection:
            return sorted(set(connection.scalars(sa.select(lineage.c.found))) - {digest})

    # -- finished stages ---------------------------------------------------------------------------

    def complete_stage(self, key: str, kind: str, outputs: Mapping[str, str]) -> None:
        """Say that the stage with this key is finished, with these outputs (name to digest).

        Said again with other outputs, the later word counts: those artifacts were there when it was said.
        """
        with self.database.writing(t.stages, t.stage_outputs) as connection:
            insert_stage(connection, key, kind, outputs)

    def stage_outputs(self, key: str) -> dict[str, str] | None:
        """Output name to digest of a finished stage; None where it has not finished."""
        with self.database.reading() as connection:
            if connection.scalar(sa.select(t.stages.c.key).where(t.stages.c.key == key)) is None:
                return None
            query = sa.select(t.stage_outputs.c.name, t.stage_outputs.c.digest).where(
                t.stage_outputs.c.key == key
            )
            return {
                row.name: row.digest for row in connection.execute(query.order_by(t.stage_outputs.c.name))
            }

    def finished_outputs(self) -> list[StageOutput]:
        """Every output of every finished stage."""
        columns = t.stage_outputs.c
        query = sa.select(columns.key, columns.name, columns.digest).order_by(columns.key, columns.name)
        with self.database.reading() as connection:
            return [StageOutput(row.key, row.name, row.digest) for row in connection.execute(query)]

    # -- runs --------------------------------------------------------------------------------------

    def create_run(self, run: RunRecord, stages: Sequence[RunStageRecord] = ()) -> None:
        """Keep a new run and its stages. Raises ConflictError for an id that is taken."""
        with self.database.writing(t.runs, t.run_stages) as connection:
            if connection.scalar(sa.select(t.runs.c.id).where(t.runs.c.id == run.id)) is not None:
                raise ConflictError(
                    f"there is a run {run.id} already", hint="take a new id from new_run_id()"
                )
            connection.execute(t.runs.insert().values(**dataclasses.asdict(run)))
            for stage in stages:
                connection.execute(t.run_stages.insert().values(**_stage_row(stage)))

    def update_run(
        self,
        run_id: str,
        *,
        status: RunStatus | None = None,
        error: str | None = None,
        pid: int | None = None,
        host: str | None = None,
    ) -> RunRecord:
        """Change what is given, and ``updated_at``. A new status also replaces ``error`` (by None where not
        given)."""
        changes: dict[str, Any] = {"updated_at": utc_now()}
        if status is not None:
            changes |= {"status": status, "error": error}
        changes |= {name: value for name, value in (("pid", pid), ("host", host)) if value is not None}
        with self.database.writing(t.runs) as connection:
            done = connection.execute(t.runs.update().where(t.runs.c.id == run_id).values(**changes))
            if done.rowcount == 0:
                raise _no_run(run_id)
        return self.run(run_id)

    def save_run_stage(self, stage: RunStageRecord) -> None:
        """Keep one stage of a run as it is now, replacing what was kept under its name."""
        row = _stage_row(stage)
        which = (t.run_stages.c.run_id == stage.run_id) & (t.run_stages.c.name == stage.name)
        with self.database.writing(t.runs, t.run_stages) as connection:
            touched = t.runs.update().where(t.runs.c.id == stage.run_id).values(updated_at=utc_now())
            if connection.execute(touched).rowcount == 0:
                raise _no_run(stage.run_id)
            if connection.execute(t.run_stages.update().where(which).values(**row)).rowcount == 0:
                connection.execute(t.run_stages.insert().values(**row))

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises UnknownReferenceError."""
        with self.database.reading() as connection:
            row = connection.execute(sa.select(t.runs).where(t.runs.c.id == run_id)).mappings().first()
        if row is None:
            raise _no_run(run_id)
        return RunRecord(**row)

    def runs(self) -> list[RunRecord]:
        """Every run, oldest first."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(t.runs).order_by(t.runs.c.created_at, t.runs.c.id)).mappings()
            return [RunRecord(**row) for row in rows]

    def run_stages(self, run_id: str) -> list[RunStageRecord]:
        """The stages of one run in the order of its recipe; none for an unknown run."""
        query = (
            sa.select(t.run_stages).where(t.run_stages.c.run_id == run_id).order_by(t.run_stages.c.position)
        )
        with self.database.reading() as connection:
            return [_stage_record(row) for row in connection.execute(query).mappings()]

    def delete_run(self, run_id: str) -> None:
        """Forget a run; what only it named may then be collected. Raises UnknownReferenceError."""
        with self.database.writing(t.runs, t.run_stages) as connection:
            if connection.execute(t.runs.delete().where(t.runs.c.id == run_id)).rowcount == 0:
                raise _no_run(run_id)

    # -- refs --------------------------------------------------------------------------------------

    def set_ref(self, name: str, digest: str, expected: str | None = None) -> None:
        """Point the ref ``name`` at an artifact; with ``expected``, only if it points at that now.

        Raises ConflictError where it points elsewhere, UsageError for a name or digest that is none.
        """
        _check(name, "ref", digest)
        with self.database.writing(t.refs) as connection:
            held = connection.scalar(sa.select(t.refs.c.digest).where(t.refs.c.name == name))
            if expected is not None and held != expected:
                raise _conflict(f"ref {name!r}", held, expected)
            values = {"name": name, "digest": digest, "updated_at": utc_now()}
            change = t.refs.insert() if held is None else t.refs.update().where(t.refs.c.name == name)
            connection.execute(change.values(**values))

    def create_ref(self, name: str, digest: str) -> bool:
        """Point the new ref ``name`` at an artifact for good; False where it points at it already.

        Raises ConflictError where it points elsewhere, UsageError for a name or digest that is none.
        """
        _check(name, "ref", digest)
        with self.database.writing(t.refs) as connection:
            held = connection.scalar(sa.select(t.refs.c.digest).where(t.refs.c.name == name))
            if held is None:
                values = {"name": name, "digest": digest, "updated_at": utc_now()}
                connection.execute(t.refs.insert().values(**values))
            elif held != digest:
                raise _conflict(f"ref {name!r}", held, digest)
        return held is None

    def ref(self, name: str) -> str | None:
        """The digest that a ref points at; None where there is no such ref."""
        with self.database.reading() as connection:
            return connection.scalar(sa.select(t.refs.c.digest).where(t.refs.c.name == name))

    def refs(self) -> dict[str, str]:
        """Every ref, by name."""
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(t.refs.c.name, t.refs.c.digest).order_by(t.refs.c.name))
            return {row.name: row.digest for row in rows}

    def delete_ref(self, name: str) -> None:
        """Forget a ref. Raises UnknownReferenceError."""
        with self.database.writing(t.refs) as connection:
            if connection.execute(t.refs.delete().where(t.refs.c.name == name)).rowcount == 0:
                raise UnknownReferenceError(f"there is no ref {name!r}")

    # -- releases ----------------------------------------------------------------------------------

    def publish_release(
        self,
        lane: str,
        digest: str,
        expected: str | None,
        *,
        actor: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Release:
        """Give a lane to an artifact if ``expected`` holds it now (None: nobody). Raises ConflictError.

        With ``actor`` the journal says so in the same transaction, ``data`` included.
        """
        _check(lane, "lane", digest)
        with self.database.writing(t.releases, t.journal) as connection:
            head = _head_release(connection, lane)
            held = None if head is None else head.digest
            if held != expected:
                raise _conflict(f"lane {lane!r}", held, expected)
            position = 1 if head is None else head.position + 1
            release = Release(lane, position, digest, previous=held, published_at=utc_now())
            connection.execute(t.releases.insert().values(**dataclasses.asdict(release)))
            if actor is not None:
                facts = {"release": digest, "previous": held, "position": position, **(data or {})}
                _append_journal(connection, actor, "release.published", subject=lane, data=facts)
        return release

    def current_release(self, lane: str) -> Release | None:
        """Who holds a lane; None for a lane that nobody held yet."""
        with self.database.reading() as connection:
            return _head_release(connection, lane)

    def releases(self, lane: str | None = None) -> list[Release]:
        """The history of one lane or of all, oldest first."""
        query = sa.select(t.releases).order_by(t.releases.c.lane, t.releases.c.position)
        if lane is not None:
            query = query.where(t.releases.c.lane == lane)
        with self.database.reading() as connection:
            return [Release(**row) for row in connection.execute(query).mappings()]

    # -- journal -----------------------------------------------------------------------------------

    def append_journal(
        self, actor: str, action: str, subject: str, data: Mapping[str, Any] | None = None
    ) -> JournalEntry:
        """Add one line to the journal, chained to the line before. Nothing changes or removes it again."""
        with self.database.writing(t.journal) as connection:
            return _append_journal(connection, actor, action, subject=subject, data=data or {})

    def journal(
        self, *, after: int = 0, limit: int | None = None, action: str | None = None
    ) -> list[JournalEntry]:
        """The journal's lines with a sequence above ``after``, of one action or all, oldest first."""
        query = (
            sa.select(t.journal)
            .where(t.journal.c.sequence > after)
            .order_by(t.journal.c.sequence)
            .limit(limit)
        )
        if action is not None:
            query = query.where(t.journal.c.action == action)
        with self.database.reading() as connection:
            rows = connection.execute(query).mappings()
            return [JournalEntry(**{**row, "data": parse_canonical(row["data"])}) for row in rows]

    def verify_journal(self) -> list[Problem]:
        """Derive the chain again. Not covered: the newest lines gone, triggers and all; keep the head's
        digest."""
        problems = []
        previous, sequence = None, 0
        for entry in self.journal():
            where = f"journal/{entry.sequence}"
            if entry.sequence != sequence + 1:
                problems.append(Problem("", where, f"follows {sequence}: lines between are missing"))
            if entry.previous != previous:
                problems.append(Problem("", where, "does not name the line before it"))
            if entry.derived_digest() != entry.digest:
                problems.append(Problem("", where, "was changed: its digest does not match"))
            previous, sequence = entry.digest, entry.sequence
        return problems


def insert_artifact(connection: sa.Connection, artifact: Artifact) -> None:
    """Index one artifact in an open write transaction; again changes nothing."""
    digest = artifact.digest
    if connection.scalar(sa.select(t.artifacts.c.digest).where(t.artifacts.c.digest == digest)) is None:
        connection.execute(
            t.artifacts.insert().values(
                digest=digest,
                kind=artifact.kind,
                size_bytes=artifact.size_bytes,
                manifest=canonical_json(artifact.manifest()).decode(),
                recorded_at=utc_now(),
            )
        )
        stated = artifact.provenance[0].inputs if artifact.schema == 1 else artifact.about
        _insert_inputs(connection, digest, _IN_MANIFEST, stated)
    known = set(connection.scalars(sa.select(t.provenance.c.record).where(t.provenance.c.digest == digest)))
    for kept in artifact.beside:
        if (record := kept.digest) not in known:
            document = canonical_json(kept.document()).decode()
            connection.execute(t.provenance.insert().values(digest=digest, record=record, document=document))
            _insert_inputs(connection, digest, record, kept.inputs)


def _insert_inputs(connection: sa.Connection, digest: str, record: str, inputs: Mapping[str, str]) -> None:
    for name, source in inputs.items():
        values = {"digest": digest, "record": record, "name": name, "input_digest": source}
        connection.execute(t.provenance_inputs.insert().values(**values))


def insert_stage(connection: sa.Connection, key: str, kind: str, outputs: Mapping[str, str]) -> None:
    """Mark a stage finished in an open write transaction, replacing what was said before."""
    connection.execute(t.stages.delete().where(t.stages.c.key == key))
    connection.execute(t.stages.insert().values(key=key, kind=kind, completed_at=utc_now()))
    for name, digest in outputs.items():
        connection.execute(t.stage_outputs.insert().values(key=key, name=name, digest=digest))


def _append_journal(
    connection: sa.Connection, actor: str, action: str, *, subject: str, data: Mapping[str, Any]
) -> JournalEntry:
    kept = parse_canonical(canonical_json(dict(data)))
    head = connection.execute(
        sa.select(t.journal.c.sequence, t.journal.c.digest).order_by(t.journal.c.sequence.desc()).limit(1)
    ).first()
    sequence, previous = (1, None) if head is None else (head.sequence + 1, head.digest)
    unsealed = JournalEntry(sequence, utc_now(), actor, action, subject, kept, previous, digest="")
    entry = dataclasses.replace(unsealed, digest=unsealed.derived_digest())
    row = dataclasses.asdict(entry) | {"data": canonical_json(kept).decode()}
    connection.execute(t.journal.insert().values(**row))
    return entry


def _head_release(connection: sa.Connection, lane: str) -> Release | None:
    query = (
        sa.select(t.releases).where(t.releases.c.lane == lane).order_by(t.releases.c.position.desc()).limit(1)
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else Release(**row)


def _stage_row(stage: RunStageRecord) -> dict[str, Any]:
    row = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    for name in ("inputs", "outputs"):
        row[name] = canonical_json(dict(row[name])).decode()
    # The summary may hold what canonical JSON refuses (large integers, NaN): it is never hashed.
    row["summary"] = json.dumps(dict(stage.summary), sort_keys=True, default=str)
    return row


def _stage_record(row: Mapping[Any, Any]) -> RunStageRecord:
    decoded = {name: json.loads(row[name]) for name in ("inputs", "outputs", "summary")}
    return RunStageRecord(**{**row, **decoded})


def _no_run(run_id: str) -> UnknownReferenceError:
    return UnknownReferenceError(f"there is no run {run_id!r}", hint="`posttrain runs` lists them")


def _check(name: str, what: str, digest: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a {what} name", hint="use letters, digits and . _ / @ + -, at most 128"
        )
    if not is_digest(digest):
        raise UsageError(f"{digest!r} is not an artifact digest", hint="write sha256: and 64 hex digits")


def _conflict(what: str, held: str | None, expected: str | None) -> ConflictError:
    names = [short(digest) if digest else "nothing" for digest in (held, expected)]
    return ConflictError(
        f"{what} holds {names[0]}, not {names[1]}: somebody changed it first",
        hint="look at what it holds now and decide again",
    )
