"""Every stage kind that is declared: its strings name something, its config is light and complete."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from posttrain.artifacts.stage import StageConfig
from posttrain.pipelines.registry import (
    EXTRA_OF_MODULE,
    STAGES,
    config_class,
    missing_dependency,
    stage_function,
)

_NAME = re.compile(r"[a-z][a-z0-9_]*[?*]?")
_HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "numpy",
    "pyarrow",
    "matplotlib",
    "scipy",
    "sqlalchemy",
    "datasets",
)


@pytest.mark.parametrize("kind", STAGES)
def test_declaration(kind: str) -> None:
    spec = STAGES[kind]
    assert spec.kind == kind
    assert spec.summary
    assert spec.outputs
    assert all(_NAME.fullmatch(name) for name in (*spec.inputs, *spec.outputs))
    model = config_class(spec)
    assert issubclass(model, StageConfig)
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"


@pytest.mark.parametrize("kind", STAGES)
def test_run_takes_config_inputs_context(kind: str) -> None:
    assert list(inspect.signature(stage_function(STAGES[kind])).parameters) == ["config", "inputs", "context"]


@pytest.mark.parametrize("kind", STAGES)
def test_defaults_round_trip_through_json(kind: str) -> None:
    """JSON is what a resolved recipe stores, and what an unfinished run is taken up from."""
    model = config_class(STAGES[kind])
    if any(field.is_required() for field in model.model_fields.values()):
        pytest.skip("has required keys; recipes that use it cover this")
    config = model()
    assert model.model_validate(config.model_dump(mode="json", by_alias=True)) == config


def test_configs_load_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from posttrain.pipelines.registry import STAGES, config_class\n"
        "for spec in STAGES.values(): config_class(spec)\n"
        f"print([name for name in {_HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_dependency_names_the_extra() -> None:
    found = missing_dependency(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert found is not None
    assert found.hint == "pip install 'posttrain[train]'"
    assert missing_dependency(ModuleNotFoundError("No module named 'mine'", name="mine")) is None


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {
        extra: {re.split(r"[\[<>=!~ ]", text)[0].replace("-", "_") for text in requirements}
        for extra, requirements in project["optional-dependencies"].items()
    }
    for module, extra in EXTRA_OF_MODULE.items():
        assert module.replace("-", "_") in declared[extra], f"{module} is not in the extra {extra}"
