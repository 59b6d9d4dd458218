"""The normal form of a Python source file: the same text for every edit that changes nothing that runs.

Left out: comments, docstrings and other bare texts, annotations, places in the file, ``__all__``, imports for type
checkers, the order of a module's imports. Imports and texts that name modules go through ``names``, so that a module
that moved counts under its old name.

*Covered*: statements, values, order of statements, names, defaults, decorators. *Not covered*: annotations that a
library reads at run time (a pydantic field of another type): a stage's key holds the resolved configuration beside the
code. The form does not depend on the version of Python, except where the language itself reads a text differently.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, Protocol


class Names(Protocol):
    """Gives every name that a file takes from elsewhere its lasting form."""

    def binding(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> tuple[str, ...]:
        """What one imported name is bound to: the module that defines it, its name there, and the name here."""
        ...

    def text(self, value: str) -> str:
        """A text constant, with the name of a module in its lasting form."""
        ...


def normal_form(tree: ast.Module, names: Names) -> list[Any]:
    """JSON data that is equal for two files that do the same. ``tree`` is not changed."""
    bindings = sorted(
        names.binding(node, alias)
        for node in run_time_statements(tree.body)
        if isinstance(node, ast.Import | ast.ImportFrom) and not is_future(node)
        for alias in node.names
    )
    rest = [
        node for node in run_time_statements(tree.body) if not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return [[list(binding) for binding in bindings], _block(rest, names)]


def run_time_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block, those for type checkers left out."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            yield from run_time_statements(node.orelse)
        else:
            yield node


def is_future(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import is one of ``from __future__ import …``."""
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _block(body: list[ast.stmt], names: Names, *, in_class: bool = False) -> list[Any]:
    found = []
    for node in run_time_statements(body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(["Import", sorted(list(names.binding(node, alias)) for alias in node.names)])
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                found.append(["Assign", [_value(node.target, names)], _value(node.value, names)])
            elif in_class:  # a field without a default: its name and its place among the others count
                found.append(["Field", _value(node.target, names)])
        elif not _says_nothing(node):
            found.append(_value(node, names))
    return found


def _says_nothing(node: ast.stmt) -> bool:
    """Docstrings, other bare texts, ``...``, ``pass`` and ``__all__``."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["__all__"]
    return isinstance(node, ast.Pass)


_ANNOTATIONS = {"annotation", "returns", "type_comment", "type_params", "type_ignores", "kind", "ctx"}


def _value(value: Any, names: Names) -> Any:
    """One node or one part of a node as JSON data; what is empty is left out."""
    if isinstance(value, ast.Assign):
        return ["Assign", [_value(target, names) for target in value.targets], _value(value.value, names)]
    if isinstance(value, ast.Constant):
        return _constant(value.value, names)
    if isinstance(value, ast.AST):
        parts: dict[str, Any] = {}
        for name, part in ast.iter_fields(value):
            if name in _ANNOTATIONS or part is None or part == []:
                continue
            if isinstance(part, list) and isinstance(part[0], ast.stmt):
                parts[name] = _block(part, names, in_class=isinstance(value, ast.ClassDef))
            else:
                parts[name] = _value(part, names)
        return [type(value).__name__, parts]
    if isinstance(value, list):
        return [_value(part, names) for part in value]
    return value if isinstance(value, str | int) else repr(value)


def _constant(value: Any, names: Names) -> Any:
    if isinstance(value, str):
        return ["text", names.text(value)]
    return [type(value).__name__, repr(value)]
