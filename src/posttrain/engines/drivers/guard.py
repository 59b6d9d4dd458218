"""A small process between us and an engine: when we are gone, so is the engine, with all that it started.

Run as a file, with the standard library alone: ``python -I -S guard.py PARENT GRACE_SECONDS FDS COMMAND…``. It starts
COMMAND in a session of its own, ends that whole process group when PARENT is no longer its parent or when it is told
to (SIGTERM), and returns what COMMAND returned. *Covered*: SIGKILL of the parent, on Linux SIGKILL of this process
too (the engine is then sent SIGTERM); workers that the engine leaves behind. *Not covered*: a process that leaves the
group by a session of its own.

Why not PR_SET_PDEATHSIG in the engine alone: it fires when the *thread* that started the child ends, and drivers are
called from pools of threads; and it reaches one process, while vLLM is several.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.25
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}


def main() -> int:
    """Guard one command; its exit status."""
    parent, grace = int(sys.argv[1]), float(sys.argv[2])
    descriptors = [int(number) for number in sys.argv[3].split(",") if number]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # A blocked signal waits for sigtimedwait; a handler is needed for SIGCHLD not to be dropped.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    child = subprocess.Popen(
        sys.argv[4:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=descriptors,
        preexec_fn=_prepare,  # noqa: PLW1509 - this process has one thread
    )
    for descriptor in descriptors:
        os.close(descriptor)
    while child.poll() is None:
        told = _wait() == signal.SIGTERM
        if told or os.getppid() != parent:
            _end(child, grace)
            break
    _signal(child, signal.SIGKILL)  # what it left behind
    code = child.returncode
    return 128 - code if code < 0 else code


def _prepare() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait() -> int | None:
    """Wait a moment; the signal that came meanwhile."""
    if hasattr(signal, "sigtimedwait"):
        found = signal.sigtimedwait(_SIGNALS, _POLL_SECONDS)
        return None if found is None else found.si_signo
    time.sleep(_POLL_SECONDS)  # macOS: signals stay pending
    return signal.SIGTERM if signal.SIGTERM in signal.sigpending() else None


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    _signal(child, signal.SIGTERM)
    until = time.monotonic() + grace
    while child.poll() is None:
        if time.monotonic() > until:
            _signal(child, signal.SIGKILL)
            child.wait()
            return
        time.sleep(0.02)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main())
