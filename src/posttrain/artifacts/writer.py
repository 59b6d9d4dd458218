"""Staging a new artifact.

Here: the folder in which an artifact's files are put together, and the checks before they are kept. Not here:
how they are kept (``store``). To add a way of putting a file in: a method that goes through
:meth:`ArtifactWriter.path`.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from posttrain.artifacts.records import STATEMENT_KINDS, Artifact, FileEntry, Producer, Provenance
from posttrain.artifacts.weights import refuse_pickle_content, refuse_pickle_names
from posttrain.core.atomic import (
    is_storage_full,
    locked,
    remove_tree,
    storage_errors,
    storage_full,
    unique_name,
)
from posttrain.core.canonical import canonical_json, digest_file
from posttrain.core.errors import StorageFullError

if TYPE_CHECKING:
    from posttrain.artifacts.store import ArtifactStore


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file in ``tmp/``, hashed, and about to become an object."""

    source: Path
    entry: FileEntry


class ArtifactWriter:
    """Puts an artifact together in a private folder. Use as a context manager; one thread at a time.

    Nothing is visible before :meth:`commit` returns; leaving the block in any other way removes the folder. A
    full disk inside the block becomes StorageFullError, whoever wrote.
    """

    def __init__(
        self,
        store: ArtifactStore,
        kind: str,
        *,
        meta: Mapping[str, Any],
        inputs: Mapping[str, str],
        producer: Producer | None,
        facts: Mapping[str, Any],
    ) -> None:
        self._store = store
        self._kind = kind
        self._producer = producer
        self._resources = contextlib.ExitStack()
        self.meta: dict[str, Any] = dict(meta)
        """Small JSON facts; may be extended until the commit."""
        self.inputs: dict[str, str] = dict(inputs)
        """Lineage, input name to artifact digest; may be extended until the commit."""
        self.facts: dict[str, Any] = dict(facts)
        """Facts of the making, kept in the provenance; may be extended until the commit."""
        self.directory: Path = store.temporary / unique_name()
        """The staging folder: every regular file in it becomes a file of the artifact."""
        with storage_errors(store.root):
            self.directory.mkdir()
        # Held as long as this process lives, so that nobody takes the folder for a dead one's.
        self._resources.enter_context(locked(self.directory, exclusive=False))

    def __enter__(self) -> ArtifactWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if (
            isinstance(error, Exception)
            and not isinstance(error, StorageFullError)
            and is_storage_full(error)
        ):
            raise storage_full(self._store.root) from error

    def close(self) -> None:
        """Remove what is staged; after a commit there is nothing left to remove."""
        self._resources.close()
        remove_tree(self.directory)

    def path(self, name: str) -> Path:
        """Where to write the file ``name``; its folder is made. Raises ValueError for a path that leaves the
        artifact."""
        parts = PurePosixPath(name)
        if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name or parts == PurePosixPath():
            raise ValueError(f"artifact file path {name!r} must be relative and stay inside the artifact")
        target = self.directory / parts
        with storage_errors(self._store.root):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def add_bytes(self, name: str, data: bytes) -> None:
        """Write ``data`` as the file ``name``."""
        with storage_errors(self._store.root):
            self.path(name).write_bytes(data)

    def add_json(self, name: str, value: Any) -> None:
        """Write ``value`` as canonical JSON and a line feed, as the file ``name``."""
        self.add_bytes(name, canonical_json(value) + b"\n")

    def add_file(self, name: str, source: Path) -> None:
        """Copy the file ``source`` (through a symbolic link) as the file ``name``."""
        with storage_errors(self._store.root):
            shutil.copyfile(source, self.path(name))

    def add_tree(self, folder: Path, prefix: str = "") -> None:
        """Copy every file below ``folder``, under ``prefix``; symbolic links to files are followed, to
        folders refused."""
        for source in sorted(folder.rglob("*")):
            if source.is_symlink() and source.is_dir():
                raise ValueError(f"{source} is a symbolic link to a folder; give the folder itself")
            if not source.is_dir():
                self.add_file(
                    (PurePosixPath(prefix) / source.relative_to(folder).as_posix()).as_posix(), source
                )

    def commit(self) -> Artifact:
        """Keep the artifact and return it as it reads back.

        Raises ModelError for pickled weights, ValueError for anything that is not a regular file or meta that
        JSON cannot carry, StorageFullError. The writer cannot be used again.
        """
        try:
            with storage_errors(self._store.root):
                staged = [
                    StagedFile(source, _staged_entry(self._kind, source, name))
                    for name, source in sorted(self._staged_paths().items())
                ]
            stated = self._kind in STATEMENT_KINDS
            made = Provenance({} if stated else self.inputs, self._producer, self.facts)
            artifact = Artifact(
                kind=self._kind,
                files=tuple(file.entry for file in staged),
                meta=self.meta,
                about=self.inputs if stated else {},
                provenance=(made,) if made != Provenance() else (),
            )
            return self._store.publish(artifact, staged)
        finally:
            self.close()

    def _staged_paths(self) -> dict[str, Path]:
        """File name in the artifact to staged path, names checked."""
        if not self.directory.is_dir():
            raise ValueError("this artifact writer is closed; open a new one")
        found: dict[str, Path] = {}
        for path in self.directory.rglob("*"):
            name = path.relative_to(self.directory).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[name] = path
            elif not stat.S_ISDIR(mode):
                raise ValueError(
                    f"{name!r} is neither a file nor a folder; an artifact holds regular files only"
                )
        refuse_pickle_names(self._kind, sorted(found))
        return found


def _staged_entry(kind: str, source: Path, name: str) -> FileEntry:
    refuse_pickle_content(kind, name, source)
    if source.stat().st_nlink > 1:
        # Somebody linked it here: keep a copy, so that a write to the other name does not change the
        # artifact.
        own = source.with_name(unique_name())
        shutil.copyfile(source, own)
        own.replace(source)
    return FileEntry(path=name, digest=digest_file(source), size_bytes=source.stat().st_size)
