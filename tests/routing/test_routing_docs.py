"""``docs/routing.md``: its configurations are read, its commands run, its tags are those that are given."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.core.explain import read_model
from posttrain.routing import RouterModel
from posttrain.routing.files import keep_model
from posttrain.serving.config import ServeConfig

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()


def test_the_configurations_are_read(tmp_path: Path) -> None:
    found = []
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / "serve.yaml").write_text(text)
        found.append(read_model(tmp_path / "serve.yaml", ServeConfig).with_paths_from(tmp_path))
    rules, several = (config.routes[0] for config in found)
    assert rules.router is not None and rules.router.model == str(tmp_path / "router.json")
    assert [rule.name for rule in rules.router.rules] == ["gold", "sql", "cards", "team"]
    assert several.aggregate is not None and several.aggregate.seconds == 20


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(1)
    with Path("pairs.jsonl").open("w") as rows:
        for number in range(500):
            words = ("prove derive integrate solve", "hello thanks bye story")[number % 2].split()
            prompt = f"{' '.join(draw.choices(words, k=6))} {number}"
            rows.write(json.dumps({"prompt": prompt, "outcome": ("big", "small")[number % 2]}) + "\n")
    (commands,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in commands.strip().splitlines():
        assert main(shlex.split(line)[1:]) == 0
    kept = keep_model(Path("router.json"), tmp_path / "routers", {"production", "big"})
    assert RouterModel.read(kept).big == "big"


def test_every_tag_is_explained() -> None:
    code = "".join(
        path.read_text()
        for folder in ("routing", "serving/gateway")
        for path in (Path(__file__).parents[2] / "src" / "posttrain" / folder).glob("*.py")
    )
    named = set(re.findall(r"`(?:router|aggregate):([a-z]+)[:A-Z]*`", PAGE))
    given = set(re.findall(r'(?:Choice\([a-z._]+, |by=|by = |aggregate:)"?([a-z]{4,})"', code))
    given |= set(re.findall(r'kind: Literal\["(vote|judge|synthesise)"\]', code))
    assert {"learned", "unsure", "failed", "fallback", "only", "first", "skipped"} <= named
    assert given - {"gateway"} <= named, "a tag that the page does not name"
