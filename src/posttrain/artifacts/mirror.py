"""The second home of artifacts, at any fsspec URL: a folder, a bucket, another machine.

Here: copying artifacts there and back. Not here: deleting there; a mirror only grows. The layout is the
store's own (``objects/``, ``provenance/``, ``manifests/``), so a mirrored folder can be verified and copied by hand.

Covered: nothing is kept from a mirror that does not match its digest; a copy that was cut off is never seen
as complete, since the manifest goes last. Not covered: rot of what is already there and of the right size,
which a fetch refuses and a push does not notice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from posttrain.artifacts.records import Artifact, FileEntry, Provenance
from posttrain.artifacts.store import ArtifactStore, parse_manifest, parse_provenance
from posttrain.artifacts.weights import refuse_pickle_content, refuse_pickle_names
from posttrain.artifacts.writer import StagedFile
from posttrain.core.atomic import is_storage_full, remove_tree, storage_errors, unique_name
from posttrain.core.canonical import canonical_json, digest_file, short
from posttrain.core.errors import (
    CorruptArtifactError,
    MissingArtifactError,
    MissingDependencyError,
    StorageFullError,
    StoreError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path

# There a written object appears whole or not at all, and renaming would copy it.
_WHOLE_WRITES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "hf", "memory"})


class Mirror:
    """One second home."""

    def __init__(self, url: str) -> None:
        """``file:///folder``, ``s3://bucket/prefix``, … Raises UsageError or MissingDependencyError."""
        import fsspec  # late: loads only where a mirror is used

        try:
            filesystem, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise MissingDependencyError(
                f"the mirror {url} needs another package: {error}",
                hint="install it, or change POSTTRAIN_MIRROR",
            ) from error
        except ValueError as error:
            raise UsageError(
                f"{url!r} cannot be a mirror: {error}", hint="set POSTTRAIN_MIRROR to an fsspec URL"
            ) from error
        self.url = url
        self._filesystem: Any = filesystem
        self._root = root.rstrip("/")
        protocol = filesystem.protocol
        self._renames = not _WHOLE_WRITES & {protocol, *(protocol if isinstance(protocol, tuple) else ())}

    def has(self, digest: str) -> bool:
        """Whether the mirror has this artifact's manifest."""
        with self._errors(digest):
            return bool(self._filesystem.exists(self._manifest(digest)))

    def push(self, store: ArtifactStore, digest: str, *, ancestors: bool = False) -> None:
        """Copy an artifact there, its files hashed first; with ``ancestors``, first what it was made from.

        An ancestor that is not in the store is left out. Raises CorruptArtifactError, MissingArtifactError,
        StoreError.
        """
        for artifact in _lineage(store.read_manifest(digest), store.read_manifest, ancestors=ancestors):
            if problems := store.verify(artifact.digest):
                found = f"its file {problems[0].path!r} {problems[0].what}"
                raise CorruptArtifactError(
                    f"artifact {short(artifact.digest)}: {found}; not copied",
                    hint="`posttrain verify` lists all damage",
                )
            with self._errors(artifact.digest):
                for entry in artifact.files:
                    self._put(store.object_path(entry.digest), self._object(entry), entry.size_bytes)
                for kept in artifact.beside:
                    name, size_bytes = (
                        kept.digest.removeprefix("sha256:"),
                        len(canonical_json(kept.document())),
                    )
                    source = store.provenance_folder(artifact.digest) / f"{name}.json"
                    self._put(source, f"{self._provenance(artifact.digest)}/{name}.json", size_bytes)
                raw = canonical_json(artifact.manifest())
                self._put(store.manifest_path(artifact.digest), self._manifest(artifact.digest), len(raw))

    def fetch(self, store: ArtifactStore, digest: str, *, ancestors: bool = False) -> Artifact:
        """Copy an artifact into the store, each file hashed before it is kept; with ``ancestors``, its
        origins too.

        An ancestor that the mirror does not have is left out. Raises MissingArtifactError,
        CorruptArtifactError, ModelError for pickled weights, StorageFullError, StoreError.
        """
        wanted = _lineage(self._read_manifest(digest), self._read_manifest, ancestors=ancestors)
        for artifact in wanted:
            self._fetch_one(store, artifact)
        return store.read_manifest(digest)

    def _fetch_one(self, store: ArtifactStore, artifact: Artifact) -> None:
        refuse_pickle_names(artifact.kind, [entry.path for entry in artifact.files])
        staging = store.temporary / unique_name()
        # The collector waits, so that a file found in place now is still there when the manifest is written.
        with store.shared(), storage_errors(store.root):
            try:
                staging.mkdir()
                staged = []
                for number, entry in enumerate(artifact.files):
                    if not _is_sound(store.object_path(entry.digest), entry):
                        staged.append(
                            StagedFile(self._download(artifact, entry, staging / str(number)), entry)
                        )
                store.publish_held(artifact, staged)
            finally:
                remove_tree(staging)

    def _download(self, artifact: Artifact, entry: FileEntry, target: Path) -> Path:
        with self._errors(artifact.digest):
            self._filesystem.get_file(self._object(entry), str(target))
        if digest_file(target) != entry.digest:
            raise CorruptArtifactError(
                f"artifact {short(artifact.digest)}: its file {entry.path!r} in the mirror {self.url} "
                "does not match its digest; nothing was kept",
                hint="remove that object from the mirror and push the artifact again",
            )
        refuse_pickle_content(artifact.kind, entry.path, target)
        return target

    def _read_manifest(self, digest: str) -> Artifact:
        with self._errors(digest):
            raw: bytes = self._filesystem.cat_file(self._manifest(digest))
            return parse_manifest(digest, raw, list(self._read_provenance(digest)))

    def _read_provenance(self, digest: str) -> Iterator[Provenance]:
        folder = self._provenance(digest)
        try:
            names = [path.rpartition("/")[2] for path in self._filesystem.ls(folder, detail=False)]
        except FileNotFoundError:
            return
        for name in sorted(name for name in names if name.endswith(".json")):
            kept = parse_provenance(name.removesuffix(".json"), self._filesystem.cat_file(f"{folder}/{name}"))
            if kept is not None:
                yield kept

    def _put(self, source: Path, target: str, size_bytes: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._filesystem.info(target)["size"] == size_bytes:
                return
        self._filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        if not self._renames:
            self._filesystem.put_file(str(source), target)
            return
        partial = f"{target}.{unique_name()}.part"
        try:
            self._filesystem.put_file(str(source), partial)
            self._filesystem.mv(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._filesystem.rm_file(partial)
            raise

    def _object(self, entry: FileEntry) -> str:
        name = entry.digest.removeprefix("sha256:")
        return f"{self._root}/objects/{name[:2]}/{name[2:]}"

    def _manifest(self, digest: str) -> str:
        name = digest.removeprefix("sha256:")
        return f"{self._root}/manifests/{name[:2]}/{name[2:]}.json"

    def _provenance(self, digest: str) -> str:
        name = digest.removeprefix("sha256:")
        return f"{self._root}/provenance/{name[:2]}/{name[2:]}"

    @contextlib.contextmanager
    def _errors(self, digest: str) -> Iterator[None]:
        """The boundary: what the other side says becomes StoreError."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise MissingArtifactError(
                f"artifact {short(digest)} is not in the mirror {self.url}",
                hint="run the recipe that makes it, or push it from the home that has it",
            ) from error
        except OSError as error:
            if is_storage_full(error):
                raise StorageFullError(
                    f"the mirror {self.url} has no space left; no artifact there is half-written",
                    hint="free some space there, or change POSTTRAIN_MIRROR",
                ) from error
            raise StoreError(
                f"the mirror {self.url} failed: {error}", hint="check POSTTRAIN_MIRROR"
            ) from error


def _lineage(start: Artifact, read: Callable[[str], Artifact], *, ancestors: bool) -> list[Artifact]:
    """``start``, after everything it was made from where that is asked for; what ``read`` does not have is
    left out."""
    found = {start.digest: start}
    waiting = list(start.parents) if ancestors else []
    while waiting:
        digest = waiting.pop()
        if digest in found:
            continue
        with contextlib.suppress(MissingArtifactError):
            found[digest] = read(digest)
            waiting.extend(found[digest].parents)
    return list(found.values())[::-1]


def _is_sound(path: Path, entry: FileEntry) -> bool:
    return path.exists() and path.stat().st_size == entry.size_bytes and digest_file(path) == entry.digest
