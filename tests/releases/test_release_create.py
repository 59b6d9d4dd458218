"""Making a release: what is looked up, what is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain.artifacts.errors import ConflictError, ReleaseError
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Producer, RunStageRecord
from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import (
    ConfigError,
    CorruptArtifactError,
    ModelError,
    PosttrainError,
    UnknownReferenceError,
    UsageError,
)
from posttrain.releases.create import create_release
from posttrain.releases.lanes import list_releases, read_release
from posttrain.releases.records import ArtifactPiece, ExternalPiece, FilesPiece, ReleaseManifest
from posttrain.releases.spec import parse_spec, read_spec
from posttrain.releases.verify import verify_release
from tests.releases.release_world import (
    CONTRACT,
    TEMPLATE,
    decide,
    experiment,
    flip,
    keep,
    keep_model,
    keep_run,
    release_home,
    safetensors,
)


@pytest.fixture
def home(fast_folder: Path) -> Home:
    return release_home(fast_folder / "home")


def _made(home: Home, spec: dict[str, Any], folder: Path | None = None) -> ReleaseManifest:
    artifact = create_release(home, spec, folder=folder)
    assert verify_release(home, artifact.digest) == []
    return read_release(home, artifact)


def test_the_same_spec_is_the_same_release(home: Home, tmp_path: Path) -> None:
    made = experiment(home, tmp_path, "1.2", 0.925)
    first = create_release(home, read_spec(made.spec), folder=made.folder, actor="ann")
    again = create_release(home, read_spec(made.spec), folder=made.folder, actor="bob")
    assert first == again
    assert [entry.action for entry in home.registry.journal()] == ["release.created"]
    other = create_release(release_home(tmp_path / "other"), {"name": "v1.2", "model": {"version": "x"}})
    assert other.digest != first.digest


def test_what_is_left_out_is_looked_up(home: Home, tmp_path: Path) -> None:
    data = keep(home, "dataset", {"rows.jsonl": b"{}\n"})
    made_by = Producer("reward_model", digest_bytes(b"key"), "model")
    with home.store.writer("model", inputs={"preferences": data.digest}, producer=made_by) as writer:
        writer.add_bytes("model.safetensors", safetensors([1.0]))
        scorer = writer.commit()
    model = keep_model(home, 1.0, {"examples": data.digest, "reward_model": scorer.digest})
    decision = decide(home, model)
    recipe = {"name": "toy", "stages": {"rl": {"uses": "grpo", "learning_rate": 1e-5}}}
    report = home.store.get(decision.digest).inputs["candidate"]
    stages = [
        RunStageRecord("20261125-000000-aaaa", 0, "problems", "prompts", outputs={"train": data.digest}),
        RunStageRecord(
            "20261125-000000-aaaa", 1, "helpful", "reward_model", outputs={"model": scorer.digest}
        ),
        RunStageRecord("20261125-000000-aaaa", 2, "rl", "grpo", outputs={"model": model.digest}),
        RunStageRecord(
            "20261125-000000-aaaa",
            3,
            "eval",
            "evaluate",
            outputs={"report": report},
            summary={"accuracy": 0.925, "text": "92.5 %"},
        ),
    ]
    keep_run(home, "20261125-000000-aaaa", stages, recipe)
    spec = {"name": "v1", "model": "20261125-000000-aaaa:rl.model", "decision": decision.digest}
    manifest = _made(home, spec, tmp_path)
    assert manifest.base == ArtifactPiece(digest=model.digest, kind="model")
    assert isinstance(manifest.tokenizer, FilesPiece) and manifest.tokenizer.artifact == model.digest
    assert set(manifest.tokenizer.files) == {"tokenizer.json", "tokenizer_config.json"}
    template = {"chat_template.jinja": digest_bytes(TEMPLATE.encode())}
    assert isinstance(manifest.chat_template, FilesPiece) and manifest.chat_template.files == template
    assert manifest.data == {"problems.train": ArtifactPiece(digest=data.digest, kind="dataset")}
    assert manifest.reward_models == {"helpful.model": ArtifactPiece(digest=scorer.digest, kind="model")}
    assert (
        manifest.configuration["recipe"].identity == home.registry.run("20261125-000000-aaaa").recipe_digest
    )
    assert isinstance(manifest.results["candidate"].report, ArtifactPiece)
    assert manifest.results["candidate"].report.digest == report
    assert manifest.results["candidate"].headline == {"accuracy": 0.925}
    assert manifest.contract is not None and manifest.contract.identity == digest_bytes(CONTRACT.encode())
    assert manifest.decision is not None and manifest.decision.outcome == "GO"
    assert manifest.code.posttrain == posttrain.__version__
    by_digest = _made(home, {**spec, "model": model.digest, "name": "v2"}, tmp_path)
    assert by_digest.configuration == manifest.configuration


def test_a_template_inside_the_tokenizer_config_is_found(home: Home) -> None:
    config = json.dumps({"chat_template": TEMPLATE}).encode()
    model = keep(home, "model", {"model.safetensors": b"w", "tokenizer_config.json": config})
    manifest = _made(home, {"name": "v1", "model": model.digest})
    assert manifest.chat_template is not None
    assert manifest.chat_template.identity == digest_bytes(TEMPLATE.encode())


def test_the_tokenizer_of_a_gguf_is_that_of_its_model(home: Home) -> None:
    model = keep_model(home, 1.0)
    gguf = keep(home, "gguf", {"model.gguf": b"GGUF"}, inputs={"model": model.digest})
    decision = decide(home, model)
    manifest = _made(home, {"name": "v1", "model": gguf.digest, "decision": decision.digest})
    assert isinstance(manifest.tokenizer, FilesPiece) and manifest.tokenizer.artifact == model.digest


def test_the_commit_is_that_of_the_repository_around_the_spec(home: Home, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "code.py").write_text("x = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", project, *command], check=True, capture_output=True)
    head = subprocess.run(
        ["git", "-C", project, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    model = keep_model(home, 1.0).digest
    clean = _made(home, {"name": "v1", "model": model}, project)
    (project / "code.py").write_text("x = 2\n")
    dirty = _made(home, {"name": "v2", "model": model}, project)
    assert (clean.code.commit, clean.code.dirty) == (head.stdout.strip(), False)
    assert (dirty.code.commit, dirty.code.dirty) == (head.stdout.strip(), True)
    nowhere = _made(home, {"name": "v3", "model": model}, tmp_path)
    assert (nowhere.code.commit, nowhere.code.dirty) == (None, None)


def test_every_way_of_writing_a_piece(home: Home, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("[]")
    model = keep_model(home, 1.0)
    home.registry.set_ref("best", model.digest)
    commit = "0123456789" * 4
    spec = {
        "name": "v1",
        "model": "best",
        "adapters": [{"name": "math", "piece": {"hub": f"org/lora@{commit}"}}],
        "tokenizer": {"artifact": model.digest},
        "input_processing": {"file": "b.json"},
        "verifiers": {"schema": "v4.3", "code": {"git": commit}},
        "tools": {
            "search": {"api": "search@3.2.1"},
            "lib": {"package": "jsonschema==4.23"},
            "fixtures": {"file": "tools"},
            "both": {"files": ["tools/a.json", "b.json"]},
        },
        "results": {"mine": {"report": {"file": "b.json"}, "headline": {"accuracy": 0.5}}},
    }
    manifest = _made(home, spec, tmp_path)
    assert manifest.adapters[0].piece == ExternalPiece(system="hub", reference=f"org/lora@{commit}")
    assert manifest.verifiers["schema"] == ExternalPiece(system="version", reference="v4.3")
    fixtures, both = manifest.tools["fixtures"], manifest.tools["both"]
    assert isinstance(fixtures, FilesPiece) and list(fixtures.files) == ["pieces/tools.fixtures/tools/a.json"]
    assert isinstance(both, FilesPiece) and len(both.files) == 2
    assert manifest.results["mine"].headline == {"accuracy": 0.5}


def test_a_name_is_never_moved(home: Home) -> None:
    first = create_release(home, {"name": "v1", "model": keep_model(home, 1.0).digest})
    with pytest.raises(ConflictError, match="the name 'v1' is taken"):
        create_release(home, {"name": "v1", "model": keep_model(home, 2.0).digest})
    assert home.registry.ref("release/v1") == first.digest
    assert [line.name for line in list_releases(home)] == ["v1"]


def test_of_two_that_take_a_name_at_once_one_is_refused(tmp_path: Path, registry_url: str) -> None:
    """The ref is set in one transaction, whatever was read before."""
    home = release_home(tmp_path / "home", registry_url)
    a, b = keep_model(home, 1.0).digest, keep_model(home, 2.0).digest
    assert home.registry.create_ref("release/v1", a)
    assert not home.registry.create_ref("release/v1", a)
    with pytest.raises(ConflictError, match="somebody changed it first"):
        home.registry.create_ref("release/v1", b)
    assert home.registry.ref("release/v1") == a


def test_a_decision_for_another_model_or_contract_is_refused(home: Home, tmp_path: Path) -> None:
    model, other = keep_model(home, 1.0), keep_model(home, 2.0)
    decision = decide(home, other)
    with pytest.raises(ReleaseError, match="decision: it was made for model"):
        create_release(home, {"name": "v1", "model": model.digest, "decision": decision.digest})
    (tmp_path / "lax.rules").write_text("accuracy >= 0.10\n")
    contract = {"contract": {"file": "lax.rules"}, "decision": decision.digest}
    with pytest.raises(ReleaseError, match="contract: the decision was made under another contract"):
        create_release(home, {"name": "v1", "model": other.digest, **contract}, folder=tmp_path)
    with pytest.raises(ReleaseError, match="is a model, not a decision"):
        create_release(home, {"name": "v1", "model": model.digest, "decision": model.digest})
    assert list_releases(home) == []


def test_pieces_that_are_not_there_or_not_whole_are_refused(home: Home, tmp_path: Path) -> None:
    model = keep_model(home, 1.0)
    with pytest.raises(UsageError, match="base: there is no file"):
        create_release(home, {"name": "v1", "model": {"file": "gone.safetensors"}}, folder=tmp_path)
    with pytest.raises(UnknownReferenceError):
        create_release(home, {"name": "v1", "model": "nowhere"})
    with pytest.raises(UnknownReferenceError, match="is a model, not a release"):
        create_release(home, {"name": "v1", "model": model.digest, "parent": model.digest})
    path = home.store.object_path(model.files[0].digest)
    path.chmod(0o644)
    path.write_bytes(b"{}")
    with pytest.raises(CorruptArtifactError):
        create_release(home, {"name": "v1", "model": model.digest})


def test_a_pickle_is_no_weights(home: Home, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_v1.2.pt").write_bytes(b"\x80\x02}.")
    with pytest.raises(ModelError, match="safetensors only"):
        create_release(home, {"name": "v1", "model": {"file": "checkpoint_v1.2.pt"}}, folder=tmp_path)
    (tmp_path / "model.dat").write_bytes(b"\x80\x02}.")
    with pytest.raises(ModelError, match="holds a pickle"):
        create_release(home, {"name": "v1", "model": {"file": "model.dat"}}, folder=tmp_path)


def test_a_changed_run_record_is_noticed(home: Home) -> None:
    import sqlalchemy as sa

    from posttrain.artifacts import tables as t

    model = keep_model(home, 1.0)
    stage = RunStageRecord("20261125-000000-aaaa", 0, "rl", "grpo", outputs={"model": model.digest})
    keep_run(home, "20261125-000000-aaaa", [stage], {"seed": 0})
    with home.registry.database.writing(t.runs) as connection:
        connection.execute(sa.update(t.runs).values(recipe_json='{"seed": 1}'))
    with pytest.raises(ReleaseError, match="its recipe does not match its digest"):
        create_release(home, {"name": "v1", "model": model.digest})


# -- spec files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("name: v1\nmodel: x\nverifers: {}\n", "verifers: unknown key", "did you mean 'verifiers'"),
        ("name: v1\nmodel: {hubb: x}\n", "model.hubb: unknown key", "did you mean 'hub'"),
        ("name: v1\nmodel: {hub: x, git: y}\n", "model: give exactly one of", None),
        ("name: v1\n", "model: this key is required", "add it"),
        ("name: v1\nmodel: x\nverifiers: {span: 2.1}\n", "verifiers.span", "quote it"),
        ("name: v1\nmodel: x\nsampling: {temprature: 0.2}\n", "did you mean 'temperature'", None),
        (
            "name: v1\nmodel: x\nrollback: when bad\n",
            "rollback: expected a mapping of named fields",
            "triggers",
        ),
        (
            "name: v1\nmodel: x\nrollback: {limts: []}\n",
            "rollback.limts: unknown key",
            "did you mean 'limits'",
        ),
        (
            "name: v1\nmodel: x\nrollback: {limits: [{metric: a, atmost: 1}]}\n",
            "rollback.limits.0.atmost: unknown key",
            "did you mean 'at_most'",
        ),
        ("name: v1\nmodel: x\nresults: {a: {reprot: x}}\n", "results.a.reprot: unknown key", "'report'"),
        ("name: v 1\nmodel: x\n", "no release name", None),
        ("name: v1\nmodel: x\nmodel: y\n", "'model' is there twice", None),
        ("name: [v1\n", "not valid YAML", None),
        ("- v1\n", "expected a mapping", None),
    ],
)
def test_a_wrong_spec_says_what_to_change(tmp_path: Path, text: str, says: str, hint: str | None) -> None:
    path = tmp_path / "release.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_spec(read_spec(path), path.name)
    assert says in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")
    assert isinstance(caught.value, PosttrainError)


def test_an_external_piece_that_is_not_pinned_is_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"base: .*a branch or a tag moves"):
        create_release(home, {"name": "v1", "model": {"hub": "org/model@main"}})


def test_a_spec_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "release.json"
    path.write_text('{"name": "v1", "model": "x", "sampling": {"temperature": 0.2}}')
    assert parse_spec(read_spec(path)).sampling == {"temperature": 0.2}


def test_flipping_helper_really_flips(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    before = path.stat().st_mtime_ns
    flip(path)
    assert (path.read_bytes() == b"abc", path.stat().st_mtime_ns == before) == (False, True)
