"""The generated tables of ``docs/releases.md``, made again by ``python -m posttrain.releases._docs PAGE``.

A test compares the page with what this makes. What stands between the marks is made here, from the docstring under
each field; the rest of the page is written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel

from posttrain.releases import policies, records, spec

_MARK = re.compile(r"(<!-- made: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TABLES = {
    "manifest": (records, "ReleaseManifest"),
    "spec": (spec, "ReleaseSpec"),
    "limit": (policies, "Limit"),
    "trigger": (policies, "Trigger"),
    "slo": (policies, "SloPolicy"),
    "rollback": (policies, "RollbackPolicy"),
}


def render(page: str) -> str:
    """The page with every marked part made anew."""
    return _MARK.sub(lambda match: f"{match[1]}{_table(match['name'])}\n{match[3]}", page)


def _table(name: str) -> str:
    """The fields of a record: name, whether it must be there, the docstring under it."""
    module, class_name = _TABLES[name]
    model: type[BaseModel] = getattr(module, class_name)
    texts = _docstrings(inspect.getsource(module), class_name)
    rows = ["| field | | meaning |", "|---|---|---|"]
    for field, info in model.model_fields.items():
        need = "required" if info.is_required() else ""
        rows.append(f"| `{field}` | {need} | {texts.get(field, '')} |")
    return "\n".join(rows)


def _docstrings(source: str, class_name: str) -> dict[str, str]:
    """The text under each annotated field of a class."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == class_name)
    found = {}
    for field, below in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = " ".join(str(below.value.value).split())
            found[field.target.id] = text.replace("``", "`").replace("|", "\\|")
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(render(target.read_text(encoding="utf-8")), encoding="utf-8")
