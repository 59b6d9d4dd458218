"""The compiled hot path: taken only for the very sources it was made of, and the same gateway."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.core.errors import ConfigError, MissingDependencyError, ServingError
from posttrain.serving.gateway import compiled, compiling

_ROOT = Path(__file__).parents[2]
_ROOMS = ("tests/serving", "tests/traffic", "tests/routing", "tests/rollouts", "tests/guardrails")
_TESTS = "gateway or traffic or assignment or shadow or control or rollout or router"


def classes(source: Path) -> dict[str, set[str]]:
    """The classes of a source, with the names of what they inherit from."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in found}


def fill(folder: Path) -> Path:
    folder.mkdir()
    for name in compiled.LIBRARIES:
        compiled.library(folder, name).touch()
    return folder


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled modules are kept."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.delenv(compiled.OFF, raising=False)
    monkeypatch.setenv(compiled.FOLDER, str(folder))
    return folder


def test_what_inherits_from_a_compiled_class_is_compiled() -> None:
    sources = {module: classes(compiled.source_of(module)) for module in compiled.MODULES}
    bases = {name for found in sources.values() for name in found}
    assert {"Exchange", "Call", "Wire"} <= bases
    package = compiled.source_of("posttrain.__init__").parent
    heirs = {path for path in package.rglob("*.py") for its in classes(path).values() if its & bases}
    assert heirs <= {compiled.source_of(module) for module in compiled.MODULES}


def test_another_source_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, package = compiled.digest(), compiled.source_of("posttrain.__init__").parent
    copy = shutil.copytree(package, tmp_path / "posttrain", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiled, "_PACKAGE", copy)
    assert compiled.digest() == before
    for module in ("posttrain.serving.gateway.server", "posttrain.routing.records"):
        with compiled.source_of(module).open("a") as stream:
            stream.write("\n")
        after = compiled.digest()
        assert after != before
        before = after


def test_only_what_is_whole_and_of_these_sources_is_used(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.folder_in_use() is None
    fill(keep / "0123456789abcdef")
    assert compiled.folder_in_use() is None
    ours = fill(keep / compiled.digest())
    assert compiled.folder_in_use() == ours
    monkeypatch.setenv(compiled.OFF, "1")
    assert compiled.folder_in_use() is None
    monkeypatch.delenv(compiled.OFF)
    compiled.library(ours, compiled.MODULES[3]).unlink()
    assert compiled.folder_in_use() is None
    monkeypatch.setenv(compiled.FOLDER, "kept")
    with pytest.raises(ConfigError, match="POSTTRAIN_COMPILED is 'kept'"):
        compiled.folder_in_use()


def test_removing_takes_nothing_of_anybody_else(keep: Path) -> None:
    fill(keep / "0123456789abcdef")
    fill(keep / compiled.digest())
    (keep / ".making-abc").mkdir()
    (keep / "photos").mkdir()
    (keep / "README").write_text("mine")
    assert compiling.forget_compiled() == 2
    assert {path.name for path in keep.iterdir()} == {"photos", "README"}
    shutil.rmtree(keep / "photos")
    (keep / "README").unlink()
    assert compiling.forget_compiled() == 0
    assert not keep.exists()


def test_without_a_compiler_it_says_so(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ServingError, match=r"no C compiler \(no-such-compiler\)") as caught:
        compiling.compile_hot_path()
    assert caught.value.hint
    monkeypatch.delenv("CC")
    monkeypatch.setattr(compiling, "MADE_BY", "mypy 0.1")
    with pytest.raises(MissingDependencyError, match=r"needs mypy 0\.1"):
        compiling.compile_hot_path()
    monkeypatch.setattr(compiling, "MADE_BY", compiled.MADE_BY)
    monkeypatch.setenv(compiled.FOLDER, "/proc/nowhere")
    with pytest.raises(ServingError, match="cannot change /proc/nowhere"):
        compiling.compile_hot_path()


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_nothing(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{sys.executable} -c raise(SystemExit(9))")
    with pytest.raises(ServingError, match=r"ended with 1:\n(.|\n)*exit status 9"):
        compiling.compile_hot_path()
    assert not list(keep.iterdir())


@pytest.mark.slow
def test_the_compiled_gateway_passes_the_tests_of_the_gateway(tmp_path: Path) -> None:
    environment = {**os.environ, compiled.FOLDER: str(tmp_path / "kept")}
    environment.pop(compiled.OFF, None)
    command = [sys.executable, "-m", "posttrain", "compile", "--json"]

    def compile_once() -> dict[str, object]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    first, second = compile_once(), compile_once()
    assert (first["new"], second["new"]) == (True, False)
    assert first["folder"] == second["folder"]
    options = ("-m", "not slow", "-k", _TESTS, "-n", "2", "--dist", "loadgroup")
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, *_ROOMS],
        cwd=_ROOT,
        env={**environment, "POSTTRAIN_TEST_COMPILED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout[-4000:]
    passed = re.search(r"(\d+) passed", tests.stdout)
    assert passed is not None
    assert int(passed[1]) > 500
