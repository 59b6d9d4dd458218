"""The hot path compiled: which modules, where they are kept, and how a worker takes them.

Here: the list, the digest of the sources, the import hook. Not here: compiling (``compiling``). What is compiled are
these very sources, by mypyc: there is no second implementation. The results are kept in the environment under the
digest of every source of the package, since mypyc takes types from all of them: where one was changed, sources run.

A worker takes them by itself (``__main__``), unless ``POSTTRAIN_INTERPRETED`` is set to something, and
``POSTTRAIN_COMPILED`` names another folder to keep them in. Importing this needs the standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from posttrain.core.errors import ConfigError

MODULES = (
    "posttrain.core.buckets",
    "posttrain.routing.assignment",
    "posttrain.serving.gateway.admission",
    "posttrain.serving.gateway.breaker",
    "posttrain.serving.gateway.choosing",
    "posttrain.serving.gateway.context",
    "posttrain.serving.gateway.ensemble",
    "posttrain.serving.gateway.events",
    "posttrain.serving.gateway.exchange",
    "posttrain.serving.gateway.feedback",
    "posttrain.serving.gateway.guard",
    "posttrain.serving.gateway.identity",
    "posttrain.serving.gateway.metrics",
    "posttrain.serving.gateway.plan",
    "posttrain.serving.gateway.replies",
    "posttrain.serving.gateway.routes",
    "posttrain.serving.gateway.rowlog",
    "posttrain.serving.gateway.server",
    "posttrain.serving.gateway.shadow",
    "posttrain.serving.gateway.upstream",
    "posttrain.serving.gateway.wire",
    "posttrain.traffic.clock",
    "posttrain.traffic.segment_format",
    "posttrain.traffic.segments",
)
"""What is compiled: what runs for every request. A class and what inherits from it are compiled both or not at all."""
GROUP = "posttrain_gateway"
"""mypyc puts the code of all of them into one library of this name, which each of them imports."""
OFF = "POSTTRAIN_INTERPRETED"
"""The environment variable that leaves compiled modules alone."""
FOLDER = "POSTTRAIN_COMPILED"
"""The environment variable that says where they are kept, an absolute path; as trusted as ``PYTHONPATH``."""
MADE_BY = "mypy 2.4.1"
"""Whose mypyc makes them; ours is tested with this one."""
OPTIMISATION = "3"
LIBRARIES = (*MODULES, f"{GROUP}__mypyc")
"""What is found compiled, by the name that it is imported by."""
_PACKAGE = Path(__file__).parents[2]
_SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


def source_of(module: str) -> Path:
    """The source file of a module of this package."""
    return _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def kept_in() -> Path:
    """Where compiled modules are kept: beside the libraries of this environment, which are trusted as much."""
    named = os.environ.get(FOLDER)
    if named and not Path(named).is_absolute():
        raise ConfigError(f"{FOLDER} is {named!r}", hint="give an absolute path, or leave it out")
    return Path(named or sysconfig.get_path("platlib")) / ("" if named else "posttrain_compiled")


def digest() -> str:
    """Of all sources, and of the interpreter and the compiler; 16 hex digits. Takes some hundredths of a second."""
    made_for = (
        f"{_SUFFIX} {platform.python_version()} {platform.machine()} {MADE_BY} {OPTIMISATION} {MODULES}"
    )
    seen = hashlib.sha256(made_for.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        source = path.read_bytes()
        seen.update(b"\n%b %d\n" % (path.relative_to(_PACKAGE).as_posix().encode(), len(source)))
        seen.update(source)
    return seen.hexdigest()[:16]


def compiled_folder() -> Path | None:
    """Where the compiled modules of these very sources are, all of them; None: they are not there."""
    folder = kept_in() / digest()
    try:
        return folder if all(library(folder, name).is_file() for name in LIBRARIES) else None
    except OSError:  # a folder that may not be looked into
        return None


def folder_in_use() -> Path | None:
    """What a worker that starts now takes."""
    return None if os.environ.get(OFF) else compiled_folder()


def use_compiled() -> bool:
    """Let every import from now on take a compiled module where there is one; whether there are any."""
    folder = folder_in_use()
    if folder is None:
        return False
    sys.meta_path.insert(0, _Finder(folder))
    return True


def is_compiled() -> bool:
    """Whether this process takes compiled modules."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def library(folder: Path, module: str) -> Path:
    """The file of a compiled module."""
    return folder / f"{module}{_SUFFIX}"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of one folder of compiled ones."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: library(folder, name) for name in LIBRARIES}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Part of the import system."""
        file = self._files.get(fullname)
        if file is None:
            return None
        loader = importlib.machinery.ExtensionFileLoader(fullname, str(file))
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)
