"""Bad input: one clear message with what to change, exit code 2 (usage) or 1 (failure), nothing half-written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import RECIPE, command, environment, posttrain, stage_outputs


def _recipe(folder: Path, *stages: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    text = {"schema": 1, "name": "bad", "title": "Bad", "description": "For a test.", "stages": list(stages)}
    path.write_text(yaml.safe_dump(text, allow_unicode=True))
    return str(path)


def _jsonl(folder: Path, *rows: dict[str, str]) -> dict[str, Any]:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "jsonl", "paths": [str(path)]}


def _check(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "hint: " in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def _whole(home: Path) -> None:
    """No digest is wrong, no temporary file is left, no run is said to be running."""
    if not (home / "store.json").exists():
        return
    assert posttrain(home, "verify").returncode == 0
    assert "running" not in posttrain(home, "runs").stdout
    assert list((home / "tmp").iterdir()) == []


PROMPTS = {"name": "p", "uses": "prompts"}


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    _check(posttrain(tmp_path / "home", "run", str(tmp_path / "none.yaml")), 2, "none.yaml")
    _check(posttrain(tmp_path / "home", "run", "r1-zero-tinny"), 2, "r1-zero-tiny")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("text", ["a: [1", "- just\n- a list\n", "\x00\x01", ""])
def test_a_recipe_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    _check(posttrain(tmp_path / "home", "run", str(path)), 2, "broken.yaml")
    assert not (tmp_path / "home").exists()


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    stage = {**PROMPTS, "with": {"heldot": 3}}
    _check(posttrain(tmp_path / "home", "run", _recipe(tmp_path, stage)), 2, "heldot", "heldout")
    _check(posttrain(tmp_path / "home", "run", str(RECIPE), "--set", "rl.stepz=3"), 2, "stepz", "steps")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["prompts are empty"]),
        ([{"question": "How many?", "answer": "3"}] * 2, ["ask the same question", "duplicates: drop"]),
        ([{"question": "How many?", "answer": ""}], ["empty answer"]),
        ([{"q": "How many?", "a": "3"}], ["no key 'question'", "source.question"]),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, rows: list[dict[str, str]], words: list[str]) -> None:
    stage = {**PROMPTS, "with": {"source": _jsonl(tmp_path, *rows), "train": 5, "heldout": 5}}
    home = tmp_path / "home"
    _check(posttrain(home, "run", _recipe(tmp_path, stage)), 2, *words)
    _whole(home)


def test_prompts_that_overlap_the_heldout_set(tmp_path: Path, finished_home: Path) -> None:
    outputs = stage_outputs(finished_home)
    stage = {
        "name": "rl",
        "uses": "grpo",
        "inputs": {
            "model": outputs["base"]["model"],
            "prompts": outputs["problems"]["train"],
            "heldout": outputs["problems"]["train"],
        },
    }
    _check(posttrain(finished_home, "run", _recipe(tmp_path, stage)), 2, "also training prompts", "disjoint")
    _whole(finished_home)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    stage = {
        "name": "m",
        "uses": "import_model",
        "with": {"source": {"kind": "folder", "path": str(tmp_path / "none")}},
    }
    _check(posttrain(tmp_path / "home", "run", _recipe(tmp_path, stage)), 2, "source.path")
    _whole(tmp_path / "home")


@pytest.mark.parametrize("token", ["eos_token", "pad_token"])
def test_a_tokenizer_that_cannot_stop_or_pad(tmp_path: Path, finished_home: Path, token: str) -> None:
    shown = posttrain(finished_home, "show", stage_outputs(finished_home)["base"]["model"], "--json")
    folder = tmp_path / "model"
    shutil.copytree(Path(json.loads(shown.stdout)["view"]), folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config[token]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    stage = {"name": "m", "uses": "import_model", "with": {"source": {"kind": "folder", "path": str(folder)}}}
    _check(posttrain(tmp_path / "home", "run", _recipe(tmp_path, stage)), 1, token, "tokenizer_config.json")
    _whole(tmp_path / "home")


def test_a_disk_that_fills(tmp_path: Path) -> None:
    """The nearest to a full disk without one: no file may grow beyond 400 KiB, which a checkpoint does."""
    home = tmp_path / "home"
    limit = 400 * 1024
    done = subprocess.run(
        command("run", str(RECIPE)),
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _check(done, 1, "space")
    _whole(home)


def test_a_corrupt_artifact(tmp_path: Path, finished_home: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished_home, home, ignore=shutil.ignore_patterns("views"))
    model = stage_outputs(home)["base"]["model"]
    shown = json.loads(posttrain(home, "show", model, "--json").stdout)
    weights = next(f["digest"] for f in shown["files"] if f["path"] == "model.safetensors").removeprefix(
        "sha256:"
    )
    blob = home / "objects" / weights[:2] / weights[2:]
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    checked = posttrain(home, "verify")
    assert checked.returncode == 1
    assert "model.safetensors" in checked.stdout + checked.stderr
    heldout = stage_outputs(home)["problems"]["heldout"]
    judge = {"name": "judge", "uses": "evaluate", "inputs": {"model": model, "prompts": heldout}}
    _check(posttrain(home, "run", _recipe(tmp_path, judge)), 1, "digest")
    # The recipe that made it can make it again: same bytes, so the artifact is whole afterwards.
    repaired = posttrain(home, "run", str(RECIPE))
    assert repaired.returncode == 0, repaired.stderr
    assert posttrain(home, "verify").returncode == 0
    assert stage_outputs(home)["base"]["model"] == model


def test_a_store_from_a_newer_version(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "store.json").write_text('{"format": 99}')
    _check(posttrain(home, "run", str(RECIPE)), 1, "99", "newer")
    assert sorted(path.name for path in home.iterdir()) == ["store.json"]
