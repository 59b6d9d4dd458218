"""Durable file writes: whole or not at all, and on the disk when the call returns.

Here: write-then-rename, fsync of a file and of its folder, advisory locks between processes, and the one
place that knows what a full disk looks like. Not here: what is written (``artifacts``). To add a helper: it
must leave nothing behind when it raises.

Covered: a kill, a crash or a power cut at any instant, on a file system that honours fsync. Not covered:
network file systems whose rename or flock is not atomic between machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from posttrain.core.errors import StorageFullError, StoreError

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# How writers that raise no OSError say it: Rust, Arrow and SQLite.
_FULL_TEXTS = (
    os.strerror(errno.ENOSPC),
    os.strerror(errno.EDQUOT),
    f"(os error {errno.EFBIG})",
    "database or disk is full",
)
# What a file system without hard links, or a file with too many of them, answers to link(2).
_NO_LINK_ERRNOS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
# What a file system that cannot sync a folder answers to fsync(2); there is nothing more to do on such a one.
_NO_SYNC_ERRNOS = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def is_storage_full(error: BaseException) -> bool:
    """Whether ``error``, or what caused it, is a full disk, a used-up quota or a file-size limit.

    Libraries written in other languages (safetensors, Arrow, SQLite) report it as text without an errno, so
    the operating system's own words are looked for too.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StorageFullError) or (isinstance(seen, OSError) and seen.errno in _FULL_ERRNOS):
            return True
        if any(words in str(seen) for words in _FULL_TEXTS):
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


def storage_full(folder: Path) -> StorageFullError:
    """The error to raise when a write below ``folder`` found no space."""
    return StorageFullError(
        f"no space left to write in {folder}; nothing half-written was kept",
        hint="free some space there, or set POSTTRAIN_HOME to a folder on a larger disk",
    )


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk inside the block into StorageFullError; everything else passes unchanged."""
    try:
        yield
    except StorageFullError:
        raise
    except Exception as error:  # a boundary: foreign writers raise their own classes for a full disk
        if is_storage_full(error):
            raise storage_full(folder) from error
        raise


def unique_name() -> str:
    """A name that no other process and no other call picks."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def sync_file(path: Path) -> None:
    """Put a file's bytes and metadata on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Put a folder's entries on the disk: what makes a rename or a new file survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_ERRNOS:
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents, each one durable; an existing folder is fine."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes, *, scratch: Path | None = None, mode: int = 0o644) -> None:
    """Write ``data`` to ``path``, replacing what is there; readers see the old bytes or all of the new ones.

    ``scratch`` is a folder on the same file system for the temporary file; default: the target's own folder.
    The target's folder is made when missing. Raises StorageFullError, with nothing left behind.
    """
    make_folder(path.parent)
    temporary = (scratch or path.parent) / f".{unique_name()}.part"
    with storage_errors(path.parent):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def move_new(source: Path, target: Path) -> bool:
    """Give ``source`` the name ``target`` unless something has that name; True where this call did it.

    Whole or not at all, and of several processes exactly one wins. ``source`` is gone afterwards. The caller
    syncs the file before and the folder after. On a file system without hard links a later caller replaces an
    earlier one.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        source.unlink()
        return False
    except OSError as error:
        if error.errno not in _NO_LINK_ERRNOS:
            raise
        source.replace(target)
        return True
    source.unlink()
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``source``'s bytes a second name: a hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK_ERRNOS:
            raise
        shutil.copy2(source, target)


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with everything in it, read-only folders too; nothing there is fine."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        mode = stat.S_IMODE(Path(folder).stat().st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            Path(folder).chmod(mode | stat.S_IRWXU)
    shutil.rmtree(path)


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool, wait: bool = True) -> Iterator[bool]:
    """Hold an advisory lock on the file or folder ``path``; yields False where ``wait`` is off and another
    has it.

    A file is made when missing and never removed. Any number of holders share a lock that is not exclusive;
    the system releases it when a holder dies. Locking twice in one process waits for itself when either is
    exclusive.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_CREAT
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"cannot open the lock {path}: {error.strerror}") from error
    try:
        operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(descriptor, operation if wait else operation | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
