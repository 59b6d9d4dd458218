"""A home as a whole: references, verification, the index built again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from posttrain.artifacts import tables
from posttrain.artifacts.home import Home, open_home, reindex_home, resolve
from posttrain.artifacts.records import Artifact, Producer, RunRecord, RunStageRecord
from posttrain.artifacts.verify import verify_home
from posttrain.core.canonical import digest_bytes, digest_json
from posttrain.core.clock import utc_now
from posttrain.core.errors import MissingArtifactError, NewerStoreError, UnknownReferenceError
from posttrain.core.settings import Settings


def _home(tmp_path: Path, registry_url: str | None = None) -> Home:
    return open_home(Settings(home=tmp_path / "home", registry_url=registry_url))


def _make(home: Home, text: str, producer: Producer | None = None, **inputs: str) -> Artifact:
    with home.store.writer("dataset", inputs=inputs, producer=producer) as writer:
        writer.add_bytes("file.txt", text.encode())
        artifact = writer.commit()
    home.registry.record(artifact)
    return artifact


def _run(home: Home, *stages: RunStageRecord) -> None:
    now = utc_now()
    home.registry.create_run(RunRecord("20261123-150405-ab12", "r", digest_json({}), "{}", now, now), stages)


def test_a_new_home_has_its_files_inside(tmp_path: Path) -> None:
    home = _home(tmp_path)
    assert (tmp_path / "home" / "registry.sqlite").is_file()
    assert home.work_folder("sha256:" + "ab" * 32) == tmp_path / "home" / "work" / ("ab" * 32)
    assert home.run_folder("run-1").is_dir()
    assert _home(tmp_path).store.verify() == []


def test_references(tmp_path: Path, registry_url: str) -> None:
    home = _home(tmp_path, registry_url)
    model, metrics = _make(home, "model"), _make(home, "metrics")
    home.registry.set_ref("best", model.digest)
    home.registry.set_ref("decade", metrics.digest)  # hex digits all of them: a ref goes first
    _run(
        home,
        RunStageRecord(
            "20261123-150405-ab12", 0, "grpo", "grpo", outputs={"model": model.digest, "m.x": metrics.digest}
        ),
        RunStageRecord("20261123-150405-ab12", 1, "a.b", "s", outputs={"only": metrics.digest}),
        RunStageRecord("20261123-150405-ab12", 2, "waiting", "s"),
    )
    hexdigits = model.digest.removeprefix("sha256:")
    for reference in (
        model.digest,
        hexdigits,
        hexdigits[:6],
        f"sha256:{hexdigits[:9]}",
        "best",
        "20261123-150405-ab12:grpo.model",
    ):
        assert resolve(home, reference) == model, reference
    for reference in ("decade", "20261123-150405-ab12:a.b", "20261123-150405-ab12:a.b.only"):
        assert resolve(home, reference) == metrics, reference

    refused = {
        "bets": "best",
        "": "RUN:STAGE.OUTPUT",
        hexdigits[:5]: "digits",
        "ffffffffffff": "",
        "no-run:grpo": "posttrain runs",
        "20261123-150405-ab12:grpo": "grpo.model",
        "20261123-150405-ab12:grpo.modle": "grpo.model",
        "20261123-150405-ab12:gpro.model": "grpo",
        "20261123-150405-ab12:": "known",
    }
    for reference, hint in refused.items():
        with pytest.raises(UnknownReferenceError) as caught:
            resolve(home, reference)
        assert hint in str(caught.value.hint), (reference, caught.value, caught.value.hint)
    with pytest.raises(UnknownReferenceError, match="no outputs: it is pending"):
        resolve(home, "20261123-150405-ab12:waiting")
    with pytest.raises(MissingArtifactError):
        resolve(home, digest_bytes(b"none"))


def test_a_prefix_of_several_is_refused(tmp_path: Path) -> None:
    home = _home(tmp_path)
    # Names alone are looked at: two manifests that begin alike.
    for tail in ("1", "2"):
        path = home.store.manifest_path("sha256:" + "abcdef" + tail * 58)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")
    with pytest.raises(UnknownReferenceError, match="2 artifacts") as caught:
        resolve(home, "abcdef")
    assert "more digits" in str(caught.value.hint)


def test_verify_finds_names_that_name_nothing(tmp_path: Path) -> None:
    home = _home(tmp_path)
    ancestor_gone = _make(home, "model", base=digest_bytes(b"collected"))
    home.registry.set_ref("best", ancestor_gone.digest)
    assert verify_home(home) == []
    gone = digest_bytes(b"gone")
    home.registry.set_ref("lost", gone)
    home.registry.publish_release("production", gone, None)
    home.registry.complete_stage("sha256:" + "ab" * 32, "grpo", {"model": gone})
    _run(
        home,
        RunStageRecord("20261123-150405-ab12", 0, "grpo", "grpo", inputs={"base": gone}, outputs={"m": gone}),
    )
    home.registry.record(Artifact("dataset", files=()))
    places = {problem.path for problem in verify_home(home)}
    assert places == {
        "refs/lost",
        "releases/production/1",
        "runs/20261123-150405-ab12/grpo/inputs/base",
        "runs/20261123-150405-ab12/grpo/outputs/m",
        "stages/abababababab/model",
        "index",
    }


def test_verify_covers_store_journal_and_database(tmp_path: Path, registry_url: str) -> None:
    home = _home(tmp_path, registry_url)
    artifact = _make(home, "hello")
    home.registry.append_journal("me", "test", "x")
    assert verify_home(home) == []
    path = home.store.file(artifact, "file.txt")
    path.chmod(0o644)
    path.write_bytes(b"hallo")
    orphan = home.store.object_path(digest_bytes(b"orphan"))
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"not that")
    (home.store.root / "objects" / "zz").mkdir()
    (home.store.root / "objects" / "zz" / "stray").write_bytes(b"")
    with home.registry.database.engine.connect() as connection, connection.begin():
        on = " ON journal" if home.registry.database.dialect == "postgresql" else ""
        trigger = "journal_no_change" if on else "journal_no_update"
        connection.execute(sa.text(f"DROP TRIGGER {trigger}{on}"))
        connection.execute(tables.journal.update().values(actor="you"))
    found = {(problem.path.split("/")[0], problem.what.split(";")[0]) for problem in verify_home(home)}
    assert found == {
        ("file.txt", "does not match its digest"),
        ("objects", "does not match its digest"),
        ("objects", "is not the name of an object"),
        ("journal", "was changed: its digest does not match"),
    }


def test_the_index_is_built_again_from_manifests(tmp_path: Path, registry_url: str) -> None:
    home = _home(tmp_path, registry_url)
    keys = {name: digest_bytes(name.encode()) for name in ("whole", "half", "other")}
    base = _make(home, "base")
    whole = {
        o: _make(home, f"w{o}", Producer("grpo", keys["whole"], o), base=base.digest)
        for o in ("model", "metrics")
    }
    half = _make(home, "half", Producer("grpo", keys["half"], "model"))
    _make(home, "other", Producer("unknown kind", keys["other"], "x"))
    damaged = _make(home, "damaged")
    home.store.object_path(damaged.files[0].digest).unlink()
    older = _make(home, "older", Producer("grpo", keys["whole"], "model"))
    os.utime(home.store.manifest_path(older.digest), (0, 0))
    finished = {name: artifact.digest for name, artifact in whole.items()}
    outputs = {"grpo": {"model", "metrics"}, "eval": {"report"}}

    fresh = open_home(Settings(home=tmp_path / "home", registry_url=f"sqlite:///{tmp_path / 'fresh.sqlite'}"))
    for place in (fresh, home):
        for _ in range(2):
            report = reindex_home(place, outputs)
            assert (report.artifacts, report.stages) == (6, 1)
        assert place.registry.stage_outputs(keys["whole"]) == finished
        assert place.registry.stage_outputs(keys["half"]) is None
        assert place.registry.children(base.digest) == sorted(finished.values())
    assert half.digest in {artifact.digest for artifact in fresh.registry.artifacts()}


def test_building_the_index_without_knowing_the_stages_keeps_them(tmp_path: Path) -> None:
    home = _home(tmp_path)
    made = _make(home, "x", Producer("grpo", "sha256:" + "ab" * 32, "model"))
    home.registry.complete_stage("sha256:" + "cd" * 32, "grpo", {"model": made.digest})
    home.registry.record(Artifact("dataset", files=()))
    report = reindex_home(home)
    assert (report.artifacts, report.stages) == (1, 0)
    assert home.registry.artifacts() == [made]
    assert home.registry.stage_outputs("sha256:" + "cd" * 32) == {"model": made.digest}
    assert home.registry.stage_outputs("sha256:" + "ab" * 32) is None


def test_a_registry_of_a_later_version(tmp_path: Path) -> None:
    home = _home(tmp_path)
    with home.registry.database.writing() as connection:
        connection.execute(
            tables.schema_migrations.insert().values(number=2000, name="later", applied_at="now")
        )
    with pytest.raises(NewerStoreError):
        _home(tmp_path)
