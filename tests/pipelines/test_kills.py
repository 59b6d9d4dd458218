"""SIGKILL at any instant of a run: the next run ends with the digests of one that was never killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.artifacts.home import Home, open_home
from posttrain.artifacts.verify import verify_home
from posttrain.core.settings import Settings
from posttrain.pipelines.runner import resume_run, run_recipe
from posttrain.pipelines.runs import latest_unfinished, run_status
from tests.pipelines.test_recipe_text import toy
from tests.pipelines.test_runner import digests
from tests.pipelines.toy_stages import TOY_STAGES

# What Python says before it asks the system to change a file, a lock or the database.
_STEPS = frozenset(
    {
        "open",
        "os.mkdir",
        "os.rename",
        "os.link",
        "os.remove",
        "os.rmdir",
        "os.chmod",
        "os.utime",
        "fcntl.flock",
    }
    | {"shutil.rmtree", "sqlite3.connect", "sqlite3.connect/handle"}
)


def _killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in another process that dies by SIGKILL just before its n-th such step; whether it died."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(name: str, arguments: object) -> None:
            nonlocal seen
            if name in _STEPS:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _open(folder: Path) -> Home:
    return open_home(Settings(home=folder))


def _run_or_resume(folder: Path) -> None:
    home = _open(folder)
    if latest_unfinished(home) is not None:
        resume_run(home, stages=TOY_STAGES)
    else:
        run_recipe(home, toy())


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, str]:
    return digests(run_recipe(_open(tmp_path / "whole"), toy()))


def _check_whole(home: Home) -> None:
    """Whatever can be seen is whole, and no run is called running."""
    assert [problem for problem in verify_home(home) if problem.path != "index"] == []
    assert all(home.store.has(digest) for digest in home.store.digests())
    assert "running" not in [run_status(home, run) for run in home.registry.runs()]


def _check_ends_the_same(folder: Path, expected: dict[str, str]) -> None:
    _run_or_resume(folder)
    home = _open(folder)
    assert digests(run_recipe(home, toy())) == expected
    assert {run_status(home, run) for run in home.registry.runs()} == {"finished"}
    assert list((folder / "work").iterdir()) == []
    _check_whole(home)


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again(tmp_path: Path, expected: dict[str, str], seed: int) -> None:
    dice = random.Random(seed)
    folder = tmp_path / "killed"
    kills = 0
    while _killed_at(dice.randint(10, 120 + 20 * kills), lambda: _run_or_resume(folder)):
        kills += 1
        _check_whole(_open(folder))
    assert kills >= 3
    _check_ends_the_same(folder, expected)


def _steps_in_all(folder: Path) -> int:
    low, high = 1, 4096
    while low < high:
        middle = (low + high) // 2
        if _killed_at(middle, lambda: _run_or_resume(folder)):
            low = middle + 1
        else:
            high = middle
        shutil.rmtree(folder)
    return low


def _spread(total: int, count: int) -> Iterator[int]:
    yield from range(1, total, max(1, total // count))


def test_killed_once_here_and_there(tmp_path: Path, expected: dict[str, str]) -> None:
    folder = tmp_path / "killed"
    for step in _spread(400, 5):
        _killed_at(step, lambda: _run_or_resume(folder))
        _check_whole(_open(folder))
        _check_ends_the_same(folder, expected)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_killed_once_at_every_step(tmp_path: Path, expected: dict[str, str]) -> None:
    folder = tmp_path / "killed"
    total = _steps_in_all(folder)
    assert total > 200
    for step in range(1, total):
        assert _killed_at(step, lambda: _run_or_resume(folder))
        _check_whole(_open(folder))
        _check_ends_the_same(folder, expected)
        shutil.rmtree(folder)
