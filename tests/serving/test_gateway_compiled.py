"""The compiled hot path: taken only for the very sources it was made of, and the same gateway."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.core.errors import PosttrainError
from posttrain.serving.gateway import compiled, compiling

_ROOT = Path(__file__).parents[2]


def test_every_module_that_is_compiled_exists_and_so_does_what_inherits_from_it() -> None:
    assert all(compiled.source_of(module).is_file() for module in compiled.MODULES)
    bases = re.compile(r"^class \w+\((Exchange|Call|Wire)\)", re.MULTILINE)
    package = compiled.source_of("posttrain.serving.gateway.server").parent
    heirs = {path.stem for path in package.glob("*.py") if bases.search(path.read_text(encoding="utf-8"))}
    assert heirs
    assert heirs <= {module.rpartition(".")[2] for module in compiled.MODULES}


def test_another_source_is_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled.digest()
    for module in compiled.MODULES:
        source = compiled.source_of(module)
        copy = tmp_path / "posttrain" / source.relative_to(compiled.source_of("posttrain.__init__").parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    monkeypatch.setattr(compiled, "_PACKAGE", tmp_path / "posttrain")
    assert compiled.digest() == before
    with compiled.source_of(compiled.MODULES[0]).open("a") as stream:
        stream.write("\n")
    assert compiled.digest() != before
    compiled.source_of(compiled.MODULES[0]).unlink()
    assert compiled.compiled_folder() is None


def test_only_what_was_made_of_these_sources_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.OFF, raising=False)
    monkeypatch.setenv(compiled.FOLDER, str(tmp_path))
    assert compiled.folder_in_use() is None
    (tmp_path / "0123456789abcdef").mkdir()
    assert compiled.folder_in_use() is None
    (tmp_path / compiled.digest()).mkdir()
    assert compiled.folder_in_use() == tmp_path / compiled.digest()
    monkeypatch.setenv(compiled.OFF, "1")
    assert compiled.folder_in_use() is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"CC": "no-such-compiler"}, "no C compiler"),
        ({"CC": f"{sys.executable} -c raise(SystemExit(9))"}, "C compiler failed"),
        ({compiled.FOLDER: "/proc/nowhere"}, "cannot keep compiled modules in /proc/nowhere"),
    ],
)
def test_what_is_missing_is_said_and_nothing_half_made_stays(
    change: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiled.FOLDER, str(tmp_path))
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PosttrainError, match=says) as caught:
        compiling.compile_hot_path()
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_compiled_gateway_passes_every_test_of_the_gateway(tmp_path: Path) -> None:
    environment = {**os.environ, compiled.FOLDER: str(tmp_path / "kept")}
    environment.pop(compiled.OFF, None)
    command = [sys.executable, "-m", "posttrain", "compile", "--json"]

    def compile_once() -> dict[str, object]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    first, second = compile_once(), compile_once()
    assert (first["new"], second["new"]) == (True, False)
    assert first["folder"] == second["folder"]
    options = ("-m", "not slow", "-k", "gateway or assignment", "-n", "2", "--dist", "loadgroup")
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, "tests/serving"],
        cwd=_ROOT,
        env={**environment, "POSTTRAIN_TEST_COMPILED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout[-4000:]
    passed = re.search(r"(\d+) passed", tests.stdout)
    assert passed is not None
    assert int(passed[1]) > 300
