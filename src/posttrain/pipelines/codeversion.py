"""Which code a stage runs, as a digest: part of the stage's key.

Here: the source of every module of posttrain that the stage's ``config`` and ``run`` modules import,
directly or not, and the versions of the engines that those modules import; both read statically, so nothing
heavy is loaded.

*Covered*: ``import`` and ``from … import`` anywhere in a module, also inside functions; names that a room's
``__init__`` resolves lazily; text constants that are exactly a module name or ``module:attr``; data files
that a module of the closure names by their file name and that lie beside it. *Not covered*: modules whose
name is put together at run time; what a package's ``__init__`` does besides naming things, when one of its
modules is imported directly; imports under ``if TYPE_CHECKING``, on purpose; versions of libraries outside
``ENGINES``. ``pipelines`` and ``cli`` never decide a result and are left out.

To add an engine whose version decides results: one entry in ``ENGINES``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from posttrain.artifacts.stage import StageSpec
from posttrain.core.canonical import digest_bytes, digest_json

ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "accelerate": "accelerate",
        "datasets": "datasets",
        "gguf": "gguf",
        "jsonschema": "jsonschema",
        "latex2sympy2_extended": "latex2sympy2-extended",
        "math_verify": "math-verify",
        "matplotlib": "matplotlib",
        "numpy": "numpy",
        "peft": "peft",
        "pyarrow": "pyarrow",
        "reasoning_gym": "reasoning-gym",
        "safetensors": "safetensors",
        "scipy": "scipy",
        "tokenizers": "tokenizers",
        "torch": "torch",
        "transformers": "transformers",
        "trl": "trl",
        "xllamacpp": "xllamacpp",
    }
)
"""Top-level module to the distribution whose version enters the digest."""

_NEVER_DECIDES = ("posttrain.cli", "posttrain.pipelines")
_MODULE_TEXT = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
_FILE_TEXT = re.compile(r"[\w-]+(?:\.[\w-]+)+")


@dataclass(frozen=True, slots=True)
class CodeClosure:
    """The code of one stage kind."""

    modules: Mapping[str, str]
    """Module (or data file, as ``package/file``) to the digest of its source."""
    engines: Mapping[str, str]
    """Distribution to installed version, ``absent`` where it is not installed."""

    @property
    def digest(self) -> str:
        """The code version."""
        return digest_json({"modules": dict(self.modules), "engines": dict(self.engines)})


def code_version(spec: StageSpec, roots: Mapping[str, Path] | None = None) -> str:
    """Digest of the code of a stage kind; see :func:`code_closure`."""
    return code_closure(spec, roots).digest


def code_closure(spec: StageSpec, roots: Mapping[str, Path] | None = None) -> CodeClosure:
    """The modules and engine versions behind ``spec``.

    ``roots`` maps a top-level package to its folder; by default ``posttrain`` and the packages of the spec's
    own modules, where Python finds them.
    """
    start = [reference.partition(":")[0] for reference in (spec.config, spec.run)]
    if roots is None:
        roots = {
            name: _root_of(name) for name in ("posttrain", *(module.partition(".")[0] for module in start))
        }
    tree = _SourceTree(roots)
    waiting, modules, engines = start, dict[str, str](), set[str]()
    while waiting:
        name = waiting.pop()
        module = tree.module(name)
        if module is None:
            engines.add(name.partition(".")[0])
        elif module.name not in modules and not module.name.startswith(_NEVER_DECIDES):
            modules[module.name] = module.digest
            modules.update(module.data_files())
            waiting.extend(tree.imports_of(module))
    return CodeClosure(
        MappingProxyType(dict(sorted(modules.items()))),
        MappingProxyType(
            {ENGINES[name]: _version(ENGINES[name]) for name in sorted(engines & ENGINES.keys())}
        ),
    )


def _root_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    if spec is not None and spec.origin:
        return Path(spec.origin)
    raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


@dataclass(frozen=True)
class _Module:
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
    def digest(self) -> str:
        return digest_bytes(self.source)

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
        for text in self.texts:
            beside = self.path.parent / text
            if _FILE_TEXT.fullmatch(text) and beside.suffix != ".py" and beside.is_file():
                yield f"{self.package}/{text}", digest_bytes(beside.read_bytes())


@lru_cache(maxsize=1024)
def _parsed(name: str, path: Path, modified_ns: int, size_bytes: int) -> _Module:
    """The module, parsed once for all the stages that run it; read again when the file changed."""
    return _Module(name, path)


class _SourceTree:
    """Finds modules by name below the root folders, without importing anything."""

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = roots
        self.cache: dict[str, _Module | None] = {}

    def module(self, name: str) -> _Module | None:
        if name not in self.cache:
            self.cache[name] = self._find(name)
        return self.cache[name]

    def _find(self, name: str) -> _Module | None:
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
    def _parse(name: str, path: Path) -> _Module:
        facts = path.stat()
        return _parsed(name, path, facts.st_mtime_ns, facts.st_size)

    def imports_of(self, module: _Module) -> Iterator[str]:
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
        package = self.module(base)
        if package is not None and package.is_package:
            yield from self._lazy_member(package, name)

    def _lazy_member(self, package: _Module, name: str) -> Iterator[str]:
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
        self, package: _Module, name: str, key: ast.expr | None, value: ast.expr
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


def _absolute(module: _Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node except those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from _run_time_nodes(other)
            continue
        yield node
        yield from _run_time_nodes(node)
