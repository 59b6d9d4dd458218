"""One verifier process seen from outside: start, hand out, read, kill.

Here: what the pool does with a single worker. Not here: which worker gets what (``pool``), or the worker's
inside (``worker``). Processes are started by exec, never by plain fork: the parent may have torch's threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain.rewards.compose import Composed
from posttrain.rewards.records import Sample
from posttrain.rewards.worker import READY, Setup

START_LIMIT_SECONDS = 120.0
"""How long a worker may take to start: it imports sympy, on a machine that may be busy."""
_READ_BYTES = 1 << 18
_SOURCE_ROOT = str(Path(__file__).resolve().parents[2])
# Appended, so that the folder of an installed package never hides the standard library; -P keeps the current
# folder out.
_COMMAND = "import sys; sys.path.append(sys.argv[1]); from posttrain.rewards.worker import main; main()"

State: TypeAlias = Literal["starting", "idle", "busy"]


class WorkerProcess:
    """A running worker. ``in_flight`` holds the indexes that it has and has not answered, in the order it
    works."""

    def __init__(self, reward: Composed, *, timeout_seconds: float, memory_bytes: int) -> None:
        self.timeout_seconds = timeout_seconds
        self.state: State = "starting"
        self.in_flight: deque[int] = deque()
        self.deadline = time.monotonic() + START_LIMIT_SECONDS
        """When the worker is to be killed unless it answers before, in ``time.monotonic`` seconds."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, _SOURCE_ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",
            },  # sympy orders some sets by hash: values must not depend on it
            process_group=0,  # Ctrl-C in a terminal goes to the pool alone
        )
        follow_thread = threading.current_thread() is threading.main_thread()
        self._send(pickle.dumps(Setup(reward, timeout_seconds, memory_bytes, os.getpid(), follow_thread)))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def fileno(self) -> int:
        """File descriptor of its answers, for a selector."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def assign(self, chunk: Sequence[tuple[int, Sample]]) -> bool:
        """Hand out samples; False where the worker turns out to be dead, and then it has none of them."""
        payload = pickle.dumps(list(chunk))
        if self._process.poll() is not None or not self._send(payload):
            return False
        self.in_flight.extend(index for index, _ in chunk)
        self.state = "busy"
        self.deadline = time.monotonic() + self.timeout_seconds
        return True

    def receive(self) -> list[list[Any]] | None:
        """The answers that have arrived (call when readable); None at the end of the worker's output."""
        data = os.read(self.fileno(), _READ_BYTES)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if messages and messages[0] == [READY]:
            del messages[0]
            self.state = "idle"
        for message in messages:
            expected = self.in_flight.popleft()
            assert message[0] == expected, f"a worker answered {message[0]} where {expected} was next"
        if messages:
            self.deadline = time.monotonic() + self.timeout_seconds
            self.state = "busy" if self.in_flight else "idle"
        return messages

    def last_words(self) -> str:
        """The last line that the worker wrote to its standard error."""
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def kill(self) -> int:
        """End this process, by its id, at once. Returns its exit status; safe to call again."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # unsent bytes to a dead process
                stream.close()
        status = self._process.wait()
        self._errors.close()
        return status

    def exit_status(self) -> int | None:
        """The exit status of a worker whose output has ended; None where it still runs after a second."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=1)
        return None

    def _send(self, payload: bytes) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(len(payload).to_bytes(8, "big") + payload)
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True
