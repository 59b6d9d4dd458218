"""From an adapter's reference to files that an engine may load: checked, and then out of anybody's reach.

Here: which folders are accepted, and a private copy whose bytes were hashed while they were copied: what was verified
is what is loaded, whatever happens to the original meanwhile. The copy's path holds the whole digest, so no engine that
remembers paths can mix two. Not here: loading (``adapters``). *Covered*: paths outside the store, ``..``, links that
lead out, devices and pipes, pickles, further files than those of the digest. *Not covered*: an attacker with this
user's own rights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from posttrain.core.atomic import make_folder, remove_tree, sync_file, sync_folder, unique_name
from posttrain.core.canonical import digest_file, digest_json
from posttrain.core.errors import PosttrainError
from posttrain.engines.drivers.records import AdapterRef
from posttrain.engines.errors import ReleaseRefused
from posttrain.engines.lora import CONFIG_FILE, WEIGHTS_FILE, read_lora

_LOADED = (CONFIG_FILE, WEIGHTS_FILE)
"""What engines read; nothing else is given to them."""
_MOST_FILES = 256
_CHUNK_BYTES = 1 << 20


def folder_digest(folder: Path) -> str:
    """The digest of an adapter that is no artifact: of the paths and bytes of all its files."""
    return _digest_of({path: digest_file(folder / path) for path in _walk(folder)})


def stage(adapter: AdapterRef, *, store: Path, staging: Path) -> Path:
    """A folder below ``staging`` with the adapter's files, verified. Raises ReleaseRefused."""
    folder = _inside(adapter, store)
    wanted = adapter.files
    target = staging / adapter.digest.removeprefix("sha256:")
    scratch = staging / f".{unique_name()}"
    make_folder(scratch)
    try:
        found = {}
        for path in sorted(wanted) if wanted is not None else _walk(folder):
            keep = scratch / path if path in _LOADED else None
            found[path] = _copy(adapter, folder / path, keep)
        _check(adapter, found)
        try:
            read_lora(scratch)
        except PosttrainError as error:
            raise _refused(adapter, str(error)) from error
        sync_folder(scratch)
        remove_tree(target)  # of an earlier process: bytes of another day are not trusted
        scratch.replace(target)
    finally:
        remove_tree(scratch)
    return target


def _inside(adapter: AdapterRef, store: Path) -> Path:
    """The adapter's folder without links, inside ``store``."""
    given = adapter.folder
    if ".." in given.parts or "\0" in str(given):
        raise _refused(adapter, f"its folder {given} goes upwards")
    root = store.resolve()
    try:
        folder = (root / given).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _refused(adapter, f"its folder {given} is not there") from error
    if not folder.is_relative_to(root) or folder == root:
        raise _refused(adapter, f"its folder {given} is not inside the store {store}")
    if not folder.is_dir():
        raise _refused(adapter, f"{given} is no folder")
    return folder


def _walk(folder: Path) -> list[str]:
    """Paths of all files below ``folder``; links to folders are not followed."""
    found = sorted(_files(folder))
    return [str(path.relative_to(folder).as_posix()) for path in found]


def _files(folder: Path) -> Iterator[Path]:
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number > _MOST_FILES:
            raise ReleaseRefused(f"{folder} has more than {_MOST_FILES} files, which no adapter has")
        if path.is_symlink() or not path.is_dir():
            yield path


def _copy(adapter: AdapterRef, source: Path, target: Path | None) -> str:
    """The digest of a file's bytes, which are copied on the way."""
    if any(part == ".." for part in source.parts):
        raise _refused(adapter, f"a file {source.name} lies outside its folder")
    try:
        # A last part that is a link is refused by the system itself, and a pipe does not make us wait.
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(adapter, f"{source.name} is missing, or is a link: {error.strerror}") from error
    hasher = hashlib.sha256()
    with os.fdopen(descriptor, "rb") as stream, contextlib.ExitStack() as stack:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _refused(adapter, f"{source.name} is no file")
        out = stack.enter_context(target.open("xb")) if target is not None else None
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
            if out is not None:
                out.write(chunk)
    if target is not None:
        sync_file(target)
    return "sha256:" + hasher.hexdigest()


def _check(adapter: AdapterRef, found: Mapping[str, str]) -> None:
    if missing := [name for name in _LOADED if name not in found]:
        raise _refused(adapter, f"it has no {missing[0]}; only safetensors are loaded")
    if adapter.files is None:
        if (digest := _digest_of(found)) != adapter.digest:
            raise _refused(adapter, f"its files are {digest}, not {adapter.digest}")
        return
    for path, digest in adapter.files.items():
        if found[path] != digest:
            raise _refused(adapter, f"{path} is {found[path]}, not {digest}")


def _digest_of(files: Mapping[str, str]) -> str:
    return digest_json({"files": dict(files)})


def _refused(adapter: AdapterRef, why: str) -> ReleaseRefused:
    return ReleaseRefused(
        f"the adapter {adapter.served_name} is not loaded: {why}", hint="release an adapter from the store"
    )
