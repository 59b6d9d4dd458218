"""Benchmarks: posttrain beside what a user would pick instead, on the same machine in the same minutes.

Here: the list of benchmarks, what one hands back, paired measuring, and the line about the machine. Not here: limits in
seconds. Machines differ and are shared, so every figure is a ratio ours/peer of a pair that ran side by side; pairs
alternate (A B B A …), so that a drift of the machine falls on both. Below 1 is better in every row. To add one: a
module here with ``run(size, rounds) -> Outcome``, and one line in ``BENCHMARKS``.

Covered: wall clock and the processor time of the whole process tree; the second is hardly moved by what else runs.
Not covered: memory, several machines, accelerators.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
THREADS = 1
"""Torch threads on both sides: with more, two shared cores measure each other."""

Size: TypeAlias = Literal["smallest", "default"]
Values: TypeAlias = Mapping[str, float]
"""What one run of one side measured, by name; seconds unless the benchmark says otherwise."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark as listed."""

    name: str
    """Its module in this package, and what it is called by."""
    rounds: int
    """Pairs by default."""
    summary: str


BENCHMARKS = (
    Benchmark("grpo_vs_trl", 3, "the grpo stage against a bare TRL script with the same settings"),
    Benchmark("rewards", 8, "the verifier pool against TRL's reward functions in process"),
    Benchmark("store", 5, "writing and verifying an artifact against copying and hashing files"),
    Benchmark("gate", 3, "a promotion gate over 100,000 records against one bootstrap interval"),
    Benchmark("runner", 3, "playing a suite with an instant engine against Inspect's mock model"),
    Benchmark(
        "traffic", 3, "the traffic log against logging, JSON lines with fsync, and SQLite a row at a time"
    ),
    Benchmark(
        "gateway", 5, "a gateway worker with its log, against no gateway and the routers of vLLM and SGLang"
    ),
    Benchmark("gateway_replay", 1, "an hour of real traffic through a gateway against the server's own time"),
    Benchmark("cli_start", 10, "`posttrain --help` against `trl --help` and an empty Python"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the same work on both sides, once a round."""

    what: str
    peer: str
    """What it is compared with."""
    ours: Sequence[float]
    theirs: Sequence[float]
    unit: str = "s"
    target: float | None = None
    """The largest median ratio that the project promises; shown, never enforced here."""

    @property
    def ratios(self) -> list[float]:
        """Ours over the peer's, a round each."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The row with its medians."""
        ratios = self.ratios
        return {
            "what": self.what,
            "peer": self.peer,
            "unit": self.unit,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "ours_median": statistics.median(self.ours),
            "theirs_median": statistics.median(self.theirs),
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "target": self.target,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark hands back."""

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    """What a reader must know to read the rows: what is counted, what is not."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, for ``--json``."""
    faults: Sequence[str] = ()
    """What makes the comparison void, such as two loss curves that differ; the command then fails."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Measurements of both sides, by round."""

    ours: Sequence[Values]
    theirs: Sequence[Values]

    def row(self, what: str, name: str, peer: str, **options: Any) -> Row:
        """The row of the value ``name``, which both sides measured."""
        scale = options.pop("scale", 1.0)
        other = options.pop("their_name", name)
        return Row(
            what,
            peer,
            [values[name] * scale for values in self.ours],
            [values[other] * scale for values in self.theirs],
            **options,
        )


def pair(rounds: int, ours: Callable[[int], Values], theirs: Callable[[int], Values]) -> Pairs:
    """Run both sides ``rounds`` times, in the order A B, B A, A B …; each is told the number of its round."""
    measured: dict[str, list[Values]] = {"ours": [], "peer": []}
    sides = {"ours": ours, "peer": theirs}
    for number in range(rounds):
        for name in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            print(f"  round {number + 1} of {rounds}: {name}", file=sys.stderr)
            measured[name].append(sides[name](number))
    return Pairs(measured["ours"], measured["peer"])


def measure(work: Callable[[], object]) -> dict[str, float]:
    """Wall clock (``wall``) and processor time of this process and all its descendants (``cpu``) of ``work()``."""
    others, own, started = descendants_cpu_seconds(), time.process_time(), time.perf_counter()
    work()
    wall, own = time.perf_counter() - started, time.process_time() - own
    return {"wall": wall, "cpu": own + descendants_cpu_seconds() - others}


def descendants_cpu_seconds() -> float:
    """User and system time of this process's living descendants, and of those it has waited for."""
    import psutil

    total = reaped_cpu_seconds()
    for child in psutil.Process().children(recursive=True):
        try:
            total += sum(child.cpu_times()[:4])  # its own and that of the children it has waited for
        except psutil.NoSuchProcess:  # it ended between two lines
            continue
    return total


def reaped_cpu_seconds() -> float:
    """User and system time of the child processes that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def quiet_environment() -> dict[str, str]:
    """The environment of every measured process, the same on both sides: quiet, offline, one thread."""
    from posttrain.core.quiet import quiet_libraries

    quiet_libraries()
    return {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    versions: dict[str, str | None] = {}
    for package in ("posttrain", "torch", "transformers", "trl", "math-verify"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 2) for value in os.getloadavg()],
        "torch_threads": THREADS,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
