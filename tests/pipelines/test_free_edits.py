"""Edits of the real sources: those that change nothing that runs give no stage a new key, others exactly theirs."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import grimp
import pytest

import posttrain
from posttrain.core.sources import SourceTree
from posttrain.pipelines.codeversion import code_closure, code_version
from posttrain.pipelines.libraries import CANNOT_DECIDE, library_versions
from posttrain.pipelines.registry import STAGES

FILES = (
    "artifacts/store.py",
    "core/errors.py",
    "data/languages.py",
    "engines/judges.py",
    "evaluation/heldout/measures.py",
    "promotion/grammar.py",
    "rewards/parsing.py",
    "statistics/exact.py",
    "training/stages/grpo.py",
    "training/stages/sft.py",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package."""
    source = Path(posttrain.__file__).parent
    return shutil.copytree(source, tmp_path / "posttrain", ignore=shutil.ignore_patterns("__pycache__"))


def versions(package: Path, moved: dict[str, str] | None = None) -> dict[str, str]:
    sources = SourceTree({"posttrain": package}, moved or {})
    return {kind: code_version(spec, sources) for kind, spec in STAGES.items()}


def comment(text: str) -> str:
    return "# another word\n" + re.sub(r"^(\s*)(return .*)$", r"\1# why\n\1\2", text, flags=re.MULTILINE)


def docstring(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = "Other words."
    return ast.unparse(tree)


class _Untyped(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            argument.annotation = None
        return node


def untyped(text: str) -> str:
    return ast.unparse(_Untyped().visit(ast.parse(text)))


def imports_turned_round(text: str) -> str:
    tree = ast.parse(text)
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module != "__future__"]
    turned = iter(reversed(imports))
    tree.body = [next(turned) if node in imports else node for node in tree.body]
    return ast.unparse(tree)


@pytest.mark.parametrize("edit", [comment, docstring, untyped, imports_turned_round])
def test_an_edit_that_changes_nothing_is_free(package: Path, edit: Callable[[str], str]) -> None:
    before = versions(package)
    for name in FILES:
        path = package / name
        text = path.read_text()
        path.write_text(edit(text))
        assert path.read_text() != text
    assert versions(package) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("posttrain.rewards", "posttrain.marks"),  # a room
        ("posttrain.evaluation.heldout", "posttrain.evaluation.prompts"),  # a floor of a room
        ("posttrain.rewards.parsing", "posttrain.data.parsing"),  # a module, to another room
    ],
)
def test_a_move_is_free(package: Path, old: str, new: str) -> None:
    before = versions(package)
    source, target = (package.parent.joinpath(*name.split(".")) for name in (old, new))
    (source if source.is_dir() else source.with_suffix(".py")).rename(
        target if source.is_dir() else target.with_suffix(".py")
    )
    for path in package.rglob("*.py"):
        text = path.read_text()
        path.write_text(re.sub(rf"\b{re.escape(old)}\b", new, text))
    init = package / "rewards" / "__init__.py"
    if init.is_file() and old == "posttrain.rewards.parsing":
        init.write_text(init.read_text().replace('"parsing": (', '"posttrain.data.parsing": ('))
    specs = {
        kind: (spec.config.replace(old, new), spec.run.replace(old, new)) for kind, spec in STAGES.items()
    }
    sources = SourceTree({"posttrain": package}, {new: old})
    after = {}
    for kind, (config, run) in specs.items():
        spec = type(STAGES[kind])(kind, "", config, run, {}, {})
        after[kind] = code_version(spec, sources)
    assert {kind for kind in after if after[kind] != before[kind]} == set()


@pytest.mark.parametrize(
    "name",
    ["rewards.latex", "statistics.exact", "data.languages", "core.errors", "evaluation.heldout.figures"],
)
def test_a_changed_value_counts_for_exactly_the_stages_that_reach_it(package: Path, name: str) -> None:
    before = versions(package)
    path = package.joinpath(*name.split(".")).with_suffix(".py")
    path.write_text(path.read_text() + "\n_ANOTHER = 41\n")
    after = versions(package)
    graph = grimp.build_graph("posttrain", exclude_type_checking_imports=True)
    module = f"posttrain.{name}"
    reaching = graph.find_downstream_modules(module) | {module}
    expected = {
        kind
        for kind, spec in STAGES.items()
        if {spec.config.partition(":")[0], spec.run.partition(":")[0]} & reaching
    }
    assert {kind for kind in STAGES if after[kind] != before[kind]} == expected


def test_a_field_s_name_and_order_count_and_its_type_does_not(package: Path) -> None:
    path = package / "core" / "records_for_test.py"
    path.write_text("class A:\n    x: int\n    y: str = 'a'\n")
    grpo = package / "training" / "stages" / "grpo.py"
    grpo.write_text(grpo.read_text() + "\nfrom posttrain.core.records_for_test import A\n")

    def with_fields(text: str) -> str:
        path.write_text(text)
        return versions(package)["grpo"]

    first = with_fields("class A:\n    x: int\n    y: str = 'a'\n")
    assert with_fields("class A:\n    x: float | None\n    y = 'a'\n") == first
    others = {
        with_fields(text)
        for text in (
            "class A:\n    z: int\n    y: str = 'a'\n",
            "class A:\n    x: int\n    y: str = 'b'\n",
            "class A:\n    x: int\n",
        )
    }
    assert len(others | {first}) == 4


def test_another_alias_or_another_source_of_a_name_counts(package: Path) -> None:
    path = package / "training" / "stages" / "grpo.py"
    text = path.read_text()

    def ending(line: str) -> str:
        path.write_text(f"{text}\n{line}\n")
        return versions(package)["grpo"]

    lines = (
        "from posttrain.core.canonical import digest_json as f",
        "from posttrain.core.canonical import digest_bytes as f",
        "from posttrain.core.canonical import digest_bytes as g",
        "def f():\n    from posttrain.core.canonical import digest_bytes as g\n    return g",
        "def f():\n    from posttrain.core.canonical import digest_json as g\n    return g",
    )
    assert len({ending(line) for line in lines}) == len(lines)


def test_what_a_library_requires_counts_too() -> None:
    grpo = code_closure(STAGES["grpo"]).libraries
    assert {"accelerate", "tokenizers", "sympy", "latex2sympy2-extended", "py3langid", "trl"} <= set(grpo)
    assert not {name for names in CANNOT_DECIDE.values() for name in names} & set(grpo)
    assert library_versions(["json", "os"]) == {}
    assert library_versions(["no_such_module"]) == {"no-such-module": "absent"}
