"""Which code a stage runs, as a digest: part of the stage's key.

Here: every module of posttrain that the stage's ``config`` and ``run`` modules import, directly or not, each in its
normal form (``core.syntax``), and the versions of the libraries behind what they import (``libraries``). All of it is
read statically, so nothing heavy is loaded. Comments, docstrings, annotations, the order of imports and public names
change nothing; a module that moved counts under its old name (``core.sources.MOVED``).

*Covered*: ``import`` and ``from … import`` anywhere in a module, also inside functions; names that a room's
``__init__`` resolves lazily; text constants that are exactly a module name or ``module:attr``; data files
that a module of the closure names by their file name and that lie beside it. *Not covered*: modules whose
name is put together at run time; what a package's ``__init__`` does besides naming things, when one of its
modules is imported directly; imports under ``if TYPE_CHECKING``, on purpose. ``pipelines`` and ``cli`` never decide a
result and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from posttrain.artifacts.stage import StageSpec
from posttrain.core.canonical import digest_json
from posttrain.core.sources import SourceTree
from posttrain.pipelines.libraries import library_versions

_NEVER_DECIDES = ("posttrain.cli", "posttrain.pipelines")


@dataclass(frozen=True, slots=True)
class CodeClosure:
    """The code of one stage kind."""

    modules: Mapping[str, str]
    """Module by its lasting name (or data file, as ``package/file``) to the digest of its normal form."""
    libraries: Mapping[str, str]
    """Distribution to installed version, ``absent`` where it is not installed."""

    @property
    def digest(self) -> str:
        """The code version."""
        return digest_json({"modules": dict(self.modules), "libraries": dict(self.libraries)})


def code_version(spec: StageSpec, sources: SourceTree | None = None) -> str:
    """Digest of the code of a stage kind; see :func:`code_closure`."""
    return code_closure(spec, sources).digest


def code_closure(spec: StageSpec, sources: SourceTree | None = None) -> CodeClosure:
    """The modules and library versions behind ``spec``. ``sources`` lets several stages share what was read."""
    tree = sources or SourceTree()
    start = [reference.partition(":")[0] for reference in (spec.config, spec.run)]
    for module_name in start:
        tree.take_in(module_name.partition(".")[0])
    waiting, modules, outside, seen = start, dict[str, str](), set[str](), set[str]()
    while waiting:
        name = waiting.pop()
        module = tree.module(name)
        if module is None:
            outside.add(name.partition(".")[0])
        elif module.name not in seen and not module.name.startswith(_NEVER_DECIDES):
            seen.add(module.name)
            modules[tree.lasting(module.name)] = tree.digest(module)
            modules.update(tree.data_files(module))
            waiting.extend(tree.imports_of(module))
    return CodeClosure(
        MappingProxyType(dict(sorted(modules.items()))),
        MappingProxyType(library_versions(outside - tree.roots.keys())),
    )
