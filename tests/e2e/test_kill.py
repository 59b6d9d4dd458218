"""Nothing is lost: a run that is killed again and again ends with the digests of a run that was left alone.

One home lives through the whole list of kills, each at another point: as a stage starts, between steps, while a
checkpoint is being written, while an artifact is being written, before a stage's completion is recorded. SIGKILL only;
only the process that the test started, by its id.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import RECIPE, command, environment, posttrain, stage_outputs

_PATIENCE_SECONDS = 300


class Kill(NamedTuple):
    """When to kill: as soon as ``event`` was printed or ``path`` exists, whichever is given."""

    name: str
    event: Callable[[dict[str, Any]], bool] | None = None
    path: Callable[[Path], bool] | None = None


def _started(stage: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "stage_started" and event["stage"] == stage


def _finished(stage: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == "stage_finished" and event["stage"] == stage


def _step(stage: str, step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda e: e["event"] == "progress" and e["stage"] == stage and e.get("step", 0) >= step


def _any(pattern: str) -> Callable[[Path], bool]:
    return lambda home: next(home.glob(pattern), None) is not None


def _unsealed_checkpoint(home: Path) -> bool:
    folders = home.glob("work/*/trainer/checkpoint-*")
    return any(not (folder / "complete.json").exists() for folder in folders)


KILLS = [
    Kill("first stage", event=_started("problems")),
    Kill("an artifact being written", path=_any("tmp/*/*")),
    Kill("second stage", event=_started("base")),
    Kill("a step of pretraining", event=_step("base", 10)),
    Kill("a checkpoint of pretraining being written", path=_any("work/*/tmp-*")),
    Kill("a later step of pretraining", event=_step("base", 30)),
    Kill("pretraining just recorded", event=_finished("base")),
    Kill("evaluation at work", event=_step("base-eval", 1)),
    Kill("reinforcement starting", event=_started("rl")),
    Kill("a step of reinforcement", event=_step("rl", 2)),
    Kill("a checkpoint of reinforcement being written", path=_unsealed_checkpoint),
    Kill("the last step of reinforcement", event=_step("rl", 4)),
    Kill("reinforcement just recorded", event=_finished("rl")),
    Kill("second evaluation", event=_started("rl-eval")),
    Kill("the report", event=_started("report")),
]
QUICK = [KILLS[1], KILLS[3], KILLS[9]]
R1_KILLS = [
    Kill("demonstrations", event=_started("demonstrations")),
    Kill("a step of fine-tuning", event=_step("cold-start", 3)),
    Kill("a shard of rejection sampling", event=_step("reasoning-data", 2)),
    Kill("open answers", event=_step("open-data", 1)),
    Kill("the mix", event=_started("sft-data")),
    Kill("a checkpoint of fine-tuning being written", path=_unsealed_checkpoint),
    Kill("preferences", event=_started("pairs")),
    Kill("a step of the reward model", event=_step("helpful", 2)),
    Kill("the reward model just recorded", event=_finished("helpful")),
    Kill("best of n", event=_step("best-of-n", 1)),
    Kill("a step of dpo", event=_step("dpo", 2)),
    Kill("a step of kto", event=_step("kto", 2)),
    Kill("final reinforcement, before the preference signal", event=_step("final-rl", 2)),
    Kill("final reinforcement, with it", event=_step("final-rl", 3)),
    Kill("win rates", event=_started("win-rates")),
    Kill("a frozen suite", event=_started("suite")),
    Kill("a model on the suite", event=_started("r1-on-suite")),
    Kill("the gate", event=_started("gate")),
]


@contextmanager
def _running(home: Path, recipe: Path = RECIPE) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command("run", str(recipe), "--json"),
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _kill_at(home: Path, kill: Kill, recipe: Path = RECIPE) -> bool:
    """Start the run and kill it at that point; False where it finished before the point came."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with _running(home, recipe) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        rest = b""
        while time.monotonic() < deadline:
            if kill.path is not None and kill.path(home):
                break
            rest += process.stdout.read() or b""
            *lines, rest = rest.split(b"\n")
            if kill.event is not None and any(kill.event(json.loads(line)) for line in lines if line):
                break
            if process.poll() is not None:
                return False
            # A checkpoint is half-written for a millisecond or two: look often.
            time.sleep(0.0005)
        else:
            pytest.fail(f"{kill.name}: the point did not come within {_PATIENCE_SECONDS} s")
        os.kill(process.pid, signal.SIGKILL)
    return True


def _live_through(home: Path, kills: list[Kill]) -> None:
    for kill in kills:
        if not _kill_at(home, kill):
            # The moment was missed, so the run is whole; nothing is left to kill.
            break
        _verify(home, kill)


def _verify(home: Path, kill: Kill) -> None:
    """Every digest holds; a home that was killed before it was whole is not there yet, and says so."""
    checked = posttrain(home, "verify")
    if (home / "store.json").exists() and (home / "registry.sqlite").exists():
        assert checked.returncode == 0, f"after {kill.name}: {checked.stdout}{checked.stderr}"


def test_three_kills(tmp_path: Path, finished_home: Path) -> None:
    _live_through(tmp_path, QUICK)
    last = posttrain(tmp_path, "run", str(RECIPE))
    assert last.returncode == 0, last.stderr
    assert stage_outputs(tmp_path) == stage_outputs(finished_home)


@pytest.mark.slow
def test_a_kill_at_every_point(tmp_path: Path, finished_home: Path) -> None:
    missed = []
    for kill in KILLS:
        home = tmp_path
        if not _kill_at(home, kill):
            missed.append(kill.name)
            continue
        _verify(home, kill)
    last = posttrain(tmp_path, "run", str(RECIPE))
    assert last.returncode == 0, last.stderr
    assert stage_outputs(tmp_path) == stage_outputs(finished_home)
    assert missed == []


@pytest.mark.slow
def test_kills_in_every_stage_of_r1(tmp_path: Path) -> None:
    recipe = RECIPE.with_name("small_r1.yaml")
    whole = posttrain(tmp_path / "whole", "run", str(recipe))
    assert whole.returncode == 0, whole.stdout[-2000:] + whole.stderr[-2000:]
    home = tmp_path / "killed"
    missed = []
    for kill in R1_KILLS:
        if not _kill_at(home, kill, recipe):
            missed.append(kill.name)
            continue
        _verify(home, kill)
    last = posttrain(home, "run", str(recipe))
    assert last.returncode == 0, last.stderr
    assert stage_outputs(home) == stage_outputs(tmp_path / "whole")
    assert missed == []


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    with _running(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if _step("base", 10)(json.loads(line)):
                process.send_signal(signal.SIGINT)
                break
        tail = [json.loads(line) for line in process.stdout if line.strip()]
        assert process.wait(timeout=60) == 130
    assert tail[-1]["status"] == "interrupted"
    listed = posttrain(tmp_path, "runs")
    assert "interrupted" in listed.stdout
