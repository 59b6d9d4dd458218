"""``posttrain compare`` on two real runs of the smallest recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import RECIPE, posttrain

pytestmark = pytest.mark.e2e


def test_two_runs_side_by_side(tmp_path: Path, finished_home: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished_home, home, symlinks=True)
    changed = posttrain(
        home, "run", str(RECIPE), "--set", "rl.learning_rate=0.01", "--set", "rl-eval.samples=3"
    )
    assert changed.returncode == 0, changed.stderr
    ids = [run["id"] for run in json.loads(posttrain(home, "runs", "--json").stdout)]
    second, first = ids[0], ids[-1]  # other tests may have run it again in between
    record = json.loads(posttrain(home, "compare", first, second, "--json").stdout)
    assert {entry["key"]: entry["values"] for entry in record["config"]} == {
        "rl.learning_rate": [3e-4, 0.01],
        "rl-eval.samples": [2, 3],
    }
    assert [run["column"] for run in record["runs"]] == ["R1-Zero", "R1-Zero"]
    (comparison,) = record["comparisons"]
    assert {"sampled.success@1", "greedy.success@1"} <= {d["name"] for d in comparison["differences"]}
    assert record["unpaired"] == []

    shown = posttrain(home, "compare", first, second)
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout
    assert (
        text.index("rl.learning_rate") < text.index("sampled.success@1") < text.index("paired, 95% intervals")
    )
    base = json.loads(posttrain(home, "compare", first, second, "--column", "Base", "--json").stdout)
    assert base["runs"][0]["model"] == base["runs"][1]["model"]
    wrong = posttrain(home, "compare", first, second, "--column", "Bas")
    assert wrong.returncode == 2
    assert "Base" in wrong.stderr
