"""One stage by itself, and runs side by side, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_command_line import command
from tests.pipelines.toy_stages import TOY_RECIPE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def made(home: Path, kind: str, *arguments: str) -> dict[str, str]:
    """Output name to digest of a stage that was run by itself."""
    done = command("stage", kind, "--home", home, *arguments)
    assert done.code == 0, done.err
    run = json.loads(command("runs", "--json", "--home", home).out)[0]["id"]
    (stage,) = json.loads(command("show", run, "--json", "--home", home).out)["stages"]
    outputs: dict[str, str] = stage["outputs"]
    return outputs


def test_stages_run_by_themselves_on_each_others_outputs(home: Path) -> None:
    rows = made(home, "toy-numbers", "--set", "count=5")["rows"]
    arguments = ("--input", f"data={rows}", "--set", "steps=3", "--set", "seed=7")
    assert set(made(home, "toy_train", *arguments)) == {"model", "metrics"}
    assert "1 reused" in command("stage", "toy-train", "--home", home, *arguments).out
    runs = json.loads(command("runs", "--json", "--home", home).out)
    assert [run["recipe"] for run in runs] == ["toy-train", "toy-train", "toy-numbers"]


def test_the_kinds_are_listed(home: Path) -> None:
    listed = command("stage")
    assert listed.code == 0
    assert "toy-train: " in listed.out
    kinds = {item["kind"]: item for item in json.loads(command("stage", "--json").out)}
    assert kinds["toy_train"]["inputs"]["data"] == "dataset"


def test_a_dry_run_shows_every_key(home: Path) -> None:
    shown = command("stage", "toy-numbers", "--dry-run", "--home", home)
    assert shown.code == 0
    assert "count: 8" in shown.out
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("toy-trian",), "did you mean"),
        (("toy-train",), "data"),
        (("toy-train", "--input", "data"), "NAME=ARTIFACT"),
        (("toy-train", "--input", "dat=abc"), "data"),
        (("toy-numbers", "--set", "cuont=3"), "count"),
    ],
)
def test_what_cannot_be_meant(home: Path, arguments: tuple[str, ...], text: str) -> None:
    done = command("stage", *arguments, "--home", home)
    assert done.code == 2
    assert text in done.err


def test_comparing_needs_two_runs_with_a_report(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY_RECIPE)
    assert command("run", path, "--home", home).code == 0
    (run,) = json.loads(command("runs", "--json", "--home", home).out)
    same = command("compare", run["id"], run["id"], "--home", home)
    assert same.code == 2
    assert "two different runs" in same.err
    assert command("run", path, "--home", home, "--set", "seed=3").code == 0
    ids = [one["id"] for one in json.loads(command("runs", "--json", "--home", home).out)]
    none = command("compare", *ids, "--home", home)
    assert none.code == 2
    assert "has no report stage" in none.err
