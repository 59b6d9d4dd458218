"""The records of the artifact room: what an artifact is, and what a stage is given and hands on.

Here: frozen data, torch-free. Not here: where bytes live (``store``), the index (``registry``). To add a
record: a frozen dataclass with a line under every field; one that is written to disk carries a schema number
and a golden file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

from posttrain.core.canonical import digest_json, is_digest

MANIFEST_SCHEMA = 2
PROVENANCE_SCHEMA = 1
STATEMENT_KINDS = frozenset({"decision", "release", "report"})
"""Artifacts that say something about others: their inputs are part of the content, since a report of one model is
never the report of another, even with the same figures."""
_EXACT_INTEGER = 2**53 - 1


def parse_canonical(raw: bytes | str) -> Any:
    """The value of canonical JSON text, such that writing it again gives the same text.

    Canonical JSON writes a large whole float without a point, so digits beyond 2**53 are a float.
    """
    return json.loads(
        raw, parse_int=lambda text: int(text) if abs(int(text)) <= _EXACT_INTEGER else float(text)
    )


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact."""

    path: str
    """POSIX path inside the artifact, relative, without ``..``."""
    digest: str
    """``sha256:`` of its bytes."""
    size_bytes: int

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path)
        if parts.is_absolute() or ".." in parts.parts or not self.path or "\\" in self.path:
            raise ValueError(
                f"artifact file path {self.path!r} must be relative and stay inside the artifact"
            )
        if not is_digest(self.digest):
            raise ValueError(f"{self.digest!r} is not a sha256: digest")


@dataclass(frozen=True, slots=True)
class Producer:
    """Which stage made an artifact."""

    stage: str
    """Stage kind, for example ``grpo``."""
    key: str
    """Digest of the stage's config, inputs and code version."""
    output: str
    """Which of the stage's outputs this is."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """One way in which an artifact came about. It is kept beside the manifest and decides no digest of an artifact."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Lineage: input name to artifact digest."""
    producer: Producer | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Small JSON facts of the making: threads, path of origin, a checkpoint of other code that was continued."""

    @property
    def digest(self) -> str:
        """``sha256:`` of the canonical JSON document."""
        return digest_json(self.document())

    def document(self) -> dict[str, Any]:
        """The JSON that is stored."""
        return {
            "schema": PROVENANCE_SCHEMA,
            "inputs": dict(self.inputs),
            "producer": _producer_document(self.producer),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_document(cls, data: Mapping[str, Any]) -> Provenance:
        """The inverse of :meth:`document`. Raises ValueError, KeyError or TypeError for data of another shape."""
        if data["schema"] != PROVENANCE_SCHEMA:
            raise ValueError(f"provenance schema {data['schema']} is not {PROVENANCE_SCHEMA}")
        return cls(inputs=data["inputs"], producer=_read_producer(data["producer"]), facts=data["facts"])


def _producer_document(producer: Producer | None) -> dict[str, str] | None:
    if producer is None:
        return None
    return {"stage": producer.stage, "key": producer.key, "output": producer.output}


def _read_producer(data: Mapping[str, str] | None) -> Producer | None:
    return None if data is None else Producer(**data)


@dataclass(frozen=True, slots=True)
class Artifact:
    """An immutable set of files and what they are; its identity is ``digest``.

    Two artifacts with the same kind, files and meta are the same artifact, whoever made them. Wall-clock time, host
    names and paths never enter it. An artifact of schema 1 keeps the digest that it has, which covers its first
    provenance too.
    """

    kind: str
    """``model``, ``dataset``, ``report``, ``figures``, ``metrics``, ``samples``, …"""
    files: tuple[FileEntry, ...]
    """Sorted by path."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Small JSON facts (rows, parameters, card text…)."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Input name to artifact digest, of a statement (``STATEMENT_KINDS``): part of the content."""
    provenance: tuple[Provenance, ...] = field(default=(), compare=False)
    """Every way in which it is known to have come about; of schema 1 the first one stands in the manifest."""
    schema: int = MANIFEST_SCHEMA

    @property
    def digest(self) -> str:
        """``sha256:`` of the canonical JSON manifest."""
        return digest_json(self.manifest())

    @property
    def inputs(self) -> dict[str, str]:
        """Lineage: input name to artifact digest. Where two provenances differ, one of them; see :attr:`parents`."""
        return {name: digest for kept in self.provenance for name, digest in kept.inputs.items()} | dict(
            self.about
        )

    @property
    def parents(self) -> set[str]:
        """Digests of everything that it is known to have been made from directly."""
        return {digest for kept in self.provenance for digest in kept.inputs.values()} | set(
            self.about.values()
        )

    @property
    def producers(self) -> tuple[Producer, ...]:
        """The stages that are known to have made it."""
        return tuple(kept.producer for kept in self.provenance if kept.producer is not None)

    @property
    def beside(self) -> tuple[Provenance, ...]:
        """The provenances that are kept beside the manifest."""
        return self.provenance if self.schema > 1 else self.provenance[1:]

    @property
    def size_bytes(self) -> int:
        """Sum of the file sizes."""
        return sum(entry.size_bytes for entry in self.files)

    def manifest(self) -> dict[str, Any]:
        """The JSON that is hashed and stored."""
        content = {
            "schema": self.schema,
            "kind": self.kind,
            "files": [{"path": f.path, "digest": f.digest, "size_bytes": f.size_bytes} for f in self.files],
            "meta": dict(self.meta),
        }
        if self.schema == 1:
            first = self.provenance[0]
            return {**content, "inputs": dict(first.inputs), "producer": _producer_document(first.producer)}
        return {**content, "about": dict(self.about)} if self.about else content

    @classmethod
    def from_manifest(cls, data: Mapping[str, Any], provenance: Iterable[Provenance] = ()) -> Artifact:
        """The inverse of :meth:`manifest`, of any schema so far, with the provenances beside it.

        Raises ValueError, KeyError or TypeError for data of another shape.
        """
        schema = data["schema"]
        if schema not in range(1, MANIFEST_SCHEMA + 1):
            raise ValueError(f"manifest schema {schema} is not one of 1 to {MANIFEST_SCHEMA}")
        beside = tuple(provenance)
        if schema == 1:
            beside = (Provenance(data["inputs"], _read_producer(data["producer"])), *beside)
        return cls(
            kind=data["kind"],
            files=tuple(FileEntry(**entry) for entry in data["files"]),
            meta=data["meta"],
            about=data.get("about", {}),
            provenance=beside,
            schema=schema,
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that ``verify`` found wrong."""

    digest: str
    """The artifact concerned; empty where none is (the journal, the index)."""
    path: str
    """Which file of it, ``manifest``, or the place in the registry (``journal/12``, ``refs/best``)."""
    what: str
    """One line: what was expected, what is there."""


