"""The records of the artifact room: what an artifact is, and what a stage is given and hands on.

Here: frozen data, torch-free. Not here: where bytes live (``store``), the index (``registry``). To add a
record: a frozen dataclass with a line under every field; one that is written to disk carries a schema number
and a golden file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

from posttrain.core.canonical import digest_json, is_digest

MANIFEST_SCHEMA = 1
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
    """Which stage made an artifact: enough to find it again, nothing that depends on when or where."""

    stage: str
    """Stage kind, for example ``grpo``."""
    key: str
    """Digest of the stage's config, inputs and code version."""
    output: str
    """Which of the stage's outputs this is."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An immutable set of files with what they are and what they came from; its identity is ``digest``.

    Two artifacts with the same kind, files, meta, inputs and producer are the same artifact. Wall-clock time,
    host names and paths never enter it.
    """

    kind: str
    """``model``, ``dataset``, ``report``, ``figures``, ``metrics``, ``samples``, …"""
    files: tuple[FileEntry, ...]
    """Sorted by path."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Small JSON facts (rows, parameters, card text…)."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Lineage: input name to artifact digest."""
    producer: Producer | None = None

    @property
    def digest(self) -> str:
        """``sha256:`` of the canonical JSON manifest."""
        return digest_json(self.manifest())

    @property
    def size_bytes(self) -> int:
        """Sum of the file sizes."""
        return sum(entry.size_bytes for entry in self.files)

    def manifest(self) -> dict[str, Any]:
        """The JSON that is hashed and stored."""
        return {
            "schema": MANIFEST_SCHEMA,
            "kind": self.kind,
            "files": [{"path": f.path, "digest": f.digest, "size_bytes": f.size_bytes} for f in self.files],
            "meta": dict(self.meta),
            "inputs": dict(self.inputs),
            "producer": None
            if self.producer is None
            else {"stage": self.producer.stage, "key": self.producer.key, "output": self.producer.output},
        }

    @classmethod
    def from_manifest(cls, data: Mapping[str, Any]) -> Artifact:
        """The inverse of :meth:`manifest`. Raises ValueError, KeyError or TypeError for what is not one."""
        if data["schema"] != MANIFEST_SCHEMA:
            raise ValueError(f"manifest schema {data['schema']} is not {MANIFEST_SCHEMA}")
        producer = data["producer"]
        return cls(
            kind=data["kind"],
            files=tuple(FileEntry(**entry) for entry in data["files"]),
            meta=data["meta"],
            inputs=data["inputs"],
            producer=None if producer is None else Producer(**producer),
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
