"""Compiling the hot path with mypyc.

Here: a copy of the package's sources, mypyc over the modules of ``compiled`` in a process of its own, and the finished
libraries put where workers look, all of them or none. Not here: when they are used (``compiled``). Needs ``pip install
'posttrain[compile]'``, a C compiler and Python's headers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from posttrain.core.errors import MissingDependencyError
from posttrain.serving.errors import ServingError
from posttrain.serving.gateway.compiled import (
    FOLDER,
    GROUP,
    MODULES,
    compiled_folder,
    digest,
    kept_in,
    library,
    source_of,
)

_SETUP = """\
import sys
from mypyc.build import mypycify
from setuptools import setup
config, group, *files = {arguments!r}
setup(
    name=group,
    packages=[],
    package_dir={{"": "."}},
    ext_modules=mypycify(["--config-file", config, *files], opt_level="3", group_name=group),
    script_args=["-q", "build_ext", "--build-lib", "out", "--build-temp", "objects"],
)
"""
# Types are checked where the sources are kept; here they only have to be known, whatever else is installed.
_CONFIG = """\
[mypy]
plugins = pydantic.mypy
ignore_missing_imports = True
follow_imports = silent
"""
_TAIL_LINES = 12


def compile_hot_path(*, again: bool = False) -> Path:
    """Compile what is not compiled yet, or all of it ``again``; returns the folder. Takes a minute of one core.

    Raises MissingDependencyError without mypyc, ServingError where there is no C compiler, the environment cannot be
    written to, or compiling fails. Nothing half-made is ever found by a worker.
    """
    there = compiled_folder()
    if there is not None and not again:
        return there
    _look_for_tools()
    keep = kept_in()
    made_of = digest()
    try:
        keep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=keep) as scratch:
            finished = _build(Path(scratch))
            if digest() != made_of:
                raise ServingError("the sources changed while they were compiled", hint="try again")
            _put(finished, keep / made_of)
    except OSError as error:
        raise ServingError(
            f"cannot keep compiled modules in {keep}: {error.strerror or error}",
            hint=f"run it as who may write there, or name another folder in {FOLDER}, for workers too",
        ) from error
    return keep / made_of


def forget_compiled() -> bool:
    """Remove all compiled modules of this environment; whether there were any. Running workers keep what they have."""
    there = kept_in().is_dir()
    shutil.rmtree(kept_in(), ignore_errors=True)
    return there


def _look_for_tools() -> None:
    for module in ("mypyc", "setuptools"):
        if find_spec(module) is None:
            raise MissingDependencyError(
                f"compiling the gateway needs {module}", hint="pip install 'posttrain[compile]'"
            )
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(compiler.split()[0]) is None:
        raise ServingError(
            f"there is no C compiler ({compiler.split()[0]})",
            hint="install one (Debian: `apt install build-essential`), or name it in the variable CC",
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise ServingError(
            f"Python's headers are not here ({header})",
            hint="install them (Debian: `apt install python3-dev`)",
        )


def _build(scratch: Path) -> Path:
    """Copy, compile, gather; returns the folder with the libraries."""
    package = source_of("posttrain.__init__").parent
    shutil.copytree(
        package, scratch / "posttrain", ignore=lambda _, names: {name for name in names if _is_left(name)}
    )
    files = [str(source_of(module).relative_to(package.parent)) for module in MODULES]
    (scratch / "mypy.ini").write_text(_CONFIG, encoding="utf-8")
    (scratch / "setup.py").write_text(_SETUP.format(arguments=["mypy.ini", GROUP, *files]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "setup.py"],
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-_TAIL_LINES:])
        raise ServingError(
            f"mypyc or the C compiler failed:\n{last}", hint="the gateway works without it, interpreted"
        )
    finished = scratch / "finished"
    finished.mkdir()
    for module in (*MODULES, f"{GROUP}__mypyc"):
        target = library(finished, module)
        built = scratch / "out" / target.name.replace(".", "/", module.count("."))
        built.rename(target)
    return finished


def _is_left(name: str) -> bool:
    return "." in name and not name.endswith((".py", ".pyi", ".typed"))


def _put(finished: Path, place: Path) -> None:
    """Into place at once; what was there, and what was made of other sources, goes."""
    for old in place.parent.iterdir():
        if old != finished.parent and not old.name.startswith("."):
            shutil.rmtree(old)
    finished.rename(place)