RunStatus: TypeAlias = Literal["running", "finished", "failed", "interrupted"]
RunStageStatus: TypeAlias = Literal["pending", "running", "reused", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One execution of a recipe. Not hashed: it may hold wall-clock time and host names."""

    id: str
    """Sorts by time, short enough to type: ``20261123-150405-ab12`` (``new_run_id``)."""
    recipe: str
    """Name of the recipe."""
    recipe_digest: str
    """``sha256:`` of the resolved recipe's canonical JSON."""
    recipe_json: str
    """The resolved recipe itself, as JSON."""
    created_at: str
    """RFC 3339, UTC."""
    updated_at: str
    """RFC 3339, UTC; set by the registry on every change."""
    status: RunStatus = "running"
    """``running`` also after a kill: whether the process lives is told by ``pid`` and ``host``."""
    seed: int = 0
    pid: int | None = None
    """Process that executes the run, on ``host``."""
    host: str | None = None
    error: str | None = None
    """One line, when the run failed."""


@dataclass(frozen=True, slots=True)
class RunStageRecord:
    """One stage of a run."""

    run_id: str
    position: int
    """Order in the recipe, from 0."""
    name: str
    """Name in the recipe, unique in the run."""
    kind: str
    """Stage kind (``grpo``)."""
    status: RunStageStatus = "pending"
    key: str | None = None
    """Digest of config, inputs and code version; known once the inputs are."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Input name to artifact digest."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Output name to artifact digest."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Small facts for people (``StageResult.summary``)."""
    started_at: str | None = None
    finished_at: str | None = None
    seconds: float | None = None
    """Wall-clock seconds of work, over all resumptions."""


@dataclass(frozen=True, slots=True)
class Release:
    """One entry of a lane's history: the artifact that took the lane, and which one it replaced."""

    lane: str
    """``dev``, ``staging`` or ``production``."""
    position: int
    """Place in the lane's history, from 1; the highest is current."""
    digest: str
    """The released artifact."""
    previous: str | None
    """The artifact that held the lane before; None for the first."""
    published_at: str
    """RFC 3339, UTC."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of the append-only journal; ``digest`` covers every other field, ``previous`` chains it."""

    sequence: int
    """From 1, without gaps."""
    at: str
    """RFC 3339, UTC."""
    actor: str
    """Who did it: a person, a command, a job."""
    action: str
    """What was done (``run.finished``, ``release.published``…)."""
    subject: str
    """What it was done to: a run id, a lane, a digest."""
    data: Mapping[str, Any]
    """Small JSON facts."""
    previous: str | None
    """``digest`` of the entry before; None for the first."""
    digest: str
    """``sha256:`` of the canonical JSON of all fields above."""

    def derived_digest(self) -> str:
        """The digest that this entry's fields give."""
        return digest_json(
            {
                "sequence": self.sequence,
                "at": self.at,
                "actor": self.actor,
                "action": self.action,
                "subject": self.subject,
                "data": dict(self.data),
                "previous": self.previous,
            }
        )
