"""``docs/gateway.md`` and ``docs/rollouts.md``: their configurations are read, their commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from posttrain.cli._app import COMMANDS
from posttrain.core.explain import read_model
from posttrain.rollouts.records import RolloutSpec, ShadowRule, Stage
from posttrain.serving.config import ServeConfig

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_configuration_of_the_gateway_is_read(tmp_path: Path) -> None:
    (text,) = blocks("gateway.md")
    (tmp_path / "serve.yaml").write_text(text)
    config = read_model(tmp_path / "serve.yaml", ServeConfig).with_paths_from(tmp_path)
    assert config.routes[0].probes == tmp_path / "probes.yaml"
    assert config.workers == 2


def test_the_plan_of_a_rollout_is_one() -> None:
    plan = yaml.safe_load(blocks("rollouts.md")[-1])
    stages = tuple(Stage.model_validate(stage) for stage in plan["stages"])
    assert stages[0].kind == "gated" and stages[-1].kind == "production"
    assert ShadowRule.model_validate(plan["shadow"]).judge == "helpful"
    assert {"stages", "shadow"} <= RolloutSpec.model_fields.keys()


@pytest.mark.parametrize("page", ["gateway.md", "rollouts.md"])
def test_every_command_on_the_page_exists(page: str) -> None:
    text = (DOCS / page).read_text()
    asked = set(re.findall(r"posttrain ([a-z]+)(?: ([a-z]+))?", text))
    for command, _ in asked:
        assert command in COMMANDS, command
    groups = ("rollout", "log", "key", "release")
    for name, sub in sorted(pair for pair in asked if pair[0] in groups and pair[1]):
        command = [sys.executable, "-m", "posttrain", name, sub, "--help"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, (name, sub)
