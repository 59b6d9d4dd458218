"""Views: an artifact laid out as a folder with its files under their names, for libraries that load a folder.

Here: making a view, and telling a good one from one that was written in. Not here: which views may go
(``gc``). A view can always be made again, so nothing in it is synced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.artifacts.records import Artifact
from posttrain.core.atomic import link_or_copy, remove_tree, storage_errors, unique_name
from posttrain.core.errors import StoreError

if TYPE_CHECKING:
    from posttrain.artifacts.store import ArtifactStore

_ATTEMPTS = 100


def make_view(store: ArtifactStore, artifact: Artifact) -> Path:
    """The artifact's view, made or made anew where it is missing or differs. Several processes may call at
    once."""
    digest = artifact.digest
    target = store.view_path(digest)
    objects = {entry.path: store.check_object(digest, entry) for entry in artifact.files}
    if _matches(target, objects):
        return target
    staging = store.temporary / unique_name()
    with storage_errors(store.root):
        try:
            staging.mkdir()
            for name, source in objects.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, staging / name)
            _put(staging, target, objects)
        finally:
            remove_tree(staging)
    return target


def _put(staging: Path, target: Path, objects: Mapping[str, Path]) -> None:
    for _ in range(_ATTEMPTS):
        try:
            staging.rename(target)
            return
        except OSError:
            # Taken: by a process that made the same view just now, or by a damaged one, moved out of the way.
            if not target.is_dir():
                raise
            if _matches(target, objects):
                return
        aside = staging.with_name(unique_name())
        with contextlib.suppress(FileNotFoundError):  # another process moved it first
            target.rename(aside)
            remove_tree(aside)
    raise StoreError(f"the view {target} is changed by another process all the time", hint="end that process")


def _matches(view: Path, objects: Mapping[str, Path]) -> bool:
    """Whether a view has exactly these files, each the object itself or a copy of its size and time."""
    if not view.is_dir():
        return False
    present = {path.relative_to(view).as_posix(): path for path in view.rglob("*") if not path.is_dir()}
    if present.keys() != objects.keys():
        return False
    for name, source in objects.items():
        ours, theirs = present[name].lstat(), source.stat()
        is_copy = (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
        if not (os.path.samestat(ours, theirs) or is_copy):
            return False
    return True
