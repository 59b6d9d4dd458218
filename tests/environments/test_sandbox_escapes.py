"""Ways out of the sandbox: each attempt fails, and the sandbox goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.environments.sandbox import Program, RunResult, Sandbox
from tests.environments.escapes import FILES, MEMORY, NETWORK, PROCESSES, RIGHTS, program

ATTEMPTS = {**FILES, **RIGHTS, **NETWORK, **PROCESSES, **MEMORY}


class Host:
    """What stands outside and must stay as it is: a file, a listening port, a process, an environment variable."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret.txt"
        self.secret.write_text("do-not-read")
        self.secret.chmod(0o644)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])

    def facts(self) -> dict[str, object]:
        return {
            "secret_file": str(self.secret),
            "port": self.server.getsockname()[1],
            "pid": self.process.pid,
        }

    def close(self) -> None:
        self.server.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    world = Host(tmp_path_factory.mktemp("host"))
    os.environ["POSTTRAIN_TEST_SECRET"] = "do-not-read"
    yield world
    del os.environ["POSTTRAIN_TEST_SECRET"]
    world.close()


def result_of(sandbox: Sandbox, source: bytes) -> RunResult:
    run = sandbox.run(Program({"main.py": source}, stdin="do-not-read"))
    assert run.result is not None, run.reason
    return run.result


def is_fine(sandbox: Sandbox) -> bool:
    return result_of(sandbox, b"import json; print(json.dumps({'fine': 1}))").stdout == '{"fine": 1}\n'


def test_there_are_at_least_thirty() -> None:
    assert len(ATTEMPTS) >= 30


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_way_out(sandbox: Sandbox, host: Host, name: str) -> None:
    result = result_of(sandbox, program(ATTEMPTS[name], host.facts()))
    assert "ESCAPED" not in result.stdout + result.stderr, result
    assert result.stopped_by != "wall_clock", result
    last = result.stderr.strip().splitlines()[-1:]
    assert not result.exit_code, (
        last
    )  # the attempt was made in full: refusals are caught, mistakes of its own are not
    assert host.process.poll() is None
    assert host.secret.read_text() == "do-not-read"
    assert is_fine(sandbox)


def test_a_fork_bomb(sandbox: Sandbox) -> None:
    source = b"import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    with small(sandbox, wall_seconds=1.0) as quick:
        result = result_of(quick, source)
        assert result.stopped_by == "wall_clock"
        assert is_fine(quick)


def test_a_memory_bomb(sandbox: Sandbox) -> None:
    result = result_of(sandbox, b"x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert (result.exit_code, result.stopped_by, result.out_of_memory) == (None, "memory", True)
    assert is_fine(sandbox)


def test_a_full_disk(sandbox: Sandbox) -> None:
    source = b"for i in range(1000):\n  with open(f'f{i}', 'wb') as out: out.write(bytes(1 << 20))"
    result = result_of(sandbox, source)
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert is_fine(sandbox)  # and the next run has its whole folder again
    assert result_of(sandbox, b"open('f', 'wb').write(bytes(1 << 20))").ok


def test_a_big_file(sandbox: Sandbox) -> None:
    for source in (
        b"import os; f = open('big', 'wb'); os.ftruncate(f.fileno(), 1 << 40)",
        b"f = open('big', 'wb'); f.seek(1 << 40); f.write(b'x'); f.flush()",
    ):
        result = result_of(sandbox, source)
        assert not result.ok
    assert is_fine(sandbox)


def test_many_files(sandbox: Sandbox) -> None:
    result = result_of(sandbox, b"for i in range(10**6): open(f'f{i}', 'w').close()")
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert is_fine(sandbox)


def test_many_open_files(sandbox: Sandbox) -> None:
    result = result_of(sandbox, b"import os\nheld = [os.pipe() for _ in range(10**4)]")
    assert "Too many open files" in result.stderr
    assert is_fine(sandbox)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output(sandbox: Sandbox, stream: str) -> None:
    result = result_of(sandbox, f"import sys\nwhile True: sys.{stream}.write('x' * 65536)".encode())
    assert not result.ok
    assert result.output_truncated
    assert len(result.stdout) + len(result.stderr) <= 2 * sandbox.config.output_kib * 1024
    assert is_fine(sandbox)


@pytest.mark.parametrize(
    ("source", "stopped"),
    [
        ("while True: pass", "wall_clock"),
        ("import time; time.sleep(1000)", "wall_clock"),
        ("import signal\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
         "wall_clock"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "wall_clock"),
        ("print((1 << 10**8) ** 100)", "wall_clock"),
    ],
)  # fmt: skip
def test_endless_loops(sandbox: Sandbox, source: str, stopped: str) -> None:
    with small(sandbox, wall_seconds=1.0, memory_mib=1024) as quick:
        result = result_of(quick, source.encode())
        assert (result.exit_code, result.stopped_by, result.timed_out) == (None, stopped, True)
        assert is_fine(quick)


def test_the_cpu_limit(sandbox: Sandbox) -> None:
    with small(sandbox, wall_seconds=120.0, cpu_seconds=1) as quick:
        result = result_of(quick, b"while True: pass")
        assert (result.stopped_by, result.timed_out) == ("cpu", True)
        assert is_fine(quick)


def test_nothing_is_left_running(sandbox: Sandbox) -> None:
    """Children that leave their session and ignore every signal end with the run all the same."""
    source = b"""
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)
        os.close(1), os.close(2)
        time.sleep(98765)
    os._exit(0)
print("parent gone")
"""
    assert result_of(sandbox, source).stdout == "parent gone\n"
    assert runs_of_this_process() == set()


def runs_of_this_process() -> set[int]:
    """Processes below this one in process namespaces three deep: the host's, the keeper's, a run's."""
    parents, depths = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (entry / "status").read_text().splitlines() if entry.name.isdigit() else []
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            parents[int(entry.name)] = int(fields["PPid"])
            depths[int(entry.name)] = len(fields["NSpid"].split())
    found = set()
    for pid, depth in depths.items():
        above = pid
        while above not in (0, os.getpid()):
            above = parents.get(above, 0)
        if above and depth >= 3:
            found.add(pid)
    return found


def test_deep_recursion(sandbox: Sandbox) -> None:
    result = result_of(sandbox, b"def f(): f()\nf()")
    assert result.exit_code == 1
    assert "RecursionError" in result.stderr
    crash = result_of(sandbox, b"import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nr = 'x'\n"
                               b"for _ in range(10**5): r = [r]\nrepr(r)")  # fmt: skip
    assert not crash.ok
    assert is_fine(sandbox)


def test_a_crash_leaves_no_core(sandbox: Sandbox) -> None:
    source = b"import ctypes, os, resource\n"
    source += b"print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)\nctypes.string_at(0)"
    result = result_of(sandbox, source)
    assert (result.signal, result.stopped_by) == (11, "signal")
    assert result.stdout == "(1, 1)\n"
    assert is_fine(sandbox)


def test_runs_share_nothing(sandbox: Sandbox) -> None:
    result_of(sandbox, b"open('left', 'w').write('x'); import json; json.left = 1")
    result = result_of(sandbox, b"import json, os; print(os.listdir('.'), hasattr(json, 'left'))")
    assert result.stdout == "['main.py'] False\n"


def small(sandbox: Sandbox, **limits: float) -> Sandbox:
    return Sandbox(sandbox.config.model_validate({**sandbox.config.model_dump(), **limits}))
