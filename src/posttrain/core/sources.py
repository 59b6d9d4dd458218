"""Sources of packages as they count for identity: modules found by name, and each one's digest.

Here: reading modules statically, the names that they take from elsewhere, names of modules that moved. Not here: which
code a stage reaches (``pipelines.codeversion``), the normal form itself (``syntax``). Loads nothing that it reads.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from posttrain.core.canonical import digest_bytes, digest_json
from posttrain.core.syntax import normal_form, run_time_statements

MOVED: Mapping[str, str] = MappingProxyType({})
"""Module or package to its name before it moved. To move one without a new key for any stage: one entry here; what is
below a package moves with it."""

_MODULE_TEXT = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
_FILE_TEXT = re.compile(r"[\w-]+(?:\.[\w-]+)+")


def _root_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    if spec is not None and spec.origin:
        return Path(spec.origin)
    raise ModuleNotFoundError(f"No module named {package!r}", name=package)


@dataclass(frozen=True)
class SourceModule:
    """One module, read and parsed when it is first asked for."""

    name: str
    path: Path

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @cached_property
    def source(self) -> bytes:
        return self.path.read_bytes().replace(b"\r\n", b"\n")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, filename=str(self.path))

    @cached_property
    def imports(self) -> list[ast.Import | ast.ImportFrom]:
        return [node for node in _run_time_nodes(self.tree) if isinstance(node, ast.Import | ast.ImportFrom)]

    @cached_property
    def texts(self) -> frozenset[str]:
        constants = (node.value for node in _run_time_nodes(self.tree) if isinstance(node, ast.Constant))
        return frozenset(value for value in constants if isinstance(value, str))

    def data_files(self) -> Iterator[tuple[str, str]]:
        """Name and digest of each file that this module names and that lies beside it."""
        for text in self.texts:
            beside = self.path.parent / text
            if _FILE_TEXT.fullmatch(text) and beside.suffix != ".py" and beside.is_file():
                yield text, digest_bytes(beside.read_bytes())

    @cached_property
    def lazy_table(self) -> str | None:
        """The variable that holds a room's table of lazy names: the last argument of ``lazy_names``."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                call = node.value
                if ast.unparse(call.func) == "lazy_names" and isinstance(call.args[-1], ast.Name):
                    return call.args[-1].id
        return None

    @cached_property
    def without_lazy_table(self) -> ast.Module:
        """The tree without that table and its use: whoever takes a name from it is followed there."""
        if self.lazy_table is None:
            return self.tree
        names = (self.lazy_table, "__getattr__")
        body = [
            node
            for node in self.tree.body
            if not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names)
        ]
        return ast.Module(body, [])


@lru_cache(maxsize=1024)
def _parsed(name: str, path: Path, modified_ns: int, size_bytes: int) -> SourceModule:
    """The module, parsed once for all the stages that run it; read again when the file changed."""
    return SourceModule(name, path)


