"""How long ``posttrain --help`` takes, beside TRL's command line and an interpreter that does nothing.

Here: three processes, started in turn, each from start to exit. Peers: ``trl --help`` of the same environment, and
``python -c pass``, below which no Python program can get. Not here: which modules are loaded (a test pins those).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import Outcome, Size, Values, pair, quiet_environment, reaped_cpu_seconds


def run(size: Size, rounds: int) -> Outcome:
    """One start of each program a round; both sizes are the same work."""
    programs = Path(sys.executable).parent
    ours = [str(programs / "posttrain"), "--help"]
    trl = [str(programs / "trl"), "--help"]
    empty = [sys.executable, "-c", "pass"]
    environment = quiet_environment()
    for command in (ours, trl, empty):  # byte code and file cache are warm for all
        _start(command, environment)

    def peers(number: int) -> Values:
        return {
            **{f"trl_{name}": value for name, value in _start(trl, environment).items()},
            **{f"empty_{name}": value for name, value in _start(empty, environment).items()},
        }

    pairs = pair(rounds, lambda number: _start(ours, environment), peers)
    options = {"unit": "ms", "scale": 1000.0}
    return Outcome(
        rows=(
            pairs.row("--help, wall", "wall", "trl --help", their_name="trl_wall", **options),
            pairs.row("--help, processor", "cpu", "trl --help", their_name="trl_cpu", **options),
            pairs.row("--help, wall", "wall", "python -c pass", their_name="empty_wall", **options),
            pairs.row("--help, processor", "cpu", "python -c pass", their_name="empty_cpu", **options),
        ),
        notes=("one process from start to exit; one unmeasured start of each before",),
    )


def _start(command: Sequence[str], environment: dict[str, str]) -> Values:
    started, cpu = time.perf_counter(), reaped_cpu_seconds()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return {"wall": time.perf_counter() - started, "cpu": reaped_cpu_seconds() - cpu}
