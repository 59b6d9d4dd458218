"""Engines end with us: whatever dies, and however, nothing that we started stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.engines.drivers.processes import EngineProcess
from posttrain.engines.drivers.records import Determinism
from posttrain.engines.drivers.server_driver import Launch, Limits, ServerDriver
from posttrain.engines.errors import EngineError

# An engine with a worker of its own, as vLLM has: it writes both ids, then waits.
ENGINE = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as out:
    out.write(f"{os.getpid()} {worker.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""

PARENT = """
import sys, time
from pathlib import Path
from posttrain.engines.drivers.processes import EngineProcess
process = EngineProcess([sys.executable, "-c", sys.argv[1], sys.argv[2]], log=Path(sys.argv[3]), grace_seconds=2)
time.sleep(600)
"""


def until(check: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return sys.platform != "linux"
        return False
    return state != "Z"


def start(tmp_path: Path, **more: float) -> tuple[EngineProcess, list[int]]:
    file = tmp_path / "pids"
    process = EngineProcess(
        [sys.executable, "-c", ENGINE, str(file)], log=tmp_path / "log", grace_seconds=more.get("grace", 2.0)
    )
    until(file.exists, "the engine did not start")
    return process, [int(pid) for pid in file.read_text().split()]


def test_stopping_ends_the_engine_and_its_workers(tmp_path: Path) -> None:
    process, pids = start(tmp_path)
    assert process.exit_code() is None
    assert all(map(runs, pids))
    process.stop()
    process.stop()
    assert process.exit_code() is not None
    until(lambda: not any(map(runs, pids)), "something stayed")


def test_a_killed_parent_takes_the_engine_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, ENGINE, str(file), str(tmp_path / "log")])
    until(file.exists, "the engine did not start")
    pids = [int(pid) for pid in file.read_text().split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not any(map(runs, pids)), "the engine outlived its parent")


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_killed_guard_takes_the_engine_with_it(tmp_path: Path) -> None:
    process, pids = start(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: not runs(pids[0]), "the engine outlived its guard")
    os.kill(pids[1], signal.SIGKILL)  # a worker that does not watch its engine, as real ones do
    process.stop()


def test_an_engine_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """Where PR_SET_PDEATHSIG alone would end it: the signal is for the death of the thread."""
    found: list[tuple[EngineProcess, list[int]]] = []
    thread = threading.Thread(target=lambda: found.append(start(tmp_path)))
    thread.start()
    thread.join()
    process, pids = found[0]
    time.sleep(0.8)  # three looks of the guard
    assert process.exit_code() is None
    assert all(map(runs, pids))
    process.stop()


def test_an_engine_that_will_not_end_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    stubborn = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    )
    process = EngineProcess(
        [sys.executable, "-c", stubborn, str(file)], log=tmp_path / "log", grace_seconds=0.2
    )
    until(lambda: file.exists() and file.read_text() != "", "the engine did not start")
    process.stop()
    assert not runs(int(file.read_text()))


def test_what_an_engine_returns_and_says_is_known(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier start\n")
    talk = "import sys; [print('line', n) for n in range(40)]; sys.exit(7)"
    process = EngineProcess([sys.executable, "-c", talk], log=log)
    until(lambda: process.exit_code() is not None, "it did not end")
    assert process.exit_code() == 7
    assert process.log_tail(2) == "line 38\nline 39"
    assert "earlier" not in process.log_tail(100)
    process.stop()


class _Silent(ServerDriver):
    """An engine that never answers."""

    def _launch(self) -> Launch:
        return Launch(
            (sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(600)"), port=1
        )

    def determinism(self) -> Determinism:
        raise NotImplementedError


def test_an_engine_that_never_answers_is_given_up_and_ended(tmp_path: Path) -> None:
    driver = _Silent("x", tmp_path, max_adapters=0, limits=Limits(start_seconds=1.5, stop_seconds=2))
    with pytest.raises(EngineError, match=r"did not answer in 1.5 s; its log ends:\nloading") as caught:
        driver.start()
    assert "start_seconds" in (caught.value.hint or "")
    assert driver.health().detail == "it was not started"


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    process = EngineProcess(["/nowhere/python"], log=tmp_path / "log")
    until(lambda: process.exit_code() is not None, "it did not end")
    assert process.exit_code() != 0
    assert "/nowhere/python" in process.log_tail()
