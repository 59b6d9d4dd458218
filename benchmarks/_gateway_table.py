"""What the gateway benchmark prints: rows against every peer, a table of the paced phases, and notes.

Here: arithmetic over what was measured, by target and round; the names of the targets. Not here: measuring
(``gateway``). To add a target: its name in ``_NAMES``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from benchmarks import Row

CONNECTIONS = (1, 16, 64)
"""Of the phases that ask again as soon as they are answered."""
PACED_CONNECTIONS = 16
KEPT = 0.97
"""The share of a rate below which it is not kept; how long requests took then depends on how long one measures."""
_NAMES = {
    "direct": "no gateway",
    "interpreted": "gateway (interpreted)",
    "vllm": "vllm-router",
    "sglang": "sglang-router",
}
_AIMS = (
    "aims on an idle machine: 50 us CPU a request, 10,000 requests a second and core, added p99 of 1 ms at c=16, "
    "15 us CPU a chunk, 80 MB"
)
_HEADER = ("target", "a second", "kept", "p50 ms", "p99 ms", "added p50", "added p99", "us CPU")

Measured: TypeAlias = Mapping[str, Sequence[Mapping[str, float]]]
"""By target: what each round measured, by name."""


@dataclass(frozen=True, slots=True)
class Paced:
    """One target at one rate: medians over the rounds."""

    target: str
    """As printed."""
    rate: int
    """Requests a second that were due."""
    kept: float
    """The share of them that was achieved."""
    is_kept: bool
    """Whether that is ``KEPT`` or more; if not, there is no latency."""
    p50_ms: float | None
    p99_ms: float | None
    added_p50_ms: float | None
    """Above the bare upstream in the same round; ``None`` too if the upstream did not keep the rate, and for itself."""
    added_p99_ms: float | None
    cpu_us: float | None
    """Of the target, a request; ``None`` for the bare upstream."""

    def to_json(self) -> dict[str, Any]:
        """As kept under ``facts.paced``."""
        return asdict(self)


def name_of(measured: Measured, target: str) -> str:
    """How a target is printed; a compiled gateway is called so, and is there only beside the interpreted one."""
    ours = "gateway (compiled)" if "interpreted" in measured else "gateway"
    return ours if target == "ours" else _NAMES[target]


def middle(measured: Measured, target: str, value: str) -> float:
    """The median over the rounds."""
    return statistics.median(values[value] for values in measured[target])


def added(measured: Measured, target: str, value: str) -> float:
    """The median of what a round has above the bare upstream in the same round."""
    pairs = zip(measured[target], measured["direct"], strict=True)
    return statistics.median(one[value] - direct[value] for one, direct in pairs)


def is_kept(measured: Measured, target: str, rate: int) -> bool:
    """Whether a target answered as fast as it was asked, in the median round."""
    return middle(measured, target, f"paced_kept_{rate}") >= KEPT


def rows(measured: Measured, rates: Sequence[int]) -> list[Row]:
    """Ours beside every other target."""

    def row(what: str, value: str, peer: str, unit: str) -> Row:
        ours, theirs = ([values[value] for values in measured[name]] for name in ("ours", peer))
        return Row(what, _NAMES[peer], ours, theirs, unit)

    def paced_rows(peer: str) -> list[Row]:
        return [
            row(f"{what}, {rate:,} a second", f"paced_{value}_{rate}", peer, "ms")
            for rate in rates
            if is_kept(measured, "ours", rate) and is_kept(measured, peer, rate)
            for what, value in (("median time", "p50_ms"), ("99th percentile", "p99_ms"))
        ]

    found = [
        row("median time, c=1", "p50_ms_1", "direct", "ms"),
        row("99th percentile, c=16", "p99_ms_16", "direct", "ms"),
        row("median time of a stream, c=32", "stream_ms", "direct", "ms"),
        *paced_rows("direct"),
    ]
    for peer in (name for name in _NAMES if name in measured and name != "direct"):
        found += [
            row("processor time of a request, c=16", "cpu_us_16", peer, "us"),
            row("processor time of a streamed chunk", "chunk_us", peer, "us"),
            row("time of a request, c=16", "wall_us_16", peer, "us"),
            row("median time, c=1", "p50_ms_1", peer, "ms"),
            row("99th percentile, c=16", "p99_ms_16", peer, "ms"),
            *paced_rows(peer),
        ]
    return found


def notes(measured: Measured) -> list[str]:
    """A line a target: what it cost and how much fitted."""
    found = []
    for target in (name for name in measured if name != "direct"):
        wall = {c: middle(measured, target, f"wall_us_{c}") for c in CONNECTIONS}
        rates = ", ".join(f"{1e6 / wall[c]:,.0f} at c={c}" for c in CONNECTIONS)
        cpu = "/".join(f"{middle(measured, target, f'cpu_us_{c}'):.0f}" for c in CONNECTIONS)
        found.append(
            f"{name_of(measured, target)}: {cpu} us CPU a request (c=1/16/64), "
            f"{1e6 / middle(measured, target, 'cpu_us_16'):,.0f} requests a second and core; "
            f"requests a second beside the load generator: {rates}; "
            f"added p50 {added(measured, target, 'p50_ms_1'):.3f} ms (c=1), "
            f"p99 {added(measured, target, 'p99_ms_16'):.2f} ms (c=16); "
            f"{middle(measured, target, 'chunk_us'):.1f} us CPU a chunk"
        )
    return found


def paced(measured: Measured, rates: Sequence[int]) -> list[Paced]:
    """Every target at every rate, rate by rate."""
    return [_paced(measured, target, rate) for rate in rates for target in measured]


def _paced(measured: Measured, target: str, rate: int) -> Paced:
    is_good = is_kept(measured, target, rate)
    is_comparable = is_good and target != "direct" and is_kept(measured, "direct", rate)

    def time(value: str) -> float | None:
        return middle(measured, target, f"paced_{value}_{rate}") if is_good else None

    def more(value: str) -> float | None:
        return added(measured, target, f"paced_{value}_{rate}") if is_comparable else None

    return Paced(
        target=name_of(measured, target),
        rate=rate,
        kept=middle(measured, target, f"paced_kept_{rate}"),
        is_kept=is_good,
        p50_ms=time("p50_ms"),
        p99_ms=time("p99_ms"),
        added_p50_ms=more("p50_ms"),
        added_p99_ms=more("p99_ms"),
        cpu_us=None if target == "direct" else middle(measured, target, f"paced_cpu_us_{rate}"),
    )


def paced_lines(found: Sequence[Paced]) -> list[str]:
    """The paced phases as a table."""
    lines = [_HEADER, *(_cells(line) for line in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    head = (
        f"at a fixed rate over {PACED_CONNECTIONS} kept connections, times from when a request was due "
        f"(not kept: below {KEPT:.0%} of the rate):"
    )
    return [head, *("  " + _line(line, widths) for line in lines)]


def _cells(line: Paced) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    times = (line.p50_ms, line.p99_ms, line.added_p50_ms, line.added_p99_ms)
    return (
        line.target,
        f"{line.rate:,}",
        f"{line.kept:.1%}",
        *(number(time, 3) if line.is_kept else "not kept" for time in times),
        number(line.cpu_us, 0),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((first, *others))


def memory_line(measured: Measured, target: str, memory: Sequence[float], requests: int) -> str:
    """How much a worker held, and what became of it."""
    return (
        f"memory of the {name_of(measured, target)} worker: {memory[0]:.1f} MB after the start, "
        f"{memory[-1]:.1f} MB {requests:,} requests later"
    )


def last_lines(is_compiled: bool) -> list[str]:
    """What was measured as ours, and what the figures should be."""
    if is_compiled:
        return ["ours is the compiled gateway; the same sources interpreted are a peer", _AIMS]
    return ["ours runs interpreted: `posttrain compile` would make it faster", _AIMS]
