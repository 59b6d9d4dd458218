"""``posttrain release``, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from posttrain.artifacts.home import Home
from posttrain.cli import main
from tests.releases.release_world import (
    CONTRACT,
    Experiment,
    decide,
    experiment,
    flip,
    keep_model,
    keys,
    release_home,
)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class World(NamedTuple):
    """A home with L05's two experiments, and the command line on it."""

    home: Home
    good: Experiment
    bad: Experiment
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: object) -> Done:
        self.capsys.readouterr()
        code = main(["release", *(str(argument) for argument in arguments)])
        return Done(code, *self.capsys.readouterr())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    home = release_home(tmp_path / "home")
    good, bad = experiment(home, tmp_path, "1.2", 0.925), experiment(home, tmp_path, "1.3", 0.585, "v1.2")
    return World(home, good, bad, capsys)


def test_the_story_of_lesson_5_on_the_command_line(world: World) -> None:
    assert "no releases yet" in world.run("list").out
    made = world.run("create", world.good.spec)
    assert made.code == 0 and made.out.startswith("v1.2  sha256:")
    assert "not verified here: tools.search_api version:3.2.1" in made.out
    assert world.run("publish", "v1.2", "--lane", "production", "--expect", "nothing").code == 0
    world.run("create", world.bad.spec)
    assert world.run("publish", "v1.3", "--lane", "production", "--expect", "v1.2").code == 0
    diff = world.run("diff", "v1.2", "v1.3")
    assert diff.code == 1
    assert "~ results.held_out.headline.accuracy: 0.925 -> 0.585" in diff.out
    late = world.run("publish", "v1.2", "--lane", "production", "--expect", "v1.2", "--actor", "bob")
    assert late.code == 1 and "somebody changed it first" in late.err
    back = json.loads(
        world.run(
            "publish", "v1.2", "--lane", "production", "--expect", "v1.3", "--actor", "control", "--json"
        ).out
    )
    assert (back["position"], back["lane"]) == (3, "production")
    lines = world.run("list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "v1.3", "v1.2"]
    assert lines[1].endswith("(production)") and lines[2].endswith(" production")
    actors = [entry.actor for entry in world.home.registry.journal()]
    assert actors[-2:] == ["bob", "control"]
    assert world.run("diff", "v1.2", "production").code == 0


def test_verify_names_the_piece_and_exits_with_1(world: World) -> None:
    world.run("create", world.good.spec)
    sound = world.run("verify", "v1.2")
    assert sound.code == 0 and "every piece as it was released" in sound.out
    flip(world.home.store.file(world.good.model, "model.safetensors"))
    damaged = world.run("verify", "v1.2")
    assert damaged.code == 1
    assert damaged.out.startswith("base/model.safetensors: does not match its digest\n")
    assert "1 problem\n" in damaged.out
    (problem,) = json.loads(world.run("verify", "v1.2", "--json").out)["problems"]
    assert problem["path"] == "base/model.safetensors"
    refused = world.run("publish", "v1.2", "--lane", "production")
    assert refused.code == 1
    assert refused.err.startswith(
        "error: release v1.2 is refused: base/model.safetensors does not match its digest"
    )


def test_show_has_everything(world: World, tmp_path: Path) -> None:
    world.run("create", world.good.spec)
    world.run("publish", "v1.2", "--lane", "staging")
    shown = world.run("show", "v1.2").out
    for text in (
        "  base                       model     sha256:",
        "chat_template",
        "configuration.hyperparams",
        "temperature: 0.2",
        "a4b7c1da34brh4",
        "metric: accuracy",
        "name: outage",
        "result  held_out  accuracy 0.925  cases 200",
        "took staging at 20",
        "signed by  nobody",
    ):
        assert text in shown, text
    found = json.loads(world.run("show", "v1.2", "--json").out)
    assert found["manifest"]["name"] == "v1.2"
    assert [lane["lane"] for lane in found["lanes"]] == ["staging"]
    checklist = json.loads(world.run("show", "v1.2", "--checklist").out)
    assert checklist["sampling"] == {"temperature": 0.2, "top_p": 0.9}
    assert checklist["tools"] == {"search_api": "3.2.1", "repo_sha": "a4b7c1da34brh4"}


def test_a_release_from_options_alone(world: World, tmp_path: Path) -> None:
    model, adapter = keep_model(world.home, 7.0), keep_model(world.home, 8.0)
    decision = decide(world.home, model)
    (tmp_path / "promote.rules").write_text(CONTRACT)
    (tmp_path / "slo.yaml").write_text("objectives: [{metric: p99_latency_ms, at_most: 1500}]\n")
    (tmp_path / "rollback.yaml").write_text("limits: [{metric: error_rate, at_most: 0.05}]\n")
    (tmp_path / "settings.yaml").write_text("a: 1\n")
    world.run("create", world.good.spec)
    arguments = ["create", "--name", "v2", "--model", model.digest, "--adapter", f"math={adapter.digest}"]
    arguments += ["--contract", tmp_path / "promote.rules", "--decision", decision.digest]
    arguments += [
        "--sampling",
        "temperature=0.2",
        "--sampling",
        'stop=["</answer>"]',
        "--verifier",
        "json=v4.3",
    ]
    arguments += ["--tool", "search=3.2", "--config", f"mine={tmp_path / 'settings.yaml'}"]
    arguments += [
        "--slo",
        tmp_path / "slo.yaml",
        "--rollback",
        tmp_path / "rollback.yaml",
        "--parent",
        "v1.2",
    ]
    made = world.run(*arguments, "--json")
    assert made.code == 0, made.err
    manifest = json.loads(made.out)["manifest"]
    assert manifest["sampling"] == {"temperature": 0.2, "stop": ["</answer>"]}
    assert manifest["adapters"][0]["name"] == "math"
    assert manifest["tools"]["search"] == {"by": "external", "system": "version", "reference": "3.2"}
    assert manifest["decision"]["outcome"] == "GO"
    assert manifest["slo"]["objectives"][0]["metric"] == "p99_latency_ms"
    assert manifest["rollback"]["limits"][0]["at_most"] == 0.05
    assert manifest["parent"] == world.home.registry.ref("release/v1.2")
    assert list(manifest["contract"]["files"]) == ["pieces/contract/promote.rules"]


def test_a_decision_that_gate_wrote_into_a_folder(world: World, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "decision.json").write_text(json.dumps({"outcome": "NO-GO", "contract": CONTRACT}))
    done = world.run("create", world.good.spec, "--decision", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["manifest"]["decision"]["outcome"] == "NO-GO"
    (tmp_path / "out" / "decision.json").write_text(json.dumps({"outcome": "GO", "contract": "true\n"}))
    done = world.run("create", world.good.spec, "--decision", tmp_path / "out", "--name", "v9")
    assert done.code == 1 and "another contract" in done.err


def test_a_folder_is_never_taken_for_a_release_of_its_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run("create", world.good.spec)
    monkeypatch.chdir(tmp_path)
    world.run("export", "v1.2", "-o", "v1.2")
    flip(world.home.store.file(world.good.model, "model.safetensors"))
    assert world.run("verify", "v1.2").code == 1
    assert world.run("verify", "v1.2/").code == 0


def test_options_win_over_the_spec_file(world: World) -> None:
    done = world.run("create", world.good.spec, "--name", "v9", "--sampling", "temperature=0.5", "--json")
    manifest = json.loads(done.out)["manifest"]
    assert (manifest["name"], manifest["sampling"]) == ("v9", {"temperature": 0.5, "top_p": 0.9})


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["create", "--name", "v1"], 2, "release: model: this key is required"),
        (
            ["create", "--name", "v1", "--model", "x", "--sampling", "temprature=1"],
            2,
            "did you mean 'temperature'",
        ),
        (["create", "--name", "v1", "--model", "x", "--tool", "nothing"], 2, "expected NAME=VALUE"),
        (["create", "gone.yaml"], 2, "cannot read"),
        (["show", "v7"], 2, "'v7' names no release"),
        (["publish", "v7", "--lane", "prod"], 2, "'prod' is no lane"),
        (["verify", "v7", "--require-signature"], 2, "names no release"),
        (["diff", "v7", "v8"], 2, "names no release"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(world: World, arguments: list[str], code: int, says: str) -> None:
    done = world.run(*arguments)
    assert done.code == code
    assert says in done.err and "Traceback" not in done.err


def test_a_spec_with_an_unknown_key_names_the_nearest(world: World, tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("name: v1\nmodel: x\nverifers: {}\n")
    done = world.run("create", spec)
    assert done.code == 2
    assert done.err == "error: s.yaml: verifers: unknown key\n  hint: did you mean 'verifiers'?\n"


def test_sign_verify_and_export(world: World, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="needs posttrain[sign]")
    private, public = keys(tmp_path)
    world.run("create", world.good.spec)
    required = ["--public-key", public, "--require-signature"]
    unsigned = world.run("verify", "v1.2", *required)
    assert unsigned.code == 1 and unsigned.out.startswith("signature: there is none by the key")
    refused = world.run("publish", "v1.2", "--lane", "production", *required)
    assert refused.code == 1 and "signature there is none by the key" in refused.err
    assert world.run("sign", "v1.2", "--key", private).out.startswith("signed by the key ")
    assert world.run("verify", "v1.2", *required).code == 0
    assert world.run("publish", "v1.2", "--lane", "production", *required).code == 0
    folder = tmp_path / "out"
    assert world.run("export", "v1.2", "-o", folder).out == f"{folder}\n"
    digest = world.home.registry.ref("release/v1.2")
    assert world.run("verify", f"{folder}/", "--expect", digest, *required).code == 0
    assert world.run("diff", folder, "v1.2").code == 0
    weights = next(folder.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    changed = world.run("verify", folder, "--json")
    assert changed.code == 1
    assert json.loads(changed.out)["problems"][0]["path"] == "base/model.safetensors"
