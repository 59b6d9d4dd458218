"""The content-addressed store: artifacts as files on a local disk, named by what they hold.

Here: opening and checking a store, reading, publishing, verifying, and the locks between writers and the
garbage collector. Not here: staging a new artifact (``writer``), the second home (``mirror``), what may be
deleted (``gc``), the index (``registry``).

A file is written under ``tmp/``, synced, given its name in ``objects/`` and the folder synced; its provenance and
last the manifest follow in the same way. So a manifest that can be seen is complete, and a kill leaves at most files in
``tmp/`` and objects that no manifest names, which the garbage collector removes.

Every object has the same fixed modification time. A file that was changed in place no longer has it and is
hashed again before it is used. Covered: any ordinary write, truncation, removal. Not covered on reads through
:meth:`file` and :meth:`view`: rotten bits, or a change that also forges the time; ``verify`` finds those.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from posttrain.artifacts.records import (
    MANIFEST_SCHEMA,
    Artifact,
    FileEntry,
    Problem,
    Producer,
    Provenance,
    parse_canonical,
)
from posttrain.artifacts.writer import ArtifactWriter, StagedFile
from posttrain.core.atomic import (
    is_storage_full,
    locked,
    make_folder,
    move_new,
    remove_tree,
    storage_errors,
    storage_full,
    sync_file,
    sync_folder,
    write_atomic,
)
from posttrain.core.canonical import canonical_json, digest_bytes, digest_file, is_digest, short
from posttrain.core.errors import (
    CorruptArtifactError,
    MissingArtifactError,
    NewerStoreError,
    StoreError,
    UnknownReferenceError,
    UsageError,
)

if TYPE_CHECKING:
    from posttrain.artifacts.mirror import Mirror

__all__ = ["ArtifactStore", "ArtifactWriter"]

STORE_FORMAT = 2
_STALE_SECONDS = 24 * 3600
_OBJECT_MTIME_NS = 946_684_800 * 10**9  # 2000-01-01: any later write to an object shows
_OBJECT_MODE = 0o444
_FOLDERS = ("objects", "manifests", "provenance", "views", "tmp", "work", "runs")
_REPAIR_HINT = "`posttrain verify` lists all damage; running the same recipe again makes the artifact anew"

VerifyProgress: TypeAlias = Callable[[int, int], None]
"""Called with (files checked, files in all)."""


class ArtifactStore:
    """One store folder, open. Safe to use from several processes; holds no open file between calls."""

    def __init__(self, root: Path, *, mirror_url: str | None = None) -> None:
        """Open the store at ``root``, or create it there.

        Raises NewerStoreError for the format of a later version, UsageError for a folder with other things in
        it.
        """
        self.root = root.absolute()
        self.mirror_url = mirror_url
        self._open()
        for path in self.stale_temporary():
            remove_tree(path)

    # -- opening -----------------------------------------------------------------------------------

    def _open(self) -> None:
        marker = self.root / "store.json"
        try:
            raw = marker.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            self._create()
            return
        except OSError as error:
            raise StoreError(f"cannot read {marker}: {error.strerror}") from error
        try:
            store_format = json.loads(raw)["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{marker} is not readable",
                hint=f'it should hold {{"format": {STORE_FORMAT}}}; restore that line',
            ) from error
        if not isinstance(store_format, int) or store_format > STORE_FORMAT:
            raise NewerStoreError(
                f"the store {self.root} has format {store_format}; this posttrain knows up to {STORE_FORMAT}",
                hint="upgrade posttrain, or set POSTTRAIN_HOME to another folder",
            )
        for name in _FOLDERS:
            make_folder(self.root / name)
        if store_format < STORE_FORMAT:  # an older posttrain must not clean up in what it cannot read
            self._mark()

    def _mark(self) -> None:
        with storage_errors(self.root):
            marker = canonical_json({"format": STORE_FORMAT}) + b"\n"
            write_atomic(self.root / "store.json", marker, scratch=self.temporary)

    def _create(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{self.root} is a file", hint="set POSTTRAIN_HOME to a folder")
        # Keys for a gateway may be made before there is anything in the store.
        known = {*_FOLDERS, "locks", "gc.lock", "serving"}
        present = {p.name for p in self.root.iterdir()} if self.root.is_dir() else set()
        foreign = {name for name in present - known if not name.startswith("registry.sqlite")}
        if foreign:
            raise UsageError(
                f"{self.root} holds other files ({min(foreign)!r}) and is no posttrain store",
                hint="set POSTTRAIN_HOME to a new or an empty folder",
            )
        try:
            for name in _FOLDERS:
                make_folder(self.root / name)
            self._mark()
        except StoreError:
            raise
        except OSError as error:
            if is_storage_full(error):
                raise storage_full(self.root) from error
            raise StoreError(
                f"cannot make a store in {self.root}: {error.strerror}",
                hint="set POSTTRAIN_HOME to a folder that can be written",
            ) from error

    def stale_temporary(self) -> list[Path]:
        """What killed processes left in ``tmp/`` more than a day ago; a living writer holds a lock on its
        own."""
        limit = time.time() - _STALE_SECONDS
        stale = []
        for entry in self.temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):  # its owner finished, or another process cleans too
                if entry.stat().st_mtime <= limit:
                    with locked(entry, exclusive=True, wait=False) as free:
                        stale += [entry] if free else []
        return stale

    def shared(self) -> contextlib.AbstractContextManager[bool]:
        """Hold off the garbage collector inside the block; others may hold it off at the same time."""
        return locked(self.root / "gc.lock", exclusive=False)

    def exclusive(self) -> contextlib.AbstractContextManager[bool]:
        """Wait for publishing processes, and hold them off inside the block: for the garbage collector."""
        return locked(self.root / "gc.lock", exclusive=True)

    # -- places ------------------------------------------------------------------------------------

    @property
    def temporary(self) -> Path:
        """``tmp/``: private files on the store's own file system."""
        return self.root / "tmp"

    def object_path(self, digest: str) -> Path:
        """Where the file with this digest is kept, whether it is there or not."""
        name = _hex(digest)
        return self.root / "objects" / name[:2] / name[2:]

    def manifest_path(self, digest: str) -> Path:
        """Where the manifest with this digest is kept, whether it is there or not."""
        name = _hex(digest)
        return self.root / "manifests" / name[:2] / f"{name[2:]}.json"

    def provenance_folder(self, digest: str) -> Path:
        """Where the provenances of the artifact with this digest are kept, each under its own digest."""
        name = _hex(digest)
        return self.root / "provenance" / name[:2] / name[2:]

    def view_path(self, digest: str) -> Path:
        """Where the artifact's view is, once made."""
        return self.root / "views" / _hex(digest)

    # -- writing -----------------------------------------------------------------------------------

    def writer(
        self,
        kind: str,
        *,
        meta: Mapping[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
        producer: Producer | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> ArtifactWriter:
        """A context manager that stages a new artifact; nothing is visible unless its ``commit()`` is
        reached."""
        return ArtifactWriter(
            self, kind, meta=meta or {}, inputs=inputs or {}, producer=producer, facts=facts or {}
        )

    def publish(self, artifact: Artifact, staged: Sequence[StagedFile]) -> Artifact:
        """Keep an artifact whose new files are staged; for the writer and the mirror.

        Files that are here already are hashed again and replaced when damaged, so making an artifact anew
        repairs the store. Returns the artifact as it reads back.
        """
        with self.shared():
            return self.publish_held(artifact, staged)

    def publish_held(self, artifact: Artifact, staged: Sequence[StagedFile]) -> Artifact:
        """:meth:`publish` for a caller that is inside :meth:`shared` already."""
        raw = canonical_json(artifact.manifest())
        digest = digest_bytes(raw)
        manifest = self.manifest_path(digest)
        with storage_errors(self.root):
            for folder in sorted({self._publish_object(file) for file in staged}):
                sync_folder(folder)
            for entry in artifact.files:
                self.check_object(digest, entry)
            for kept in artifact.beside:
                self._keep_provenance(digest, kept)
            if manifest.exists() and manifest.read_bytes() == raw:
                # Young again: the garbage collector leaves it to whoever is about to name it.
                manifest.touch()
            else:
                write_atomic(manifest, raw, scratch=self.temporary, mode=_OBJECT_MODE)
        return parse_manifest(digest, raw, self.read_provenance(digest)[0])

    def _keep_provenance(self, digest: str, kept: Provenance) -> None:
        target = self.provenance_folder(digest) / f"{_hex(kept.digest)}.json"
        raw = canonical_json(kept.document())
        if not target.exists() or target.read_bytes() != raw:
            make_folder(target.parent)
            write_atomic(target, raw, scratch=self.temporary, mode=_OBJECT_MODE)

    def read_provenance(self, digest: str) -> tuple[list[Provenance], list[str]]:
        """The provenances beside the manifest, and the names of those that are damaged."""
        sound, damaged = [], []
        for path in sorted(self.provenance_folder(digest).glob("*.json")):
            kept = parse_provenance(path.stem, path.read_bytes())
            if kept is None:
                damaged.append(path.name)
            else:
                sound.append(kept)
        return sound, damaged

    def _publish_object(self, staged: StagedFile) -> Path:
        target = self.object_path(staged.entry.digest)
        make_folder(target.parent)
        _seal(staged.source)
        if not target.exists():
            move_new(staged.source, target)
        elif digest_file(target) == staged.entry.digest:
            _seal(target)
            staged.source.unlink()
        else:
            staged.source.replace(target)
        return target.parent

    # -- reading -----------------------------------------------------------------------------------

    def get(self, digest: str) -> Artifact:
        """The artifact with this digest, its manifest hashed again; fetched from the mirror when only that
        has it.

        Raises MissingArtifactError or CorruptArtifactError. Its files are checked as they are used, or by
        :meth:`ensure`.
        """
        if self.mirror_url is not None and not self.manifest_path(digest).exists():
            return self.fetch(digest)
        return self.read_manifest(digest)

    def read_manifest(self, digest: str) -> Artifact:
        """:meth:`get` without the mirror."""
        path = self.manifest_path(digest)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise MissingArtifactError(
                f"artifact {short(digest)} is not in the store {self.root}",
                hint="run the recipe that makes it, or set POSTTRAIN_MIRROR to a second home that has it",
            ) from None
        return parse_manifest(digest, raw, self.read_provenance(digest)[0])

    def has(self, digest: str) -> bool:
        """Whether the artifact is here, on this disk, with every file in place and unchanged since it was
        written."""
        try:
            for entry in self.read_manifest(digest).files:
                self.check_object(digest, entry)
        except (MissingArtifactError, CorruptArtifactError):
            return False
        return True

    def ensure(self, digest: str) -> Artifact:
        """The artifact with every file in place; what is missing or damaged comes from the mirror when there
        is one.

        Raises MissingArtifactError or CorruptArtifactError, naming the file.
        """
        try:
            artifact = self.get(digest)
            for entry in artifact.files:
                self.check_object(digest, entry)
        except (MissingArtifactError, CorruptArtifactError):
            if self.mirror_url is None:
                raise
            return self.fetch(digest)
        return artifact

    def check_object(self, digest: str, entry: FileEntry) -> Path:
        """The path of one file of artifact ``digest``, checked: there, of its size, unchanged since it was
        written."""
        path = self.object_path(entry.digest)
        try:
            facts = path.stat()
        except FileNotFoundError:
            raise MissingArtifactError(
                f"artifact {short(digest)}: its file {entry.path!r} is missing from the store",
                hint=_REPAIR_HINT,
            ) from None
        if facts.st_size != entry.size_bytes:
            raise _corrupt(digest, entry.path, f"has {facts.st_size} bytes instead of {entry.size_bytes}")
        if facts.st_mtime_ns != _OBJECT_MTIME_NS:
            if digest_file(path) != entry.digest:
                raise _corrupt(digest, entry.path, "does not match its digest")
            with contextlib.suppress(PermissionError):  # another user's store: hashed again next time
                _seal(path)
        return path

    def read_bytes(self, artifact: Artifact, path: str) -> bytes:
        """The bytes of one file, hashed before they are returned. Raises KeyError for a path it does not
        have."""
        entry = _entry(artifact, path)
        data = self.check_object(artifact.digest, entry).read_bytes()
        if digest_bytes(data) != entry.digest:
            raise _corrupt(artifact.digest, path, "does not match its digest")
        return data

    def file(self, artifact: Artifact, path: str) -> Path:
        """Where one file's bytes are (read-only, without its name). Raises KeyError for a path it does not
        have."""
        return self.check_object(artifact.digest, _entry(artifact, path))

    def view(self, artifact: Artifact) -> Path:
        """A folder with all files under their names: read-only hard links, or copies where there are none.

        Made once, and made anew when a file in it was replaced, added or lost. Do not write in it.
        """
        from posttrain.artifacts.views import make_view  # late: it imports this module

        return make_view(self, artifact)

    def digests(self) -> Iterator[str]:
        """Every artifact here, in the order of the digests."""
        for path in sorted((self.root / "manifests").glob("??/*.json")):
            yield f"sha256:{path.parent.name}{path.stem}"

    def objects(self) -> Iterator[str]:
        """The digest of every object here, named by an artifact or not."""
        for path in sorted((self.root / "objects").glob("??/*")):
            yield f"sha256:{path.parent.name}{path.name}"

    def matching(self, prefix: str) -> list[str]:
        """Digests of artifacts whose hex digits start with ``prefix`` (at least two digits)."""
        folder = self.root / "manifests" / prefix[:2]
        return sorted(f"sha256:{prefix[:2]}{p.stem}" for p in folder.glob(f"{prefix[2:]}*.json"))

    # -- care --------------------------------------------------------------------------------------

    def verify(self, digest: str | None = None, progress: VerifyProgress | None = None) -> list[Problem]:
        """Derive every digest again, of one artifact or of the whole store; what is wrong, in the order
        found."""
        from posttrain.artifacts.verify import verify_store  # late: it imports this module

        return verify_store(self, digest, progress)

    def remove(self, digest: str) -> None:
        """Forget one artifact: manifest, provenances and view. For the garbage collector, which then removes its
        objects."""
        path = self.manifest_path(digest)
        if path.exists():
            path.unlink()
            sync_folder(path.parent)
        remove_tree(self.provenance_folder(digest))
        remove_tree(self.view_path(digest))

    # -- second home -------------------------------------------------------------------------------

    def mirror(self) -> Mirror:
        """The second home. Raises UsageError when none is set."""
        if self.mirror_url is None:
            raise UsageError(
                "no mirror is set", hint="set POSTTRAIN_MIRROR to an fsspec URL, such as file:///backup"
            )
        from posttrain.artifacts.mirror import Mirror  # late: fsspec loads only where it is used

        return Mirror(self.mirror_url)

    def push(self, digest: str, *, ancestors: bool = False) -> None:
        """Copy an artifact to the mirror, each file hashed first; with ``ancestors``, what it was made from
        too."""
        self.mirror().push(self, digest, ancestors=ancestors)

    def fetch(self, digest: str, *, ancestors: bool = False) -> Artifact:
        """Copy an artifact from the mirror, each file hashed before it is kept."""
        return self.mirror().fetch(self, digest, ancestors=ancestors)


def parse_provenance(name: str, raw: bytes) -> Provenance | None:
    """The provenance that ``raw`` holds under the hex digest ``name``; None where it is damaged."""
    if digest_bytes(raw) != f"sha256:{name}":
        return None
    try:
        return Provenance.from_document(parse_canonical(raw))
    except (ValueError, KeyError, TypeError):
        return None


def parse_manifest(digest: str, raw: bytes, provenance: Sequence[Provenance] = ()) -> Artifact:
    """The artifact that ``raw`` describes, hashed first. Raises CorruptArtifactError or NewerStoreError."""
    if digest_bytes(raw) != digest:
        raise _corrupt(digest, "manifest", "does not match its digest")
    try:
        data = parse_canonical(raw)
        if data["schema"] > MANIFEST_SCHEMA:
            raise NewerStoreError(
                f"artifact {short(digest)} has manifest schema {data['schema']}; "
                f"this posttrain knows up to {MANIFEST_SCHEMA}",
                hint="upgrade posttrain",
            )
        artifact = Artifact.from_manifest(data, provenance)
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(digest, "manifest", f"is not a manifest: {error}") from error
    return artifact


def _corrupt(digest: str, path: str, what: str) -> CorruptArtifactError:
    return CorruptArtifactError(f"artifact {short(digest)}: its file {path!r} {what}", hint=_REPAIR_HINT)


def _entry(artifact: Artifact, path: str) -> FileEntry:
    for entry in artifact.files:
        if entry.path == path:
            return entry
    raise KeyError(f"artifact {short(artifact.digest)} has no file {path!r}")


def _hex(digest: str) -> str:
    if not is_digest(digest):
        raise UnknownReferenceError(
            f"{digest!r} is not an artifact digest", hint="write sha256: and 64 hex digits"
        )
    return digest.removeprefix("sha256:")


def _seal(path: Path) -> None:
    """Make a file read-only, give it the objects' fixed time, and put it on the disk."""
    path.chmod(_OBJECT_MODE)
    os.utime(path, ns=(_OBJECT_MTIME_NS, _OBJECT_MTIME_NS))
    sync_file(path)
