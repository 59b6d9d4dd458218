"""Running untrusted Python code.

``Sandbox(config).run(program)`` gives a ``SandboxRun``: what the program did, or why the sandbox could not tell.

*Covered*, by namespaces (user, mount, process, network, IPC, host name), a filter of system calls, and limits:

- files: an own, empty folder in memory, of limited size and number of files; beside it only Python's standard library
  and the machine's shared libraries, read-only. No /proc, /sys, /etc or home; no devices but null, zero, urandom.
- network: none, not even a socket.
- processes: sees only its own; limited in number; all killed with the run, whatever they did to hide; no program of the
  machine can be started.
- memory, CPU time, wall clock, open files, file size, output; shared memory and queues, which no limit counts, are
  refused.
- rights: an unmapped user without capabilities, no new privileges, no new namespaces, no keys, no tracing, no clocks.
- no environment variable, descriptor or standard input of the caller.

*Not covered*: a bug of the kernel; side channels (timing, caches, load); reading the standard library and shared
libraries; the total memory of a run (it is per process, times ``processes``); code that deceives a test which runs in
its own process (see ``evaluation.graders``); machines other than x86-64 and arm64, and arm64 is not run in our tests.
A run's files vanish; its output is untrusted text.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from posttrain.core.errors import MissingDependencyError
from posttrain.environments.sandbox.backends import missing
from posttrain.environments.sandbox.config import Backend, SandboxConfig
from posttrain.environments.sandbox.records import Program, SandboxRun
from posttrain.environments.sandbox.worker import KeeperDied, Worker

BACKENDS: tuple[Backend, ...] = ("bubblewrap", "namespaces")
_PROBE = Program({"main.py": b"import os; print('isolated', os.getuid())"})
_HINT = (
    "apt-get install bubblewrap, or allow user namespaces "
    "(sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000; Linux 5.12 or newer)"
)
_numbers = itertools.count()


class Sandbox:
    """A pool of keepers. Safe for threads; a context manager that ends every process that it started.

    Raises MissingDependencyError on first use where nothing on this machine can isolate.
    """

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self.config = config or SandboxConfig()
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(self.config.workers):
            self._idle.put(None)  # started when it is needed
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """The backend in use."""
        if self._backend is None:
            self._backend = choose_backend(self.config.backend)
        return self._backend

    def run(self, program: Program) -> SandboxRun:
        """Run one program; waits for a free worker."""
        backend = self.backend
        worker = self._idle.get()
        try:
            worker = worker or Worker(backend, next(_numbers))
            return worker.run(program, self.config)
        except KeeperDied as error:
            if worker is not None:
                worker.kill()
            worker = None
            return SandboxRun(None, f"the sandbox failed: {error}")
        except BaseException:  # an answer is half read: the worker is of no more use
            if worker is not None:
                worker.kill()
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def run_all(self, programs: Sequence[Program]) -> list[SandboxRun]:
        """Run programs, as many at once as there are workers; answers in order."""
        if self.config.workers == 1:
            return [self.run(program) for program in programs]
        with ThreadPoolExecutor(self.config.workers) as threads:
            return list(threads.map(self.run, programs))

    def close(self) -> None:
        """End every idle worker; a later run starts afresh."""
        for _ in range(self.config.workers):
            with contextlib.suppress(queue.Empty):
                if (worker := self._idle.get_nowait()) is not None:
                    worker.kill()
                self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def choose_backend(wanted: str = "auto") -> Backend:
    """The backend to use. Raises MissingDependencyError where none that is wanted can isolate."""
    reasons = []
    for backend in _candidates(wanted):
        if not (reason := why_not(backend)):
            return backend
        reasons.append(f"{backend}: {reason}")
    raise MissingDependencyError(
        "nothing here can isolate untrusted code (" + "; ".join(reasons) + ")", hint=_HINT
    )


def why_not(backend: Backend) -> str:
    """Why a backend cannot isolate on this machine, found by trying; empty where it can."""
    if reason := missing(backend):
        return reason
    try:
        worker = Worker(backend, next(_numbers))
    except KeeperDied as error:
        return str(error)
    try:
        run = worker.run(_PROBE, SandboxConfig())
    except KeeperDied as error:
        return str(error)
    finally:
        worker.kill()
    if run.result is None:
        return run.reason
    return "" if run.result.stdout.startswith("isolated 1000") else run.result.stderr.strip()[-300:]


def _candidates(wanted: str) -> Iterator[Backend]:
    return (backend for backend in BACKENDS if wanted in ("auto", backend))
