"""Identity is content: how an artifact came about is kept beside it, and homes of version 1 are read for ever."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from posttrain.artifacts.gc import collect_garbage
from posttrain.artifacts.home import Home, open_home, reindex_home
from posttrain.artifacts.records import Artifact, Producer
from posttrain.artifacts.store import ArtifactStore
from posttrain.artifacts.verify import verify_home
from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import CorruptArtifactError
from posttrain.core.settings import Settings

_GOLDEN = Path(__file__).parent / "golden" / "home_v1"
_PROMPTS = "sha256:164f324c67ffb3c8a4e9b87db882595e2bf6035ce245f4b497458c96ba9e312a"


def _home(tmp_path: Path) -> Home:
    return open_home(Settings(home=tmp_path / "home"))


def _make(store: ArtifactStore, stage: str, kind: str = "model", **inputs: str) -> Artifact:
    producer = Producer(stage, digest_bytes(stage.encode()), "out")
    with store.writer(kind, inputs=inputs, producer=producer, facts={"threads": len(stage)}) as writer:
        writer.add_bytes("weights.txt", b"equal")
        return writer.commit()


def test_equal_content_is_one_artifact_with_two_provenances(tmp_path: Path) -> None:
    home = _home(tmp_path)
    base = _make(home.store, "import", "dataset")
    first = _make(home.store, "sft", data=base.digest)
    second = _make(home.store, "other sft", data=digest_bytes(b"elsewhere"))
    assert first.digest == second.digest
    kept = home.store.get(first.digest)
    assert {made_by.stage for made_by in kept.producers} == {"sft", "other sft"}
    assert {way.facts["threads"] for way in kept.provenance} == {3, 9}
    assert kept.parents == {base.digest, digest_bytes(b"elsewhere")}
    assert verify_home(home) == []
    # Said again, nothing is added.
    assert len(_make(home.store, "sft", data=base.digest).provenance) == 2


@pytest.mark.parametrize("kind", ["report", "decision", "release"])
def test_a_statement_about_another_artifact_is_another_one(tmp_path: Path, kind: str) -> None:
    store = _home(tmp_path).store
    ours, theirs = digest_bytes(b"our model"), digest_bytes(b"their model")
    first, second = _make(store, "evaluate", kind, model=ours), _make(store, "evaluate", kind, model=theirs)
    assert first.digest != second.digest
    assert store.get(first.digest).inputs == {"model": ours}
    # Evaluated by other code with the same figures, it is the same statement.
    assert _make(store, "newer code", kind, model=ours).digest == first.digest


def test_what_either_provenance_names_is_kept(tmp_path: Path) -> None:
    home = _home(tmp_path)
    with home.store.writer("dataset") as writer:
        writer.add_bytes("a", b"a")
        one = writer.commit()
    other = _make(home.store, "import", "dataset")
    for base in (one, other):
        made = _make(home.store, f"sft of {base.digest}", data=base.digest)
    home.registry.set_ref("best", made.digest)
    collect_garbage(home, min_age_seconds=-1)
    assert set(home.store.digests()) == {one.digest, other.digest, made.digest}
    home.registry.delete_ref("best")
    collect_garbage(home, min_age_seconds=-1)
    assert list(home.store.digests()) == []
    assert list((home.store.root / "provenance").glob("??/*")) == []


def test_an_artifact_that_a_stage_handed_through(tmp_path: Path) -> None:
    """A filter that drops nothing makes its input again: no circle in the lineage."""
    home = _home(tmp_path)
    made = _make(home.store, "import")
    again = _make(home.store, "filter", data=made.digest)
    home.registry.record(again)
    assert again.digest == made.digest
    assert home.registry.ancestors(made.digest) == home.registry.children(made.digest) == []
    home.registry.set_ref("best", made.digest)
    collect_garbage(home, min_age_seconds=-1)
    assert verify_home(home) == []


def test_a_damaged_provenance_is_found_and_made_anew(tmp_path: Path) -> None:
    home = _home(tmp_path)
    made = _make(home.store, "sft", data=digest_bytes(b"x"))
    home.registry.set_ref("best", made.digest)
    (path,) = home.store.provenance_folder(made.digest).iterdir()
    path.chmod(0o644)
    path.write_text("{}")
    assert [problem.path for problem in verify_home(home)] == [f"provenance/{path.name}"]
    with pytest.raises(CorruptArtifactError, match="provenance damaged"):
        collect_garbage(home, min_age_seconds=-1)
    _make(home.store, "sft", data=digest_bytes(b"x"))
    assert verify_home(home) == []


def test_a_mirror_carries_provenance(tmp_path: Path) -> None:
    url = (tmp_path / "mirror").as_uri()
    here = ArtifactStore(tmp_path / "here", mirror_url=url)
    base = _make(here, "import", "dataset")
    made = _make(here, "sft", data=base.digest)
    here.push(made.digest, ancestors=True)
    there = ArtifactStore(tmp_path / "there", mirror_url=url)
    assert there.fetch(made.digest, ancestors=True).provenance == made.provenance
    assert set(there.digests()) == {base.digest, made.digest}


# -- homes of version 1, made by posttrain of 2026-11-30 (schema 1 of manifests and registry) ---------


def _golden(tmp_path: Path) -> Home:
    folder = tmp_path / "home"
    shutil.copytree(_GOLDEN, folder)
    database = sqlite3.connect(folder / "registry.sqlite")
    database.executescript((folder / "registry.sql").read_text(encoding="utf-8"))
    database.close()
    (folder / "registry.sql").unlink()
    return open_home(Settings(home=folder))


def test_a_home_of_version_1_is_read_as_it_was(tmp_path: Path) -> None:
    home = _golden(tmp_path)
    assert verify_home(home) == []
    (run,) = home.registry.runs()
    (stage,) = home.registry.run_stages(run.id)
    report = home.store.get(stage.outputs["report"])
    assert report.schema == 1
    assert report.inputs == dict(stage.inputs)
    assert [made_by.stage for made_by in report.producers] == ["evaluate"]
    assert home.registry.ancestors(report.digest) == sorted([_PROMPTS, home.registry.refs()["best"]])
    assert sorted(home.registry.children(_PROMPTS)) == sorted([home.registry.refs()["best"], report.digest])
    assert {made.digest for made in home.registry.artifacts()} == set(home.store.digests())
    assert home.registry.stage_outputs(digest_bytes(b"sft")) == {"model": home.registry.refs()["best"]}
    assert home.registry.current_release("dev") is not None
    assert (home.store.root / "store.json").read_text() == '{"format":2}\n'


def test_a_home_of_version_1_goes_on(tmp_path: Path) -> None:
    home = _golden(tmp_path)
    before = set(home.store.digests())
    made = _make(home.store, "sft again", data=_PROMPTS)
    home.registry.record(made)
    assert home.registry.ancestors(made.digest) == [_PROMPTS]
    found = reindex_home(home, {"prompts": ["prompts"], "sft": ["model"], "evaluate": ["report"]})
    assert (found.artifacts, found.stages) == (4, 3)
    collect_garbage(home, min_age_seconds=-1)
    assert set(home.store.digests()) == before
    assert verify_home(home) == []
