"""What a sandboxed Python needs of this machine: its standard library and the shared libraries, read-only.

Here: finding them, for any of the two backends. Not here: mounting (``backends``, ``guest.enter``). Third-party
packages are hidden, and nothing of the user is in the view.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_LOADER_FILES = ("/etc/ld.so.cache",)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """The root of the sandbox, as a list of what is where."""

    executable: str
    """Python itself, by its real path."""
    binds: tuple[str, ...]
    """Files and folders of this machine that stand, read-only, at the same path."""
    links: tuple[tuple[str, str], ...]
    """Symbolic links: path and target."""
    masks: tuple[str, ...]
    """Folders inside the binds that are covered by an empty one."""
    devices: tuple[str, ...] = _DEVICES
    folders: tuple[str, ...] = ("/box", "/proc")
    """Empty folders on which each run mounts its own."""


@lru_cache(maxsize=1)
def python_view() -> RuntimeView:
    """The view for the Python that runs now."""
    executable = os.path.realpath(sys.executable)
    prefix = Path(sys.base_prefix).resolve()
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    wanted = [
        stdlib,
        Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})).resolve(),
    ]
    if prefix not in (Path("/usr"), Path("/usr/local")):
        wanted.append(prefix / "lib")  # a Python of its own brings its own libraries
    elif library := sysconfig.get_config_var("INSTSONAME"):
        wanted.append(Path(sysconfig.get_config_var("LIBDIR")) / str(library))
    wanted += [Path(name) for name in _LIBRARIES if Path(name).is_dir() and not Path(name).is_symlink()]
    wanted += [Path(executable), *map(Path, _LOADER_FILES)]
    binds = _outermost([path for path in wanted if path.exists()])
    links = [(name, str(Path(name).readlink())) for name in _LIBRARIES if Path(name).is_symlink()]
    masks = [
        stdlib / "site-packages",
        stdlib / "dist-packages",
        Path("/usr/lib/python3"),
        *Path("/usr/lib").glob("python3*/dist-packages"),
    ]
    hidden = {mask for mask in masks if mask.is_dir() and any(mask.is_relative_to(bind) for bind in binds)}
    return RuntimeView(
        executable=executable,
        binds=tuple(str(path) for path in binds),
        links=(*links, ("/tmp", "/box")),
        masks=tuple(str(path) for path in _outermost(list(hidden))),
    )


def _outermost(paths: list[Path]) -> list[Path]:
    """Without what stands inside another one."""
    unique = sorted(set(paths))
    return [
        path for path in unique if not any(path != other and path.is_relative_to(other) for other in unique)
    ]
