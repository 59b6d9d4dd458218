"""What a release is: everything that decides an answer, each piece by its digest.

Here: the manifest and its pieces, as frozen, torch-free records. Not here: its policies (``policies``), how it is
written (``spec``, ``create``), whether its pieces are as they were (``verify``), the short form of a
production checklist (``checklist``).

To add a field: give it a default that means what an old release meant, yield its piece from
:func:`pieces` if it is one, and keep a golden file beside the old ones. A meaning that an old reader would get wrong
needs a new ``record_schema``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from posttrain.core.canonical import digest_json
from posttrain.core.documents import Digest, Document, Record
from posttrain.releases.fields import Name, ReleaseName, Sampling, unique
from posttrain.releases.policies import RollbackPolicy, SloPolicy

RELEASE_KIND = "release"
"""Kind of the artifact that a release is."""
RELEASE_FILE = "release.json"
"""Its file with the manifest."""

ExternalSystem: TypeAlias = Literal["hub", "git", "api", "package", "version", "label"]

_COMMIT = re.compile(r"[0-9a-f]{7,64}")


class ArtifactPiece(Record):
    """A whole artifact of the store."""

    by: Literal["artifact"] = "artifact"
    """How the piece is named."""
    digest: Digest
    """The artifact's."""
    kind: Name
    """``model``, ``dataset``, ``report``…; an artifact of another kind does not do."""

    @property
    def identity(self) -> str:
        """What it is named by elsewhere."""
        return self.digest


class FilesPiece(Record):
    """Some files of an artifact: a tokenizer inside a model, a YAML file inside the release itself."""

    by: Literal["files"] = "files"
    """How the piece is named."""
    artifact: Digest | None = None
    """The artifact that holds them; None: the release."""
    files: Mapping[str, Digest] = Field(min_length=1)
    """Path inside that artifact, and ``sha256:`` of the bytes."""

    @property
    def identity(self) -> str:
        """The digest of the file; of several, that of the canonical JSON of path and digest."""
        only = list(self.files.values())
        return only[0] if len(only) == 1 else digest_json(dict(self.files))


class ExternalPiece(Record):
    """Something outside the store. It is named exactly, and cannot be verified here."""

    by: Literal["external"] = "external"
    """How the piece is named."""
    system: ExternalSystem
    """``hub``: NAME@COMMIT of a model hub; ``git``: a commit, or URL@COMMIT; ``api``: NAME@VERSION of a service;
    ``package``: NAME==VERSION; ``version``: a version label; ``label``: a name taken over from elsewhere."""
    reference: Name
    """Name and version, as the system writes them."""

    @property
    def identity(self) -> str:
        """``hub:NAME@COMMIT``."""
        return f"{self.system}:{self.reference}"

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        name, at, revision = self.reference.rpartition("@")
        if self.system == "hub" and not (name and len(revision) == 40 and _COMMIT.fullmatch(revision)):
            raise ValueError(
                f"{self.reference!r}: a hub model is pinned as NAME@COMMIT with all 40 digits; a branch or a tag moves"
            )
        if self.system == "git" and not _COMMIT.fullmatch(revision):
            raise ValueError(f"{self.reference!r}: git is pinned by a commit, COMMIT or URL@COMMIT")
        if self.system == "api" and not (name and at and revision):
            raise ValueError(f"{self.reference!r}: a service is pinned as NAME@VERSION")
        if self.system == "package" and not all(self.reference.partition("==")):
            raise ValueError(f"{self.reference!r}: a package is pinned as NAME==VERSION")
        return self


Piece: TypeAlias = Annotated[ArtifactPiece | FilesPiece | ExternalPiece, Field(discriminator="by")]


class Adapter(Record):
    """Weights that are added to the base."""

    name: Name
    """Unique in the release."""
    piece: Piece
    """Where it is."""


class Code(Record):
    """The code that made the model and runs its verifiers."""

    commit: Name | None = None
    """Git commit; None where there was no repository."""
    dirty: bool | None = None
    """Whether files differed from that commit; such a release cannot be made again from the commit alone."""
    posttrain: Name | None = None
    """Version of posttrain."""


class Result(Record):
    """What was measured."""

    report: Piece
    """The whole of it."""
    headline: Mapping[Name, float] = Field(default_factory=dict)
    """The figures to remember, for people and for ``diff``; the report is the truth."""


