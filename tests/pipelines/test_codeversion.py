"""The code version: what changes it, and what does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.artifacts.stage import StageSpec
from posttrain.core.sources import SourceTree
from posttrain.pipelines.codeversion import code_closure, code_version
from posttrain.pipelines.registry import STAGES

_TREE = {
    "posttrain/__init__.py": "VERSION = 1\n",
    "posttrain/core/__init__.py": "from posttrain.core.errors import E\n",
    "posttrain/core/errors.py": "class E(Exception): ...\n",
    "posttrain/core/unused.py": "",
    "posttrain/pipelines/__init__.py": "",
    "posttrain/pipelines/runner.py": "",
    "posttrain/cli/__init__.py": "",
    "posttrain/rewards/__init__.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from posttrain.rewards.typed import Typed\n"
        "_WHERE = {'Single': 'single', 'pool': ('Pool', 'Worker'), 'Full': 'posttrain.rewards.full:Full'}\n"
        "def __getattr__(name): ...\n"
    ),
    "posttrain/rewards/typed.py": "Typed = 1\n",
    "posttrain/rewards/single.py": "Single = 1\n",
    "posttrain/rewards/pool.py": "Pool = 1\nimport numpy.random\n",
    "posttrain/rewards/full.py": "Full = 1\n",
    "posttrain/rewards/never.py": "Never = 1\n",
    "posttrain/training/__init__.py": "",
    "posttrain/training/grpo.py": (
        "from typing import TYPE_CHECKING\n"
        "import posttrain.core.errors as errors\n"
        "from posttrain.pipelines import runner\n"
        "from . import metrics\n"
        "if TYPE_CHECKING:\n    from posttrain.training.only_types import T\n"
        "class Config: template = 'page.html.j2'\n"
        "def run(config, inputs, context):\n"
        "    from torch import nn\n"
        "    import trl.trainer\n"
        "    from posttrain.rewards import Typed, Single, Pool\n"
        "    from .checkpoints import save\n"
        "    plugin = 'posttrain.training.plugin:thing'\n"
        "    text = 'see posttrain.training.mentioned for more'\n"
    ),
    "posttrain/training/metrics.py": "import json\n",
    "posttrain/training/checkpoints.py": "import safetensors\n",
    "posttrain/training/plugin.py": "import peft\n",
    "posttrain/training/mentioned.py": "",
    "posttrain/training/only_types.py": "",
    "posttrain/training/page.html.j2": "<p>\n",
    "posttrain/training/other.j2": "<p>\n",
}
_SPEC = StageSpec("grpo", "", "posttrain.training.grpo:Config", "posttrain.training.grpo:run", {}, {})
_CLOSURE = {
    "posttrain.core.errors",
    "posttrain.rewards",
    "posttrain.rewards.pool",
    "posttrain.rewards.single",
    "posttrain.rewards.typed",
    "posttrain.training.checkpoints",
    "posttrain.training.grpo",
    "posttrain.training.metrics",
    "posttrain.training.plugin",
    "posttrain.training/page.html.j2",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in _TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "posttrain"


def test_closure_is_what_is_imported(tree: Path) -> None:
    closure = code_closure(_SPEC, SourceTree({"posttrain": tree}))
    assert set(closure.modules) == _CLOSURE
    # And everything that these require.
    assert {"accelerate", "numpy", "peft", "safetensors", "tokenizers", "torch", "trl"} <= set(
        closure.libraries
    )


@pytest.mark.parametrize("name", [name for name in _TREE if name.endswith((".py", ".j2"))])
def test_a_change_counts_exactly_inside_the_closure(tree: Path, name: str) -> None:
    before = code_version(_SPEC, SourceTree({"posttrain": tree}))
    path = tree.parent / name
    path.write_text(path.read_text() + "\nCHANGED = 1\n")
    inside = name.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    if name.endswith(".j2"):
        inside = "posttrain.training/" + path.name
    assert (code_version(_SPEC, SourceTree({"posttrain": tree})) != before) == (inside in _CLOSURE)


def test_line_ends_do_not_count(tree: Path) -> None:
    before = code_version(_SPEC, SourceTree({"posttrain": tree}))
    path = tree / "training" / "metrics.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert code_version(_SPEC, SourceTree({"posttrain": tree})) == before


def test_a_star_import_takes_the_whole_room(tree: Path) -> None:
    path = tree / "training" / "metrics.py"
    path.write_text("from posttrain.rewards import *\n")
    modules = code_closure(_SPEC, SourceTree({"posttrain": tree})).modules
    assert {"posttrain.rewards.full", "posttrain.rewards.pool", "posttrain.rewards.typed"} <= set(modules)


def test_reading_the_code_loads_no_engine() -> None:
    script = (
        "import sys\n"
        "from posttrain.pipelines.codeversion import code_version\n"
        "from posttrain.pipelines.registry import STAGES\n"
        "for spec in STAGES.values(): code_version(spec)\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'numpy', 'pyarrow') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", STAGES)
def test_no_stage_depends_on_the_command_line(kind: str) -> None:
    modules = code_closure(STAGES[kind]).modules
    assert not [name for name in modules if name.startswith(("posttrain.cli", "posttrain.pipelines"))]
    assert STAGES[kind].run.partition(":")[0] in modules
