"""Checking a release: every digest of every piece derived again, before a byte of it is served.

Here: the checks, the same for a home and for an exported folder. Not here: the folders of a release that passed
(``load``), the signature's mathematics (``signing``), where files are (``sources``). To add a check: a function that
yields Problems, called from :func:`check_release`. A Problem's path begins with the piece: ``base/model.safetensors``.

Covered: the release's own manifest, every file of every piece (flipped, cut, missing, replaced), a piece that is an
artifact of another kind, lineage that does not name what the manifest names (which the garbage collector would then
not keep), a decision whose outcome is another, and signatures. Not covered: external pieces, which are named exactly
and listed by :func:`external_pieces`; the parent release; a change between the check and the reading, for which the
loaded files are the read-only ones that were hashed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from posttrain.artifacts.errors import ReleaseError
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact, FileEntry, Problem
from posttrain.artifacts.store import VerifyProgress
from posttrain.artifacts.verify import verify_home
from posttrain.core.canonical import is_digest, short
from posttrain.core.errors import (
    CorruptArtifactError,
    DataError,
    MissingArtifactError,
    NewerStoreError,
    StoreError,
    UsageError,
)
from posttrain.releases.lanes import release_digest
from posttrain.releases.records import (
    RELEASE_FILE,
    RELEASE_KIND,
    ArtifactPiece,
    ExternalPiece,
    FilesPiece,
    ReleaseManifest,
    lineage,
    pieces,
)
from posttrain.releases.signing import check_signatures, stored_signatures
from posttrain.releases.sources import PieceSource, StoreSource, VerificationCache

WARM = VerificationCache()
"""What this process has hashed; used where no other cache is given."""


def verify_everything(home: Home, progress: VerifyProgress | None = None) -> list[Problem]:
    """``verify_home``, and what every release of the store says wrongly of its pieces."""
    problems = verify_home(home, progress)
    for digest in filter(is_digest, home.store.digests()):
        try:
            artifact = home.store.read_manifest(digest)
        except (CorruptArtifactError, MissingArtifactError, NewerStoreError):
            continue  # verify_home said so
        if artifact.kind == RELEASE_KIND:
            problems += check_structure(home, artifact)
    return problems


def verify_release(
    home: Home,
    reference: str,
    *,
    public_key: Path | None = None,
    require_signature: bool = False,
    deep: bool = True,
    cache: VerificationCache | None = None,
) -> list[Problem]:
    """Derive every digest of a release again; what is wrong, in the order found, and nothing where all is well.

    ``public_key``: a signature by that key must verify where there is one, and there must be one with
    ``require_signature``. Signatures by other keys are not judged. ``deep=False`` believes what ``cache`` (default:
    this process's) knows about files that did not change since they were hashed; see ``VerificationCache`` for its
    limits. Raises UnknownReferenceError for what names nothing, UsageError for a signature required of no key.
    """
    digest = release_digest(home, reference)
    signatures = stored_signatures(home, digest)
    with home.store.shared():  # the collector waits
        return check_release(
            StoreSource(home.store),
            digest,
            Check(public_key, require_signature, deep, cache=cache or WARM),
            signatures,
        )


def external_pieces(manifest: ReleaseManifest) -> list[str]:
    """The pieces that cannot be verified here, each with where it is in the manifest."""
    return [
        f"{field} {piece.identity}" for field, piece in pieces(manifest) if isinstance(piece, ExternalPiece)
    ]


def refusal(reference: str, problems: list[Problem]) -> ReleaseError:
    """The error that says why a release is refused: its first problem, and how many more."""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return ReleaseError(
        f"release {reference} is refused: {problems[0].path} {problems[0].what}{more}",
        hint=f"`posttrain release verify {reference}` lists everything; `posttrain release list` shows the others",
    )


# -- the checks ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """How to check."""

    public_key: Path | None = None
    require_signature: bool = False
    deep: bool = True
    hashes: bool = True
    """Off: files are taken as they are."""
    cache: VerificationCache = dataclasses.field(default_factory=VerificationCache)


def check_release(source: PieceSource, digest: str, check: Check, signatures: list[bytes]) -> list[Problem]:
    """Everything that is wrong with a release in ``source``."""
    if check.require_signature and check.public_key is None:
        raise UsageError(
            "a signature cannot be required without the key that it is to be by",
            hint="give --public-key FILE",
        )
    try:
        artifact = source.artifact(digest)
    except (CorruptArtifactError, MissingArtifactError, NewerStoreError) as error:
        return [Problem(digest, "manifest", error.message)]
    if artifact.kind != RELEASE_KIND:
        return [Problem(digest, "manifest", f"is a {artifact.kind}, not a release")]
    problems = list(_signature_problems(artifact, check, signatures))
    hashed = _Hashes(source, check)
    own = {entry.path: entry for entry in artifact.files}
    if RELEASE_FILE not in own:
        return [*problems, Problem(digest, f"release/{RELEASE_FILE}", "is missing")]
    if damaged := hashed.problems(artifact, (own[RELEASE_FILE],), "release"):
        return [*problems, *damaged]
    try:
        raw = source.path(artifact, own[RELEASE_FILE]).read_bytes()
        manifest = ReleaseManifest.from_json(raw)
    except DataError as error:
        return [*problems, Problem(digest, f"release/{RELEASE_FILE}", error.message)]
    except OSError as error:  # not hashed before, or gone since
        return [*problems, Problem(digest, f"release/{RELEASE_FILE}", f"cannot be read: {error.strerror}")]
    if raw != manifest.to_bytes() + b"\n":
        problems.append(Problem(digest, f"release/{RELEASE_FILE}", "is not canonical JSON"))
    if dict(artifact.inputs) != lineage(manifest):
        problems.append(Problem(digest, "manifest", "its lineage does not name what release.json names"))
    for field, piece in pieces(manifest):
        problems += _piece_problems(hashed, artifact, field, piece)
    problems += _decision_problems(source, digest, manifest)
    named = {path for _, piece in pieces(manifest) if isinstance(piece, FilesPiece) for path in piece.files}
    others = tuple(entry for path, entry in own.items() if path not in {*named, RELEASE_FILE})
    return problems + hashed.problems(artifact, others, "release")


def check_structure(home: Home, release: Artifact) -> list[Problem]:
    """What a release says wrongly of its pieces, no file hashed: for ``verify_everything``, which has hashed them all.

    Where a mirror may have what is not here, a release with a missing piece is not judged.
    """
    store = home.store
    missing = [digest for digest in release.inputs.values() if not store.manifest_path(digest).exists()]
    if missing and store.mirror_url is not None:
        return []
    source = StoreSource(store, fetch=False)
    return check_release(source, release.digest, Check(hashes=False), signatures=[])


def _signature_problems(release: Artifact, check: Check, signatures: list[bytes]) -> Iterator[Problem]:
    if check.public_key is not None:
        what = check_signatures(release, signatures, check.public_key, required=check.require_signature)
        if what is not None:
            yield Problem(release.digest, "signature", what)


class _Hashes:
    """Files and what they hash to, each hashed once in one check."""

    def __init__(self, source: PieceSource, check: Check) -> None:
        self.source = source
        self._check = check
        self._seen: dict[Path, str] = {}  # several pieces may share a file

    def problems(self, artifact: Artifact, entries: tuple[FileEntry, ...], piece: str) -> list[Problem]:
        """What is wrong with these files of ``artifact``, which are (part of) ``piece``."""
        found = []
        for entry in entries:
            what = self._what(self.source.path(artifact, entry), entry)
            if what is not None:
                found.append(Problem(artifact.digest, f"{piece}/{entry.path}", what))
        return found

    def _what(self, path: Path, entry: FileEntry) -> str | None:
        if not self._check.hashes:
            return None
        try:
            if (size_bytes := path.stat().st_size) != entry.size_bytes:
                return f"has {size_bytes} bytes instead of {entry.size_bytes}"
            actual = self._digest(path)
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None if actual == entry.digest else "does not match its digest"

    def _digest(self, path: Path) -> str:
        if path not in self._seen:
            self._seen[path] = self._check.cache.digest_of(path, deep=self._check.deep)
        return self._seen[path]


def _piece_problems(
    hashed: _Hashes, release: Artifact, field: str, piece: ArtifactPiece | FilesPiece | ExternalPiece
) -> list[Problem]:
    if isinstance(piece, ExternalPiece):
        return []
    digest = piece.digest if isinstance(piece, ArtifactPiece) else (piece.artifact or release.digest)
    try:
        artifact = release if digest == release.digest else hashed.source.artifact(digest)
    except (CorruptArtifactError, MissingArtifactError, NewerStoreError) as error:
        return [Problem(digest, field, error.message)]
    if isinstance(piece, ArtifactPiece):
        found = hashed.problems(artifact, artifact.files, field)
        if artifact.kind != piece.kind:
            found.insert(0, Problem(digest, field, f"is a {artifact.kind}, the release says {piece.kind}"))
        return found
    entries = {entry.path: entry for entry in artifact.files}
    found = []
    for path, wanted in piece.files.items():
        if path not in entries:
            found.append(Problem(digest, f"{field}/{path}", f"is no file of artifact {short(digest)}"))
        elif entries[path].digest != wanted:
            found.append(Problem(digest, f"{field}/{path}", "has another digest than the release says"))
    named = tuple(entries[path] for path in piece.files if path in entries)
    return found + hashed.problems(artifact, named, field)


def _decision_problems(source: PieceSource, digest: str, manifest: ReleaseManifest) -> Iterator[Problem]:
    decision = manifest.decision
    if decision is None or not isinstance(decision.piece, ArtifactPiece):
        return
    with contextlib.suppress(StoreError):  # missing or damaged: said above
        outcome = source.artifact(decision.piece.digest).meta.get("outcome", decision.outcome)
        if outcome != decision.outcome:
            yield Problem(digest, "decision", f"says {outcome}, the release says {decision.outcome}")
