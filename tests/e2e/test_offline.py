"""Nothing phones home: the whole tiny pipeline runs where no socket leads out, and tries none.

*Covered*: every connection that Python code makes in any process of the run is refused and recorded; where the system
lets a user make a network namespace, native code is shut in as well. *Not covered*: native code, where it does not.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import RECIPE, command, environment

_GUARD = """
import os, socket
_connect, _record = socket.socket.connect, os.environ["POSTTRAIN_TEST_CONNECTIONS"]
def _refuse(self, address, *rest):
    if self.family == socket.AF_UNIX:
        return _connect(self, address, *rest)
    with open(_record, "a") as stream:
        stream.write(repr(address) + "\\n")
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = _refuse
def _no_names(host, *rest, **named):
    with open(_record, "a") as stream:
        stream.write(repr(host) + "\\n")
    raise socket.gaierror("no network in this test")
socket.getaddrinfo = _no_names
"""


def _in_namespace() -> list[str]:
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    prefix = [unshare, "--user", "--map-root-user", "--net"]
    works = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    return prefix if works else []


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.with_name("small_r1.yaml")], ids=["r1-zero", "r1"])
def test_the_pipeline_runs_without_a_network(tmp_path: Path, recipe: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD)
    record = tmp_path / "connections"
    done = subprocess.run(
        [*_in_namespace(), *command("run", str(recipe))],
        env=environment(
            tmp_path / "home",
            PYTHONPATH=str(guard),
            POSTTRAIN_TEST_CONNECTIONS=str(record),
            CI="",
            HF_HUB_OFFLINE="",
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not record.exists(), record.read_text()


def test_the_guard_itself_refuses(tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD)
    record = tmp_path / "connections"
    tried = subprocess.run(
        [command()[0], "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"],
        env=environment(tmp_path, PYTHONPATH=str(guard), POSTTRAIN_TEST_CONNECTIONS=str(record)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert tried.returncode != 0
    assert "127.0.0.1" in record.read_text()
