"""Where the artifacts of a release are read from: a home's store, or an exported folder.

Here: the two places behind one small contract, and remembering which file hashed to what. Not here: what is checked
(``verify``). To add a place: a class with the two methods of :class:`PieceSource`.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from posttrain.artifacts.records import Artifact, FileEntry
from posttrain.artifacts.store import ArtifactStore, parse_manifest
from posttrain.core.canonical import digest_file, short
from posttrain.core.errors import MissingArtifactError

RELEASE_FOLDER = "release"
FILES_FOLDER = "files"
ARTIFACTS_FOLDER = "artifacts"
SIGNATURES_FOLDER = "signatures"
MANIFEST_FILE = "manifest.json"
_CLOCK_NS = 50_000_000  # file times move in steps of up to 10 ms


class PieceSource(Protocol):
    """Artifacts by digest, and their files."""

    def artifact(self, digest: str) -> Artifact:
        """The artifact, its manifest hashed again. Raises MissingArtifactError, CorruptArtifactError."""

    def path(self, artifact: Artifact, entry: FileEntry) -> Path:
        """Where one of its files is, whether it is there or not."""


class StoreSource:
    """A home's store."""

    def __init__(self, store: ArtifactStore, *, fetch: bool = True) -> None:
        self.store = store
        self._fetch = fetch

    def artifact(self, digest: str) -> Artifact:
        """See :class:`PieceSource`; with ``fetch`` from the mirror where only that has it."""
        return self.store.get(digest) if self._fetch else self.store.read_manifest(digest)

    def path(self, artifact: Artifact, entry: FileEntry) -> Path:
        """See :class:`PieceSource`."""
        del artifact
        return self.store.object_path(entry.digest)


class FolderSource:
    """A folder that ``export_release`` wrote."""

    def __init__(self, folder: Path, release: str) -> None:
        self.folder = folder
        self.release = release
        """Digest of the release, whose own files have a place of their own."""

    def artifact(self, digest: str) -> Artifact:
        """See :class:`PieceSource`."""
        path = manifest_place(self.folder, digest, self.release)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise MissingArtifactError(
                f"artifact {short(digest)} is not in the folder: {path.relative_to(self.folder)} is missing",
                hint="export the release again",
            ) from None
        return parse_manifest(digest, raw)

    def path(self, artifact: Artifact, entry: FileEntry) -> Path:
        """See :class:`PieceSource`."""
        return files_place(self.folder, artifact.digest, self.release) / entry.path


def manifest_place(folder: Path, digest: str, release: str) -> Path:
    """Where an export keeps an artifact's manifest."""
    if digest == release:
        return folder / RELEASE_FOLDER / MANIFEST_FILE
    return folder / ARTIFACTS_FOLDER / digest.removeprefix("sha256:") / MANIFEST_FILE


def files_place(folder: Path, digest: str, release: str) -> Path:
    """Where an export keeps an artifact's files, under their names."""
    if digest == release:
        return folder / FILES_FOLDER
    return folder / ARTIFACTS_FOLDER / digest.removeprefix("sha256:") / FILES_FOLDER


class _Facts(NamedTuple):
    """What changes when a file is written, replaced or linked."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class VerificationCache:
    """Remembers which file hashed to what, so that checking a warm release costs one ``stat`` a file.

    Kept in the memory of one process and trusted for no other. A file is hashed again when its device, inode, size,
    modification time or change time is another; one that changed within the last moment is not remembered, since the
    system's clock could not tell a second write from the first. Covered: every write through the file system,
    renames, and a forged modification time (that changes the change time). Not covered: rotten bits on the disk, a
    write past the file system, a clock turned back to the nanosecond; ``deep`` hashes everything again and finds
    those.
    """

    def __init__(self) -> None:
        self._known: dict[_Facts, str] = {}
        self._lock = threading.Lock()

    def digest_of(self, path: Path, *, deep: bool) -> str:
        """The digest of a file's bytes; with ``deep`` hashed now in any case. Raises OSError."""
        before = _facts(path)
        with self._lock:
            known = None if deep else self._known.get(before)
        if known is not None:
            return known
        started_ns = time.time_ns()
        digest = digest_file(path)
        # Where somebody writes meanwhile, nobody knows what was hashed.
        if _facts(path) == before and before.changed_ns < started_ns - _CLOCK_NS:
            with self._lock:
                self._known[before] = digest
        return digest


def _facts(path: Path) -> _Facts:
    found = path.stat()
    return _Facts(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
