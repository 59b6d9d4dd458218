"""Stopping a run from outside: Ctrl-C, SIGTERM, SIGKILL, and two processes at once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_command_line import _ROOT, _SECONDS, command
from tests.pipelines.toy_stages import TOY_RECIPE

pytestmark = pytest.mark.e2e


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY_RECIPE.replace("steps: 6", "steps: 12\n      pause_seconds: 0.05"))
    return path


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cli.toy_main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    )


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Lines of the process up to the one that holds ``text``."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} never came: {lines} {process.stderr and process.stderr.read()}")


def outputs_of(home: Path) -> dict[str, str]:
    run = json.loads(command("runs", "--json", "--home", home).out)[0]["id"]
    shown = json.loads(command("show", run, "--json", "--home", home).out)
    assert shown["status"] == "finished"
    return {
        f"{stage['name']}.{name}": digest
        for stage in shown["stages"]
        for name, digest in stage["outputs"].items()
    }


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the recipe makes when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "toy.yaml"
    path.write_text(TOY_RECIPE.replace("steps: 6", "steps: 12\n      pause_seconds: 0.05"))
    assert command("run", path, "--home", folder / "home").code == 0
    return outputs_of(folder / "home")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_cleanly_and_says_how_to_go_on(
    tmp_path: Path, recipe: Path, expected: dict[str, str], number: signal.Signals
) -> None:
    home = tmp_path / "home"
    process = start("run", recipe, "--home", home, "--json")
    read_until(process, '"stage": "second", "step": 2')
    process.send_signal(number)
    out, err = process.communicate(timeout=_SECONDS)
    assert process.returncode == 130
    assert "stopping at the next safe point" in err
    assert "Traceback" not in err
    run = json.loads(command("runs", "--json", "--home", home).out)[0]
    assert run["status"] == "interrupted"
    resume = f"posttrain run --resume {run['id']} --home {home}"
    assert f"go on with: {resume}" in err
    assert json.loads(out.splitlines()[-1])["status"] == "interrupted"
    done = command(*resume.split()[1:], "--json")
    assert done.code == 0, done.err
    assert [event for event in done.events() if event["event"] == "stage_resumed"]
    assert outputs_of(home) == expected


def test_second_signal_stops_at_once(tmp_path: Path, recipe: Path) -> None:
    home = tmp_path / "home"
    process = start(
        "run", recipe, "--home", home, "--set", "second.deaf=true", "--set", "second.pause_seconds=60"
    )
    read_until(process, "second: started")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == "\n"
    assert "press Ctrl-C again" in process.stderr.readline()
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=_SECONDS)
    assert time.monotonic() - started < 20
    assert process.returncode == 130
    assert "go on with: posttrain run --resume" in err
    assert "Traceback" not in err
    assert json.loads(command("runs", "--json", "--home", home).out)[0]["status"] == "interrupted"


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_times(tmp_path: Path, recipe: Path, expected: dict[str, str], seed: int) -> None:
    dice, home = random.Random(seed), tmp_path / "home"
    arguments: list[str | Path] = ["run", recipe]
    for _ in range(3):
        process = start(*arguments, "--home", home, "--json")
        read_until(process, "run_started")
        time.sleep(dice.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)  # 0: on a slow machine it may have finished before
        status = json.loads(command("runs", "--json", "--home", home).out)[0]["status"]
        if status == "finished":  # before the kill, or killed between its last record and its exit
            break
        assert process.returncode == -signal.SIGKILL
        assert status == "interrupted"
        arguments = ["run", "--resume"]
    else:
        done = command("run", "--resume", "--home", home)
        assert done.code == 0, done.err
    assert len(json.loads(command("runs", "--json", "--home", home).out)) == 1
    assert outputs_of(home) == expected
    assert command("verify", "--home", home).code == 0


def test_resume_with_the_recipe_takes_up_its_own_run(tmp_path: Path, recipe: Path) -> None:
    home = tmp_path / "home"
    process = start("run", recipe, "--home", home, "--json")
    read_until(process, '"stage": "second", "step": 2')
    process.kill()
    process.communicate()
    other = tmp_path / "other.yaml"
    other.write_text(TOY_RECIPE)
    assert (
        command("run", "--resume", other, "--home", home).code == 0
    )  # nothing of its own to take up: a new run
    assert command("run", recipe, "--resume", "--home", home).code == 0
    runs = json.loads(command("runs", "--json", "--home", home).out)
    assert [run["status"] for run in runs] == ["finished", "finished"]


def test_two_processes_at_once_share_the_work(tmp_path: Path, recipe: Path, expected: dict[str, str]) -> None:
    home = tmp_path / "home"
    processes = [start("run", recipe, "--home", home, "--json") for _ in range(2)]
    ended = [process.communicate(timeout=_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    events = [[json.loads(line) for line in out.splitlines()] for out, _ in ended]
    finished = [event["stage"] for one in events for event in one if event["event"] == "stage_finished"]
    assert sorted(finished) == ["first", "numbers", "report", "second"]
    assert outputs_of(home) == expected
