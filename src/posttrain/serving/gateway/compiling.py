"""Compiling the hot path with mypyc.

Here: a copy of the package's sources, mypyc over the modules of ``compiled`` in a process of its own, and the finished
libraries put where workers look, all of them or none. Not here: when they are used (``compiled``). Needs ``pip install
'posttrain[compile]'``, a C compiler and Python's headers.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from posttrain.core.atomic import locked
from posttrain.core.errors import MissingDependencyError, ServingError, StoreError
from posttrain.serving.gateway.compiled import (
    FOLDER,
    GROUP,
    LIBRARIES,
    MADE_BY,
    MODULES,
    OPTIMISATION,
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
config, group, level, *files = {arguments!r}
modules = mypycify(["--config-file", config, *files], opt_level=level, group_name=group)
for module in modules:  # another compiler warns of other things, and a warning is no reason to go without
    module.extra_compile_args = [word for word in module.extra_compile_args if word != "-Werror"]
setup(
    name=group,
    packages=[],
    package_dir={{"": "."}},
    ext_modules=modules,
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
_MAKING = ".making-"
_DIGEST = re.compile(r"[0-9a-f]{16}")


def compile_hot_path(*, again: bool = False) -> Path:
    """Compile what is not compiled yet, or all of it ``again``; returns the folder. Takes a minute of one core.

    One process compiles at a time; another waits for it, and then has nothing left to do. Raises MissingDependencyError
    without mypyc, ServingError where there is no C compiler, the folder cannot be written to, or compiling fails. A
    worker that starts meanwhile finds everything or nothing.
    """
    there = compiled_folder()
    if there is not None and not again:
        return there
    _look_for_tools()
    keep = kept_in()
    with _changing(keep):
        there = compiled_folder()
        if there is not None and not again:
            return there
        made_of = digest()
        with tempfile.TemporaryDirectory(prefix=_MAKING, dir=keep) as scratch:
            finished = _build(Path(scratch))
            if digest() != made_of:
                raise ServingError("the sources changed while they were compiled", hint="try again")
            if (keep / made_of).exists():
                (keep / made_of).rename(Path(scratch) / "old")
            finished.rename(keep / made_of)
    return keep / made_of


def forget_compiled() -> int:
    """Remove what was compiled, of whichever sources; how many such folders there were. Running workers keep what they
    have. Raises ServingError where that is not allowed."""
    keep = kept_in()
    if not keep.is_dir():
        return 0
    with _changing(keep):
        ours = [path for path in keep.iterdir() if _DIGEST.fullmatch(path.name)]
        for path in ours:
            gone = path.rename(keep / f"{_MAKING}{path.name}")  # at once, for a worker that starts now
            shutil.rmtree(gone)
    with contextlib.suppress(OSError):
        keep.rmdir()  # where nothing else is in it
    return len(ours)


@contextlib.contextmanager
def _changing(keep: Path) -> Iterator[None]:
    """Be the only one who changes what is kept; what one who was killed left behind goes."""
    try:
        keep.mkdir(parents=True, exist_ok=True)
        with locked(keep, exclusive=True):
            for left in keep.glob(f"{_MAKING}*"):
                shutil.rmtree(left)
            yield
    except (OSError, StoreError) as error:
        raise ServingError(
            f"cannot change {keep}, where compiled modules are kept: {getattr(error, 'strerror', None) or error}",
            hint=f"run it as who may write there, or name another folder in {FOLDER}, for workers too",
        ) from error


def _look_for_tools() -> None:
    maker, _, version = MADE_BY.partition(" ")
    try:
        found = metadata.version(maker)
    except metadata.PackageNotFoundError:
        found = ""
    if found != version or find_spec("mypyc") is None or find_spec("setuptools") is None:
        raise MissingDependencyError(
            f"compiling the gateway needs {MADE_BY} and setuptools", hint="pip install 'posttrain[compile]'"
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
    (scratch / "setup.py").write_text(
        _SETUP.format(arguments=["mypy.ini", GROUP, OPTIMISATION, *files]), encoding="utf-8"
    )
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
            f"mypyc or the C compiler ended with {done.returncode}:\n{last}",
            hint="the gateway works without it, interpreted",
        )
    finished = scratch / "finished"
    finished.mkdir()
    for module in LIBRARIES:
        target = library(finished, module)
        built = scratch / "out" / target.name.replace(".", "/", module.count("."))
        built.rename(target)
    return finished


def _is_left(name: str) -> bool:
    return "." in name and not name.endswith((".py", ".pyi", ".typed"))