class GateDecision(Record):
    """What the gate said about this candidate."""

    piece: Piece
    """The decision's artifact or file."""
    outcome: Name
    """``GO``, ``NO-GO``, ``INCONCLUSIVE``, ``ERROR`` or ``INVALID``."""


class ReleaseManifest(Document):
    """A release: what must be frozen to go back to it exactly. No wall-clock time, host name or path enters it."""

    record_kind: ClassVar[str] = "release"

    name: ReleaseName
    """For people, never used twice: ``v1.3``."""
    base: Piece
    """The base weights."""
    adapters: tuple[Adapter, ...] = ()
    """In the order in which they are applied."""
    tokenizer: Piece | None = None
    """The tokenizer's files."""
    chat_template: Piece | None = None
    """The template that turns messages into a prompt."""
    input_processing: Piece | None = None
    """What happens to a request before the template: system prompt, normalisation, retrieval."""
    sampling: Sampling = Field(default_factory=dict)
    """What a request that does not say otherwise is given: `temperature`, `top_p`…"""
    reward_models: Mapping[Name, Piece] = Field(default_factory=dict)
    """The learned scorers it was trained or judged with."""
    verifiers: Mapping[Name, Piece] = Field(default_factory=dict)
    """The rules that score a completion, mostly by version."""
    tools: Mapping[Name, Piece] = Field(default_factory=dict)
    """What it may call, by version, and fixtures by digest."""
    data: Mapping[Name, Piece] = Field(default_factory=dict)
    """The training data."""
    configuration: Mapping[Name, Piece] = Field(default_factory=dict)
    """Settings of the training; `recipe` is the resolved recipe."""
    code: Code = Code()
    """Git commit and version of posttrain."""
    results: Mapping[Name, Result] = Field(default_factory=dict)
    """Reports and their headline figures."""
    contract: Piece | None = None
    """The promotion rules."""
    decision: GateDecision | None = None
    """What the gate said under that contract."""
    slo: SloPolicy | None = None
    """Service level objectives while it answers."""
    rollback: RollbackPolicy | None = None
    """When to go back, agreed beforehand."""
    drift_profile: Piece | None = None
    """What the traffic looked like that it was made for."""
    parent: Digest | None = None
    """The release that it follows."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        unique("adapters", (adapter.name for adapter in self.adapters))
        return self


class NamedPiece(NamedTuple):
    """A piece and where in the manifest it is."""

    field: str
    """``base``, ``adapters.lora_math``, ``data.train``…"""
    piece: ArtifactPiece | FilesPiece | ExternalPiece


SERVED = ("base", "adapters", "tokenizer", "chat_template", "input_processing")
"""Fields whose pieces are loaded to answer a request."""


def pieces(manifest: ReleaseManifest) -> Iterator[NamedPiece]:
    """Every piece of a manifest, in the order of its fields."""
    yield NamedPiece("base", manifest.base)
    for adapter in manifest.adapters:
        yield NamedPiece(f"adapters.{adapter.name}", adapter.piece)
    for field in ("tokenizer", "chat_template", "input_processing"):
        if (piece := getattr(manifest, field)) is not None:
            yield NamedPiece(field, piece)
    for field in ("reward_models", "verifiers", "tools", "data", "configuration"):
        for name, piece in sorted(getattr(manifest, field).items()):
            yield NamedPiece(f"{field}.{name}", piece)
    for name, result in sorted(manifest.results.items()):
        yield NamedPiece(f"results.{name}", result.report)
    if manifest.contract is not None:
        yield NamedPiece("contract", manifest.contract)
    if manifest.decision is not None:
        yield NamedPiece("decision", manifest.decision.piece)
    if manifest.drift_profile is not None:
        yield NamedPiece("drift_profile", manifest.drift_profile)


def lineage(manifest: ReleaseManifest) -> dict[str, str]:
    """The inputs of the release's artifact: everything in the store that it names. What it names is never collected
    as garbage while the release is kept."""
    inputs = {} if manifest.parent is None else {"parent": manifest.parent}
    for field, piece in pieces(manifest):
        if isinstance(piece, ArtifactPiece):
            inputs[field] = piece.digest
        elif isinstance(piece, FilesPiece) and piece.artifact is not None:
            inputs[field] = piece.artifact
    return inputs


def is_served(field: str) -> bool:
    """Whether the piece at ``field`` is loaded to answer a request."""
    return field.partition(".")[0] in SERVED
