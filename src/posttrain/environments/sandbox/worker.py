"""One keeper process seen from outside: start, hand out a program, read the answer, kill.

Here: the pipe to a single keeper. Not here: which worker gets what (``pool``), or the keeper's inside (``guest``).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from posttrain.environments.sandbox.backends import launch_command
from posttrain.environments.sandbox.config import Backend, SandboxConfig
from posttrain.environments.sandbox.guest.serve import READY
from posttrain.environments.sandbox.records import Program, RunResult, SandboxRun, StoppedBy

START_LIMIT_SECONDS = 60.0
"""How long a keeper may take to start, on a machine that may be busy."""
_ANSWER_GRACE_SECONDS = 20.0
_BY_SIGNAL: dict[int, StoppedBy] = {
    signal.SIGXCPU: "cpu",
    signal.SIGXFSZ: "file_size",
    signal.SIGKILL: "memory",  # of the kernel, since the keeper's own kills are reported as such
}
_ENVIRONMENT = {
    "HOME": "/box",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PATH": "/nowhere",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "TMPDIR": "/box",
    "TZ": "UTC",
}
"""All that a program sees of an environment."""


class KeeperDied(Exception):
    """The keeper is not there, or does not answer as it should."""


class Worker:
    """A running keeper. Not for two threads at once."""

    def __init__(self, backend: Backend, number: int) -> None:
        self._stage = tempfile.mkdtemp(prefix="posttrain-box-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            launch_command(backend, number, self._stage),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_ENVIRONMENT,
            cwd="/",
            process_group=0,  # Ctrl-C in a terminal goes to the host's side alone
        )
        self._keeper: int | None = None
        try:
            ready = self._read_message(time.monotonic() + START_LIMIT_SECONDS)
            self.keeper_pid: int = ready[READY]
            """Process id of the keeper itself, which may be a child of what was started."""
            self._keeper = os.pidfd_open(self.keeper_pid)
            self._remove_stage()  # the keeper's root has moved on, and nobody may be there to do it later
        except (KeeperDied, OSError) as error:
            words = self._last_words()
            self.kill()
            raise KeeperDied(words or str(error)) from None

    def run(self, program: Program, config: SandboxConfig) -> SandboxRun:
        """Run one program. Raises KeeperDied where this worker is of no more use."""
        order = {
            **config.order(),
            "entry": program.entry,
            "stdin": program.stdin,
            "files_sent": [[name, len(data)] for name, data in program.files.items()],
        }
        head = json.dumps(order).encode()
        self._write(struct.pack("!I", len(head)) + head + b"".join(program.files.values()))
        deadline = time.monotonic() + config.wall_seconds + _ANSWER_GRACE_SECONDS
        answer = self._read_message(deadline)
        out, err = (self._read(answer[name], deadline) for name in ("out", "err"))
        if "failed" in answer:
            return SandboxRun(None, f"the sandbox failed: {answer['failed']}")
        return SandboxRun(_result(answer, out.decode(errors="replace"), err.decode(errors="replace")))

    def kill(self) -> None:
        """End the keeper and all that it started, at once; safe to call again."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        if self._keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._keeper, signal.SIGKILL)
            os.close(self._keeper)
            self._keeper = None
        self._process.kill()
        self._process.wait()
        self._errors.close()
        self._remove_stage()

    def _remove_stage(self) -> None:
        with contextlib.suppress(OSError):
            Path(self._stage).rmdir()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise KeeperDied("the sandbox's keeper has ended") from None

    def _read_message(self, deadline: float) -> dict[str, Any]:
        length = struct.unpack("!I", self._read(4, deadline))[0]
        message: dict[str, Any] = json.loads(self._read(length, deadline))
        return message

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        waiter = select.poll()
        waiter.register(descriptor, select.POLLIN)
        data = b""
        while len(data) < size:
            if not waiter.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise KeeperDied("the sandbox's keeper did not answer in time")
            if not (part := os.read(descriptor, size - len(data))):
                raise KeeperDied("the sandbox's keeper has ended")
            data += part
        return data

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _result(answer: dict[str, Any], out: str, err: str) -> RunResult:
    code, number = answer.get("exit_code"), answer.get("signal")
    stopped: StoppedBy | None = None
    if answer.get("timed_out"):
        stopped = "wall_clock"
    elif number is not None:
        stopped = _BY_SIGNAL.get(number, "signal")
    elif code and err.rstrip().rsplit("\n", 1)[-1].startswith("MemoryError"):
        stopped = "memory"
    return RunResult(
        exit_code=code if stopped is None else None,
        signal=number,
        stopped_by=stopped,
        stdout=out,
        stderr=err,
        output_truncated=answer["truncated"],
        seconds=answer["seconds"],
        cpu_seconds=answer.get("cpu_seconds"),
        memory_bytes=answer.get("memory_bytes"),
    )
