"""Entering the outer sandbox without bubblewrap: namespaces, a new root, an unprivileged user.

Here: what bubblewrap would do, for ``view``, a list of mounts made by the host's side (``sandbox.runtime``). Works as
root, and as any user where user namespaces are allowed. Needs Linux 5.12. Not here: the keeper that runs inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any, NoReturn

from . import kernel, serve

_FALLBACK_USER = 65534
_INSIDE_USER = 1000
_OUTER = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
)


def main() -> NoReturn:
    """``python -c … VIEW USER`` with a JSON view: enter, and become the keeper."""
    view, user = json.loads(sys.argv[1]), int(sys.argv[2])
    try:
        _enter(view)
        keeper = os.fork()
    except (OSError, KeyError) as error:
        os.write(2, f"cannot isolate: {error}\n".encode())
        os._exit(3)
    if keeper == 0:
        become(user)
        serve.main()
    for end in (0, 1):
        os.close(end)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1]) & 0xFF)


def become(user: int) -> None:
    """Stop being root: a user that owns nothing. Nothing to do for anyone else."""
    if os.getuid() != 0 or user == 0:
        return
    with contextlib.suppress(
        PermissionError
    ):  # a namespace in which groups cannot be changed has none to lose
        os.setgroups([])
    for number in (user, _FALLBACK_USER):
        with contextlib.suppress(OSError):  # a number that a container does not have
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or /proc/self, and with it the user map, stays root's
            return
    raise OSError(f"cannot become user {user} or {_FALLBACK_USER}")


def is_root() -> bool:
    """Whether this process can become other users: not so for a user 0 who is the only one of its namespace."""
    if os.getuid() != 0:
        return False
    with open("/proc/self/uid_map") as stream:  # noqa: PTH123 - the guest stays free of pathlib
        return sum(int(line.split()[2]) for line in stream) > 1


def _enter(view: dict[str, Any]) -> None:
    user, group = os.getuid(), os.getgid()
    if is_root():
        kernel.unshare(_OUTER)
    else:
        kernel.unshare(_OUTER | kernel.CLONE_NEWUSER)
        kernel.map_user(user or _INSIDE_USER, user, group)
    kernel.mount("/", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    root = view["stage"]
    kernel.mount("root", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, data="size=1m,mode=0755")
    for path, target in view["links"]:
        os.symlink(target, root + path)  # noqa: PTH211 - the guest stays free of pathlib
    for path in view["binds"]:
        _bind(path, root + path)
        kernel.make_read_only(root + path)
    for path in view["devices"]:
        _bind(path, root + path)
    for path in view["masks"]:
        flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("nothing", root + path, "tmpfs", flags, data="size=4k,mode=0555")
    for path in view["folders"]:
        os.makedirs(root + path, exist_ok=True)  # noqa: PTH103 - the guest stays free of pathlib
    _bind("/proc", root + "/proc")
    flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("root", root, None, flags)
    kernel.enter_root(root)


def _bind(source: str, target: str) -> None:
    os.makedirs(target if os.path.isdir(source) else os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH112, PTH120
    if not os.path.isdir(source):  # noqa: PTH112
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
