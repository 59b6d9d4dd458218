"""The keeper: takes programs from standard input, runs each in namespaces of its own, answers on standard output.

Here: the loop, and reading what a program writes. The keeper has no rights left itself and never runs untrusted code;
each run is a fork of it, so that a run starts without starting Python. When its standard input ends, so does it, and
with it, as process 1 of its own namespace, every process that it started.

Messages, both ways: 4 bytes of length, a JSON object, and the bytes that it announces (``files``, or ``out`` and
``err``).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

from . import confine, kernel

READY = "ready"
_GRACE_SECONDS = 5.0
_CHUNK_BYTES = 1 << 16
_DRAIN_BYTES = 4 << 20
"""So much output beyond its limit is thrown away; then the pipe is closed and writing fails."""
# What programs commonly import, loaded once.
_PRELOAD = (
    "abc ast atexit base64 bisect collections contextlib copy csv ctypes dataclasses datetime decimal "
    "enum fractions functools hashlib heapq inspect io itertools json math operator os pathlib random re "
    "shutil statistics string textwrap threading time traceback types typing uuid"
)


class _Ended(Exception):
    """The host let go."""


def main() -> NoReturn:
    """Serve until the host lets go."""
    for name in _PRELOAD.split():
        __import__(name)
    gc.freeze()  # forks share what was loaded instead of copying it at their first collection
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open("/proc/self/statm") as stream:  # noqa: PTH123 - the guest stays free of pathlib
        address_bytes = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _send({READY: int(os.readlink("/proc/self"))})  # noqa: PTH115 - the host's number of this process
    try:
        while True:
            order, files = _receive()
            order["address_bytes"] = address_bytes + order["memory_bytes"]
            answer, out, err = _run(order, files)
            _send({**answer, "out": len(out), "err": len(err)}, out + err)
    except _Ended:
        os._exit(0)


def _receive() -> tuple[dict[str, Any], dict[str, bytes]]:
    order = json.loads(_read(struct.unpack("!I", _read(4))[0]))
    return order, {name: _read(size) for name, size in order["files_sent"]}


def _read(size: int) -> bytes:
    parts = []
    while size > 0:
        if not (part := os.read(0, min(size, 1 << 20))):
            raise _Ended
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(message: dict[str, Any], data: bytes = b"") -> None:
    head = json.dumps(message).encode()
    rest = memoryview(struct.pack("!I", len(head)) + head + data)
    try:
        while rest:
            rest = rest[os.write(1, rest) :]
    except BrokenPipeError:
        raise _Ended from None


def _run(order: dict[str, Any], files: dict[str, bytes]) -> tuple[dict[str, Any], bytes, bytes]:
    ends = [os.pipe() for _ in range(4)]
    (given, give), (out, out_write), (err, err_write), (status, status_write) = ends
    os.write(
        give, order.pop("stdin").encode()
    )  # at most what a pipe holds; not left where code could look it up
    os.close(give)
    opener = os.fork()
    if opener == 0:
        for number, end in enumerate((given, out_write, err_write)):
            os.dup2(end, number)
        os.dup2(status_write, 3)
        os.closerange(4, 1 << 10)
        confine.open_run(order, files, 3)
    for end in (given, out_write, err_write, status_write):
        os.close(end)
    reader = _Reader(order["output_bytes"], {out: b"", err: b"", status: b""}, status)
    try:
        in_time = reader.read_all(time.monotonic() + order["wall_seconds"] + _GRACE_SECONDS)
    finally:
        if reader.open:
            os.kill(opener, signal.SIGKILL)
        for end in reader.open:
            os.close(end)
        os.waitpid(opener, 0)
    answer: dict[str, Any] = (
        _answer(reader.data[status]) if in_time else {"failed": "the run did not end at its wall clock"}
    )
    return {**answer, "truncated": reader.truncated}, reader.data[out], reader.data[err]


class _Reader:
    """Reads pipes to their ends, keeping so many bytes of each."""

    def __init__(self, limit: int, data: dict[int, bytes], status: int) -> None:
        self.data = data
        self.open = set(data)
        self.truncated = False
        self._limit = limit
        self._status = status
        self._seen = dict.fromkeys(data, 0)

    def read_all(self, deadline: float) -> bool:
        """Whether all ended before the deadline. Raises _Ended where the host let go."""
        poll = select.poll()
        for end in (0, *self.open):
            poll.register(end, select.POLLIN if end else 0)
        while self.open:
            left = deadline - time.monotonic()
            ready = poll.poll(max(0.0, left) * 1000) if left > 0 else []
            if not ready:
                return False
            for end, _ in ready:
                if end == 0:
                    raise _Ended
                if not self._take(end):
                    poll.unregister(end)
                    os.close(end)
                    self.open.discard(end)
        return True

    def _take(self, end: int) -> bool:
        """Whether there is more to come and it is wanted."""
        part = os.read(end, _CHUNK_BYTES)
        self._seen[end] += len(part)
        limit = _CHUNK_BYTES if end == self._status else self._limit
        self.data[end] += part[: max(0, limit - len(self.data[end]))]
        self.truncated |= self._seen[end] > limit
        return bool(part) and self._seen[end] <= limit + _DRAIN_BYTES


def _answer(status: bytes) -> dict[str, Any]:
    if not status:
        return {"failed": "the run ended without a status"}
    answer: dict[str, Any] = json.loads(status)
    return answer


if __name__ == "__main__":
    sys.exit("run by sandbox.worker")