class SourceTree:
    """Sources of packages, found by module name and read once, without importing anything.

    ``roots`` maps a top-level package to its folder; without it, ``posttrain`` and the packages of the stages that are
    asked for are taken from where Python finds them. Make a new one where files may have changed.
    """

    def __init__(self, roots: Mapping[str, Path] | None = None, moved: Mapping[str, str] = MOVED) -> None:
        self.fixed = roots is not None
        self.roots = dict(roots) if roots is not None else {"posttrain": _root_of("posttrain")}
        self.moved = moved
        self.cache: dict[str, SourceModule | None] = {}
        self.digests: dict[str, str] = {}

    def take_in(self, package: str) -> None:
        """Read the modules of ``package``, too."""
        if not self.fixed and package not in self.roots:
            self.roots[package] = _root_of(package)

    def lasting(self, name: str) -> str:
        """The name of a module before it, or a package around it, moved."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            before = self.moved.get(".".join(parts[:length]))
            if before is not None:
                return ".".join([before, *parts[length:]])
        return name

    def digest(self, module: SourceModule) -> str:
        """Of the module's normal form."""
        if module.name not in self.digests:
            form = normal_form(module.without_lazy_table, _LastingNames(self, module))
            self.digests[module.name] = digest_json(form)
        return self.digests[module.name]

    def data_files(self, module: SourceModule) -> Iterator[tuple[str, str]]:
        """``package/file`` to digest of the data files that the module names."""
        name = self.lasting(module.name)
        package = name if module.is_package else name.rpartition(".")[0]
        for file, digest in module.data_files():
            yield f"{package}/{file}", digest

    def module(self, name: str) -> SourceModule | None:
        if name not in self.cache:
            self.cache[name] = self._find(name)
        return self.cache[name]

    def _find(self, name: str) -> SourceModule | None:
        top, *below = name.split(".")
        root = self.roots.get(top)
        if root is None:
            return None
        if root.is_file():
            return self._parse(name, root) if not below else None
        folder = root.joinpath(*below)
        for path in (folder / "__init__.py", folder.with_suffix(".py") if below else None):
            if path is not None and path.is_file():
                return self._parse(name, path)
        return None

    @staticmethod
    def _parse(name: str, path: Path) -> SourceModule:
        facts = path.stat()
        return _parsed(name, path, facts.st_mtime_ns, facts.st_size)

    def imports_of(self, module: SourceModule) -> Iterator[str]:
        """Names of modules; for other packages than the roots' only the top-level part is meaningful."""
        for node in module.imports:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            else:
                base = _absolute(module, node)
                for alias in node.names:
                    yield from self._from_import(base, alias.name)
        if module.is_package:  # its texts are a table of lazy names, followed name by name
            return
        for text in module.texts:
            name = text.partition(":")[0]
            if _MODULE_TEXT.fullmatch(name) and self.module(name) is not None:
                yield name

    def _from_import(self, base: str, name: str) -> Iterator[str]:
        if self.module(f"{base}.{name}") is not None:
            yield f"{base}.{name}"
            return
        yield base
        yield from self.lazy_homes(base, name)

    def lazy_homes(self, base: str, name: str) -> list[str]:
        """The modules in which the package ``base`` says that ``name`` lives."""
        package = self.module(base)
        return list(self._lazy_member(package, name)) if package is not None and package.is_package else []

    def _lazy_member(self, package: SourceModule, name: str) -> Iterator[str]:
        """Where a room's ``__init__`` says that ``name`` lives, by an import for type checkers or by a
        table."""
        for node in ast.walk(package.tree):
            if isinstance(node, ast.ImportFrom):
                if any(alias.name in (name, "*") or name == "*" for alias in node.names):
                    yield _absolute(package, node)
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    yield from self._table_entry(package, name, key, value)

    def _table_entry(
        self, package: SourceModule, name: str, key: ast.expr | None, value: ast.expr
    ) -> Iterator[str]:
        """``"name": "module"`` or ``"module": ("name", …)``."""
        keys, values = _constants(key), _constants(value)
        named = (values if name in keys else []) + (keys if name in values else [])
        for text in [*keys, *values] if name == "*" else named:
            module = text.partition(":")[0].lstrip(".")
            for candidate in (module, f"{package.name}.{module}"):
                if module and self.module(candidate) is not None:
                    yield candidate


def _constants(node: ast.expr | None) -> list[str]:
    """The texts of a constant, or of a tuple or list of constants."""
    items = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
    return [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]


def _absolute(module: SourceModule, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node except those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        for kept in run_time_statements([node]) if isinstance(node, ast.stmt) else [node]:
            yield kept
            yield from _run_time_nodes(kept)


@dataclass(frozen=True)
class _LastingNames:
    """What the names in one module stand for; see :class:`posttrain.core.syntax.Names`."""

    sources: SourceTree
    module: SourceModule

    def binding(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> tuple[str, ...]:
        if isinstance(node, ast.Import):
            # Without `as`, an import binds the first part of the name; two of one package stay apart.
            return (self.sources.lasting(alias.name), "", alias.asname or "")
        base = _absolute(self.module, node)
        bound = alias.asname or alias.name
        if self.sources.module(f"{base}.{alias.name}") is not None:
            return (self.sources.lasting(f"{base}.{alias.name}"), "", bound)
        homes = sorted(set(self.sources.lazy_homes(base, alias.name)))
        home = homes[0] if len(homes) == 1 else base
        return (self.sources.lasting(home), alias.name, bound)

    def text(self, value: str) -> str:
        """``value`` with every module that it names, also within a command, under its lasting name."""
        return _MODULE_TEXT.sub(self._lasting_text, value) if self.sources.moved else value

    def _lasting_text(self, found: re.Match[str]) -> str:
        name = found[0]
        return self.sources.lasting(name) if self.sources.module(name) is not None else name
