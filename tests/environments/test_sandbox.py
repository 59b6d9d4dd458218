"""The sandbox as a service: results, limits that do not bite, failures of its own, other users, refusal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from posttrain.core.errors import MissingDependencyError
from posttrain.environments.sandbox import BACKENDS, Program, Sandbox, SandboxConfig, why_not
from posttrain.environments.sandbox.guest import seccomp

ROOT = Path(__file__).parents[2]


def one_line(run: object) -> str:
    return " ".join(str(run).split())


@pytest.mark.parametrize(
    ("source", "code", "out", "err"),
    [
        ("print('hello')", 0, "hello\n", ""),
        ("import sys; sys.exit(7)", 7, "", ""),
        ("import sys; sys.exit('no')", 1, "", "no\n"),
        ("import os; os._exit(5)", 5, "", ""),
        ("print(open('data/in.txt').read())", 0, "given\n", ""),
        ("import helper; print(helper.x)", 0, "3\n", ""),
        ("print(input())", 0, "asked\n", ""),
        ("import atexit; atexit.register(print, 'bye')", 0, "bye\n", ""),
        ("import threading; threading.Thread(target=print, args=('t',)).start()", 0, "t\n", ""),
        ("if __name__ == '__main__': print(__file__)", 0, "/box/main.py\n", ""),
        ("import asyncio; print(asyncio.run(asyncio.sleep(0, 'a')))", 0, "a\n", ""),
        ("print('é', '\\u4e2d')", 0, "é 中\n", ""),
    ],
)
def test_a_program_runs_as_python_runs_it(
    sandbox: Sandbox, source: str, code: int, out: str, err: str
) -> None:
    files = {"main.py": source.encode(), "data/in.txt": b"given", "helper.py": b"x = 3"}
    run = sandbox.run(Program(files, stdin="asked\n"))
    assert run.result is not None, run.reason
    assert (run.result.exit_code, run.result.stdout, run.result.stderr) == (code, out, err)
    assert run.result.ok == (code == 0)
    assert not run.result.timed_out


@pytest.mark.parametrize("source", ["1 / 0", "def broken(:", "raise KeyError('x')", b"\xff\xfe"])
def test_a_failing_program_is_a_result(sandbox: Sandbox, source: str | bytes) -> None:
    run = sandbox.run(Program({"main.py": source if isinstance(source, bytes) else source.encode()}))
    assert run.result is not None
    assert run.result.exit_code == 1
    assert "Error" in run.result.stderr
    assert "guest" not in run.result.stderr  # the traceback begins at the program
    assert str(ROOT) not in run.result.stderr


def test_the_same_program_gives_the_same_result(sandbox: Sandbox) -> None:
    source = b"print(hash('text'), list({'a', 'b', 'c'}), sorted(__import__('os').environ))"
    outs = {run.result.stdout for run in sandbox.run_all([Program({"main.py": source})] * 5) if run.result}
    assert len(outs) == 1


def test_a_dead_keeper_is_no_result_and_is_replaced(sandbox: Sandbox) -> None:
    with Sandbox(sandbox.config) as own:
        assert own.run(Program({"main.py": b"print(1)"})).result is not None
        worker = own._idle.get()
        assert worker is not None
        threading.Timer(0.5, os.kill, (worker.keeper_pid, 9)).start()
        own._idle.put(worker)
        run = own.run(Program({"main.py": b"import time; time.sleep(15)"}))
        assert run.result is None
        assert "the sandbox's keeper has ended" in run.reason
        again = own.run(Program({"main.py": b"print(2)"}))
        assert again.result is not None, again.reason
        assert again.result.stdout == "2\n"


def test_a_folder_too_small_for_its_files_is_no_result(sandbox: Sandbox) -> None:
    run = sandbox.run(Program({"main.py": b"", "big": bytes(5 << 20)}))
    assert run.result is None
    assert "the run's folder" in run.reason


def test_workers_run_at_once(sandbox: Sandbox) -> None:
    config = SandboxConfig.model_validate({**sandbox.config.model_dump(), "workers": 3})
    with Sandbox(config) as three:
        three.run_all([Program({"main.py": b""})] * 3)
        started = time.monotonic()
        runs = three.run_all(
            [Program({"main.py": f"import time; time.sleep(1); print({n})".encode()}) for n in range(3)]
        )
        took = time.monotonic() - started
    assert [run.result.stdout for run in runs if run.result] == ["0\n", "1\n", "2\n"]
    assert took < 2.9


@pytest.mark.parametrize("name", ["../up.py", "/etc/x", "a/../../b", "a//b", "x\0y", "."])
def test_paths_outside_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        Program({"main.py": b"", name: b""})


@pytest.mark.parametrize("name", ["itself", "root-by-name"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ordinary_user(backend: str, name: str) -> None:
    if why_not(backend):
        pytest.skip(why_not(backend))
    run = subprocess.run(
        [sys.executable, "-m", "tests.environments.ordinary_user", backend, name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    if run.stdout.startswith("cannot"):
        pytest.skip(f"ordinary users may not: {run.stdout}")
    expected = f"user {os.geteuid() or 65534} 1000 False []\nPermissionError\nno more threads"
    assert run.stdout.strip() == expected.replace("PermissionError", run.stdout.splitlines()[1])
    assert run.stdout.splitlines()[1] in ("PermissionError", "FileNotFoundError", "OSError")


def test_where_nothing_can_isolate_it_says_what_to_install() -> None:
    """Seen in a process whose user namespaces are used up and that finds no bubblewrap."""
    code = """
import os
from posttrain.environments.sandbox.guest import kernel
from posttrain.environments.sandbox import Program, Sandbox
kernel.unshare(kernel.CLONE_NEWUSER)
user, group = 0, 0
open('/proc/self/setgroups', 'w').write('deny')
open('/proc/self/uid_map', 'w').write(f'1000 {UID} 1')
open('/proc/self/gid_map', 'w').write(f'1000 {GID} 1')
open('/proc/sys/user/max_user_namespaces', 'w').write('0')
try: Sandbox().run(Program({'main.py': b''}))
except Exception as error: print(type(error).__name__, '|', error, '|', error.hint)
""".replace("{UID}", str(os.getuid())).replace("{GID}", str(os.getgid()))
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        pytest.skip(f"no user namespace to try it in: {run.stderr[-200:]}")
    assert run.stdout.startswith(MissingDependencyError.__name__)
    assert "bubblewrap: bwrap is not installed; namespaces: cannot isolate" in run.stdout
    assert "apt-get install bubblewrap" in run.stdout


def test_the_filter_is_built_for_both_machines() -> None:
    for machine in ("x86_64", "aarch64"):
        steps = seccomp.build_filter(machine)
        assert len(steps) % 8 == 0
        assert len(steps) // 8 < 4096  # the kernel's limit
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.build_filter("riscv64")
    for column in (0, 1):
        numbers = [pair[column] for pair in seccomp.REFUSED.values() if pair[column] is not None]
        assert len(numbers) == len(set(numbers))
