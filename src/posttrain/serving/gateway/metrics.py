"""What a worker counts.

Here: counters, and their Prometheus text. Not here: what control makes of them. Labels come from the snapshot only,
never from what clients send, so that nobody can make the page grow.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

BOUNDS: Final[tuple[float, ...]] = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
)
"""Upper ends of the latency buckets, seconds."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


def milliseconds(seconds: float) -> float:
    """For a row, to the microsecond; ``round`` takes ten times as long, by way of decimal digits."""
    return int(seconds * 1e6 + 0.5) / 1000


class CellKey(NamedTuple):
    """Whose requests a cell counts."""

    route: str
    lane: str
    arm: str
    target: str


class Cell:
    """The counts of one target in one role, since the worker started."""

    __slots__ = (
        "buckets",
        "cancelled",
        "completion_tokens",
        "errors",
        "key",
        "prompt_tokens",
        "requests",
        "seconds",
        "shed",
        "statuses",
    )

    def __init__(self, key: CellKey) -> None:
        self.key = key
        self.requests = 0
        """Ended, however they ended."""
        self.errors = 0
        """Ended with a status of 500 and above, or cut off in the middle."""
        self.shed = 0
        self.cancelled = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.seconds = 0.0
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BOUNDS) + 1)

    def count(self, status: int, finish: str, seconds: float) -> None:
        """A request ended."""
        self.requests += 1
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        if finish == "shed":
            self.shed += 1
        elif finish == "cancelled":
            self.cancelled += 1
        elif finish == "error" and (status >= 500 or status == 200):
            self.errors += 1

    def to_json(self) -> dict[str, Any]:
        """For control."""
        return {
            **self.key._asdict(),
            "requests": self.requests,
            "errors": self.errors,
            "shed": self.shed,
            "cancelled": self.cancelled,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(self.seconds, 3),
        }


class Metrics:
    """All counts of a worker."""

    def __init__(self) -> None:
        self.cells: dict[CellKey, Cell] = {}
        self.refused: Counter[tuple[int, str]] = Counter()
        """Answered before they were accepted, by status and code."""
        self.retries = 0
        """Upstream calls beyond the first of their request."""
        self.routed: Counter[tuple[str, str, str]] = Counter()
        """Choices among the targets of a route, by route, what decided, and target."""
        self.feedback = 0
        self.shadow_queued = 0
        self.shadow_dropped = 0
        self.shadow_failed = 0
        self.lost_rows = 0
        """Rows that could not be written, under ``on_full: shed``."""

    def cell(self, key: CellKey) -> Cell:
        """The counts of a target in a role."""
        found = self.cells.get(key)
        if found is None:
            found = self.cells[key] = Cell(key)
        return found


class Gauge(NamedTuple):
    """A value that is read when the page is made."""

    name: str
    help: str
    values: Mapping[str, float]
    """By labels as they are written, ``""`` for none."""
    kind: str = "gauge"


def rss_bytes() -> int:
    """Memory of this process."""
    try:
        with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123 - a pseudo file, read ten times a second
            return int(stream.read().split()[1]) * _PAGE
    except OSError:
        return 0


def exposition(metrics: Metrics, gauges: Iterable[Gauge]) -> bytes:
    """The Prometheus text."""
    lines: list[str] = []
    for gauge in (*_counters(metrics), *gauges):
        lines.append(f"# HELP posttrain_gateway_{gauge.name} {gauge.help}")
        lines.append(f"# TYPE posttrain_gateway_{gauge.name} {gauge.kind}")
        for labels, value in gauge.values.items():
            braces = f"{{{labels}}}" if labels else ""
            lines.append(f"posttrain_gateway_{gauge.name}{braces} {value:.15g}")
    lines.extend(_histogram(metrics))
    return "\n".join(lines).encode() + b"\n"


def labels(**values: object) -> str:
    """``a="b",c="d"``."""
    return ",".join(f'{name}="{_escape(str(value))}"' for name, value in values.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _counters(metrics: Metrics) -> Iterator[Gauge]:
    cells = metrics.cells.values()
    yield Gauge(
        "requests_total",
        "Accepted requests that ended; status 0: the client left before an answer.",
        {
            labels(**cell.key._asdict(), status=status): count
            for cell in cells
            for status, count in sorted(cell.statuses.items())
        },
        "counter",
    )
    for name, help_ in (
        ("errors", "Accepted requests that failed."),
        ("cancelled", "Accepted requests whose client left."),
        ("shed", "Requests refused by back-pressure."),
        ("prompt_tokens", "Tokens read, as upstreams count."),
        ("completion_tokens", "Tokens written, as upstreams count."),
    ):
        values = {labels(**cell.key._asdict()): float(getattr(cell, name)) for cell in cells}
        yield Gauge(f"{name}_total", help_, values, "counter")
    refused = {labels(status=status, code=code): n for (status, code), n in sorted(metrics.refused.items())}
    yield Gauge("refused_total", "Requests refused before they were accepted.", refused, "counter")
    choices = {
        labels(route=route, by=by, target=target): n
        for (route, by, target), n in sorted(metrics.routed.items())
    }
    yield Gauge("routed_total", "Who answered for production, by what decided.", choices, "counter")
    for name, help_ in (
        ("retries", "Upstream calls beyond the first of their request."),
        ("feedback", "Feedback taken."),
        ("shadow_queued", "Shadow copies taken."),
        ("shadow_dropped", "Shadow copies dropped because their queue was full."),
        ("shadow_failed", "Shadow copies that got no answer."),
        ("lost_rows", "Rows that could not be written."),
    ):
        yield Gauge(f"{name}_total", help_, {"": getattr(metrics, name)}, "counter")


def _histogram(metrics: Metrics) -> Iterator[str]:
    name = "posttrain_gateway_latency_seconds"
    yield f"# HELP {name} From acceptance to the last byte of the answer."
    yield f"# TYPE {name} histogram"
    for cell in metrics.cells.values():
        own, total = labels(**cell.key._asdict()), 0
        for bound, count in zip((*BOUNDS, "+Inf"), cell.buckets, strict=True):
            total += count
            yield f'{name}_bucket{{{own},le="{bound}"}} {total}'
        yield f"{name}_sum{{{own}}} {cell.seconds:.6f}"
        yield f"{name}_count{{{own}}} {total}"
