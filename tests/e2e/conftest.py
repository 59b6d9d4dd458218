"""The command line as a user runs it: a subprocess, a home of its own, the smallest recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).with_name("small.yaml")


def environment(home: Path, **extra: str) -> dict[str, str]:
    """A user's environment with a home of its own and one torch thread."""
    return {
        **os.environ,
        "POSTTRAIN_HOME": str(home),
        "POSTTRAIN_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        **extra,
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "posttrain", *arguments]


def posttrain(home: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; the caller looks at the exit code."""
    return subprocess.run(
        command(*arguments),
        env=environment(home, **extra),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def stage_outputs(home: Path) -> dict[str, dict[str, str]]:
    """Stage name to its output digests, of the latest finished run."""
    listed = posttrain(home, "runs", "--json")
    assert listed.returncode == 0, listed.stderr
    runs = json.loads(listed.stdout)
    runs = runs["runs"] if isinstance(runs, dict) else runs
    finished = [run for run in runs if run["status"] == "finished"]
    shown = posttrain(home, "show", finished[0]["id"], "--json")
    assert shown.returncode == 0, shown.stderr
    return {stage["name"]: stage["outputs"] for stage in json.loads(shown.stdout)["stages"]}


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the smallest recipe ran without a break."""
    home = tmp_path_factory.mktemp("finished")
    done = posttrain(home, "run", str(RECIPE), "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home
