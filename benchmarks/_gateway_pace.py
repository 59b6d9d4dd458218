"""Requests that begin at a fixed rate, whatever the answers do: the other load generator of the gateway benchmark.

Here: ``python -m benchmarks._gateway_pace PORT CONNECTIONS RATE SECONDS``. Request ``i`` is due ``i / RATE`` seconds
after the start, and its time runs from then until it is answered. One that finds every connection busy waits, and the
wait counts, so slow answers hide none of the requests that they held up (no coordinated omission). So does the lateness
of this process itself; it is told apart as ``late``.

One thread and ``select`` over blocking sockets: event loops round their timers to milliseconds, which at 4,000 a second
would be four requests at once. It never spins: it shares the cores with what it measures.
Not covered: streams, arrivals in bursts.
"""

from __future__ import annotations

import contextlib
import gc
import json
import select
import socket
import sys
import time
from collections import deque

from benchmarks._gateway_ends import answer_size, percentile, question

_PATIENCE = 1.25
"""No request begins after this many times the planned seconds; whoever is that far behind has not kept the rate."""
_HANG_SECONDS = 10.0
"""Without any answer for so long, those under way are given up."""


class Pace:
    """Which request is due on which connection, and how long each took. Seconds since the start; reads no clock."""

    def __init__(self, rate: float, requests: int, connections: int) -> None:
        self.rate = rate
        self.requests = requests
        """How many are to begin."""
        self.begun = 0
        self.failed = 0
        self.waited = 0
        """Requests that found no idle connection when they were due."""
        self.times: list[float] = []
        """From due to answered."""
        self.late: list[float] = []
        """From when a request could have begun to when it did: what the generator itself added."""
        self._idle = deque(range(connections))
        self._due = dict.fromkeys(
            range(connections), 0.0
        )  # of the request under way; a lost connection has none
        self._freed = 0.0  # when a connection became idle and none was
        self._last = 0.0

    def is_over(self) -> bool:
        """Every request has begun and every connection is idle, or all are lost."""
        return not self._due or (self.begun >= self.requests and len(self._idle) == len(self._due))

    def begin(self, now: float) -> int | None:
        """The connection for the next request, which is then under way; ``None`` if none is due or none is idle."""
        due = self.begun / self.rate
        if due > now or not self._idle or self.begun >= self.requests:
            return None
        connection = self._idle.popleft()
        self._due[connection] = due
        self.begun += 1
        self.waited += self._freed > due
        self.late.append(now - max(due, self._freed))
        return connection

    def sleep_seconds(self, now: float) -> float | None:
        """Until ``begin`` has something to do again; ``None`` if only an answer can change that."""
        if not self._idle or self.begun >= self.requests:
            return None
        return max(0.0, self.begun / self.rate - now)

    def answered(self, connection: int, now: float, well: bool) -> None:
        """The request on ``connection`` is done, and the next may use it."""
        self.times.append(now - self._due[connection])
        self.failed += not well
        self._last = now
        if not self._idle:
            self._freed = now
        self._idle.append(connection)

    def lose(self, connection: int) -> None:
        """The connection is gone, with what was under way on it."""
        self.failed += 1
        del self._due[connection]
        if connection in self._idle:
            self._idle.remove(connection)

    def stop(self) -> None:
        """Begin no more."""
        self.requests = self.begun

    def give_up(self) -> None:
        """What is under way will not be answered: it is over."""
        self.failed += len(self._due) - len(self._idle)
        self._due.clear()

    def result(self) -> dict[str, float]:
        """What was measured. ``kept`` is the rate of answers until the last one, as a share of the rate asked for."""
        times, late = sorted(self.times), sorted(self.late)
        seconds = max(self._last, self.requests / self.rate)
        return {
            "requests": len(times),
            "seconds": seconds,
            "kept": len(times) / (self.rate * seconds),
            "p50_ms": percentile(times, 0.5) * 1000,
            "p99_ms": percentile(times, 0.99) * 1000,
            "late_p99_ms": percentile(late, 0.99) * 1000,
            "waited": self.waited,
            "failed": self.failed,
        }


class _Connection:
    """A kept connection, and how much of an answer has come."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self._size = 0

    def ask(self, request: bytes) -> None:
        self._data = b""
        self._size = 0
        with contextlib.suppress(ConnectionError):  # `hear` says so
            self.socket.sendall(request)

    def hear(self) -> bool | None:
        """Read what is there: true for a whole answer, ``None`` if the connection has ended."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            return None
        if not data:
            return None
        self._data = data if not self._data else self._data + data
        if not self._size:
            self._size = answer_size(self._data)
        return 0 < self._size <= len(self._data)

    @property
    def is_well(self) -> bool:
        return self._data.startswith(b"HTTP/1.1 200")


def play(port: int, connections: int, rate: float, seconds: float) -> dict[str, float]:
    """Ask at ``rate`` for ``seconds``."""
    request = question(stream=False)
    opened = [_Connection(port) for _ in range(connections)]
    _warm(opened, request)
    numbers = {connection.socket.fileno(): number for number, connection in enumerate(opened)}
    pace = Pace(rate, max(1, round(rate * seconds)), connections)
    start = time.perf_counter()
    while not pace.is_over():
        now = time.perf_counter() - start
        if now > seconds * _PATIENCE:
            pace.stop()
        while (number := pace.begin(now)) is not None:
            opened[number].ask(request)
            now = time.perf_counter() - start
        sleep = pace.sleep_seconds(now)
        # All of them and not only the busy ones: an idle one that can be read was closed.
        ready = select.select(numbers, (), (), _HANG_SECONDS if sleep is None else sleep)[0]
        if not ready and sleep is None:
            pace.give_up()
        for descriptor in ready:
            number = numbers[descriptor]
            is_whole = opened[number].hear()
            if is_whole:
                pace.answered(number, time.perf_counter() - start, opened[number].is_well)
            elif is_whole is None:
                pace.lose(number)
                del numbers[descriptor]
    return pace.result()


def _warm(opened: list[_Connection], request: bytes) -> None:
    """One answer on every connection at once, so that whatever is measured has its own connections too."""
    for connection in opened:
        connection.ask(request)
    for connection in opened:
        while (is_whole := connection.hear()) is not True:
            if is_whole is None:
                raise SystemExit("a connection ended before the start")


def main() -> None:
    """One phase; its figures as JSON."""
    port, connections, rate, seconds = sys.argv[1:]
    gc.disable()  # a collection would be lateness of ours, and nothing here goes round in circles
    print(json.dumps(play(int(port), int(connections), float(rate), float(seconds))), flush=True)


if __name__ == "__main__":
    main()
