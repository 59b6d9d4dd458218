"""``python -m tests.environments.ordinary_user BACKEND [root-by-name]``: a program, as an ordinary user.

Where Python itself lies in a folder that only root may enter, that folder is opened in a mount namespace of this
process alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from posttrain.environments.sandbox import Program, Sandbox, SandboxConfig, why_not
from posttrain.environments.sandbox.guest import kernel

NOBODY = 65534


def open_up(prefix: Path) -> None:
    """Make ``prefix`` reachable for everyone, for this process and its children only."""
    closed = [folder for folder in (*reversed(prefix.parents), prefix) if not folder.stat().st_mode & 0o001]
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("/", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    if closed:
        aside = tempfile.mkdtemp()
        kernel.mount(str(prefix), aside, None, kernel.MS_BIND)
        kernel.mount("open", str(closed[0]), "tmpfs", 0, data="mode=0755")
        prefix.mkdir(parents=True)
        kernel.mount(aside, str(prefix), None, kernel.MS_BIND)


def main(backend: str, *, root_by_name: bool) -> None:
    if os.geteuid() == 0:
        open_up(Path(sys.base_prefix).resolve())
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    user, group = os.getuid(), os.getgid()
    if root_by_name:  # as in a rootless container
        kernel.unshare(kernel.CLONE_NEWUSER)
        kernel.map_user(0, user, group)
    os.environ["TMPDIR"] = "/tmp"
    if reason := why_not(backend):
        sys.stdout.write(f"cannot: {reason}\n")
        return
    with Sandbox(
        SandboxConfig.model_validate({"backend": backend, "memory_mib": 64, "processes": 4})
    ) as sandbox:
        source = b"""
import os, threading, time
print(os.getuid(), os.path.exists('/etc/passwd'), os.listdir('/proc'))
try: open('/box/../etc/new', 'w')
except OSError as error: print(type(error).__name__)
try: [threading.Thread(target=time.sleep, args=(0.2,), daemon=True).start() for _ in range(50)]
except RuntimeError: print('no more threads')
"""
        run = sandbox.run(Program({"main.py": source}))
        sys.stdout.write(f"user {user} {run.result.stdout if run.result else run.reason}\n")


if __name__ == "__main__":
    main(sys.argv[1], root_by_name=sys.argv[2:] == ["root-by-name"])
