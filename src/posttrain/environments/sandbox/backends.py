"""How the keeper gets into its outer sandbox: bubblewrap, or namespaces alone.

Here: the command of each, and which of them is there. Not here: the inner confinement of each run, which is the same
for both (``guest.confine``). To add one: a command in ``_COMMANDS``, a name in ``config.Backend``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from posttrain.environments.sandbox.config import Backend
from posttrain.environments.sandbox.guest.enter import is_root
from posttrain.environments.sandbox.runtime import RuntimeView, python_view

_ROOM = str(Path(__file__).resolve().parent)
_FLAGS = ("-s", "-S", "-P", "-B")
_FIRST_USER = 0x6F000000
"""Where the caller is root, keepers become users from here on, who own nothing."""
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from guest import enter, serve; del sys.path[0]; "


def launch_command(backend: Backend, number: int, stage: str) -> list[str]:
    """The command that starts a keeper as worker ``number``; ``stage`` is an empty folder."""
    return _COMMANDS[backend](python_view(), str(_FIRST_USER + number), stage)


def missing(backend: Backend) -> str:
    """What is not installed for a backend; empty where all is."""
    if not sys.platform.startswith("linux"):
        return "not Linux"
    return "bwrap is not installed" if backend == "bubblewrap" and shutil.which("bwrap") is None else ""


def _namespaces(view: RuntimeView, user: str, stage: str) -> list[str]:
    mounts = {
        "stage": stage,
        "links": view.links,
        "binds": view.binds,
        "devices": view.devices,
        "masks": view.masks,
        "folders": view.folders,
    }
    return [sys.executable, *_FLAGS, "-c", _START + "enter.main()", _ROOM, json.dumps(mounts), user]


def _bubblewrap(view: RuntimeView, user: str, stage: str) -> list[str]:
    del stage  # bubblewrap has its own
    program = shutil.which("bwrap") or "bwrap"
    command = [
        program,
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    command += ["--as-pid-1", "--new-session", "--cap-drop", "ALL"]
    if is_root():
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # to stop being root
    else:
        command += ["--unshare-user", "--uid", str(os.getuid() or 1000), "--gid", str(os.getgid() or 1000)]
    for path, target in view.links:
        command += ["--symlink", target, path]
    for path in sorted(
        {str(parent) for bind in (*view.binds, *view.devices) for parent in Path(bind).parents}
    ):
        command += ["--dir", path]  # bubblewrap would make a parent as closed as it is here, to root alone
    for path in view.binds:
        command += ["--ro-bind", path, path]
    for path in view.devices:
        command += ["--dev-bind", path, path]
    for path in view.masks:
        command += ["--tmpfs", path, "--remount-ro", path]
    for path in view.folders:
        command += ["--dir", path]
    command += [
        "--bind",
        "/proc",
        "/proc",
        "--ro-bind",
        f"{_ROOM}/guest",
        "/keeper/guest",
        "--remount-ro",
        "/",
    ]
    start = _START + f"enter.become({user}); serve.main()"
    return [*command, "--chdir", "/", "--", view.executable, *_FLAGS, "-c", start, "/keeper"]


_COMMANDS = {"bubblewrap": _bubblewrap, "namespaces": _namespaces}
