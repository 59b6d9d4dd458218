"""Who writes the segments of an owner: a lock that the kernel frees when its holder dies.

Here: taking it, asking whether somebody holds it. Not here: what is written (``segments``). Locks are ``flock`` on
``OWNER.lock``; a forked child of the holder would share it, so the writer gives its copy up in every child.

Not covered: folders shared between machines over a network file system without ``flock``.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from posttrain.traffic.errors import TrafficLogError


def lock_path(folder: Path, owner: str) -> Path:
    """The lock of an owner's segments."""
    return folder / f"{owner}.lock"


def take_owner(folder: Path, owner: str) -> int | None:
    """The descriptor that holds the lock until it is closed or this process dies; None where another holds it."""
    descriptor = os.open(lock_path(folder, owner), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise TrafficLogError(f"cannot lock {lock_path(folder, owner)}: {error.strerror}") from error
    return descriptor


def is_alive(folder: Path, owner: str) -> bool:
    """Whether a writer of this owner runs now."""
    try:
        descriptor = os.open(lock_path(folder, owner), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for the writer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
