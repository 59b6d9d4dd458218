"""The store: what is written reads back, damage is seen, and nothing half-written is ever seen."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from posttrain.artifacts.records import Artifact, Producer, Provenance
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.canonical import canonical_json, digest_bytes
from posttrain.core.errors import (
    CorruptArtifactError,
    MissingArtifactError,
    ModelError,
    NewerStoreError,
    PosttrainError,
    StoreError,
    UnknownReferenceError,
    UsageError,
)

_GOLDEN = Path(__file__).parent / "golden"


def _store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


def _make(store: ArtifactStore, text: str = "hello", kind: str = "dataset") -> Artifact:
    with store.writer(kind, meta={"rows": 1}) as writer:
        writer.add_bytes("a.txt", text.encode())
        writer.add_json("deep/er/b.json", {"text": text})
        return writer.commit()


def _replace(path: Path, data: bytes) -> None:
    """Change a read-only file in place, as a careless program would."""
    path.chmod(0o644)
    path.write_bytes(data)


def _left_over(store: ArtifactStore) -> list[Path]:
    return list(store.temporary.iterdir())


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    store = _store(tmp_path)
    source = tmp_path / "folder"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "x.txt").write_bytes(b"x")
    (source / "link.txt").symlink_to(source / "sub" / "x.txt")
    producer = Producer("grpo", digest_bytes(b"key"), "model")
    with store.writer(
        "dataset", meta={"rows": 1}, inputs={"base": digest_bytes(b"b")}, producer=producer
    ) as writer:
        writer.add_bytes("empty", b"")
        writer.add_json("facts.json", {"b": 1, "a": [1.0, "é"]})
        writer.add_file("renamed.txt", source / "sub" / "x.txt")
        writer.add_tree(source, "tree")
        writer.path("written/by/hand.bin").write_bytes(b"hand")
        (writer.directory / "directly.txt").write_bytes(b"direct")
        writer.meta["late"] = (1, 2)
        artifact = writer.commit()

    names = [entry.path for entry in artifact.files]
    assert names == sorted(names)
    assert {name: store.read_bytes(artifact, name) for name in names} == {
        "empty": b"",
        "facts.json": '{"a":[1,"é"],"b":1}\n'.encode(),
        "renamed.txt": b"x",
        "tree/sub/x.txt": b"x",
        "tree/link.txt": b"x",
        "written/by/hand.bin": b"hand",
        "directly.txt": b"direct",
    }
    assert artifact.meta == {"rows": 1, "late": [1, 2]}
    assert store.has(artifact.digest)
    assert ArtifactStore(store.root).get(artifact.digest) == artifact
    (kept,) = store.get(artifact.digest).provenance
    assert kept == Provenance({"base": digest_bytes(b"b")}, producer)
    assert list(store.digests()) == [artifact.digest]
    assert store.verify() == []
    assert _left_over(store) == []
    assert {path.read_bytes() for path in store.root.glob("objects/??/*")} == {
        store.read_bytes(artifact, name) for name in names
    }
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in store.root.glob("objects/??/*"))
    with pytest.raises(KeyError):
        store.file(artifact, "absent")


def test_a_manifest_needs_its_files(tmp_path: Path) -> None:
    store, other = _store(tmp_path), ArtifactStore(tmp_path / "other")
    with pytest.raises(MissingArtifactError):
        store.publish(_make(other), [])
    assert list(store.digests()) == []


def test_the_same_content_is_the_same_artifact(tmp_path: Path) -> None:
    one, other = ArtifactStore(tmp_path / "one"), ArtifactStore(tmp_path / "other")
    first = _make(one)
    time.sleep(0.01)
    assert _make(one) == _make(other) == first
    assert len(list(one.digests())) == 1
    assert _make(one, "else").digest != first.digest


def test_view_has_the_files_under_their_names(tmp_path: Path) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    view = store.view(artifact)
    assert (view / "a.txt").read_bytes() == b"hello"
    assert json.loads((view / "deep/er/b.json").read_bytes()) == {"text": "hello"}
    made = (view / "a.txt").stat()
    assert os.path.samestat(made, store.file(artifact, "a.txt").stat())
    assert made.st_mode & 0o222 == 0
    assert store.view(artifact) == view
    assert _left_over(store) == []


def test_a_view_that_was_written_in_is_made_anew(tmp_path: Path) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    view = store.view(artifact)
    (view / "stray.json").write_text("{}")
    assert not (store.view(artifact) / "stray.json").exists()
    (view / "a.txt").unlink()
    (view / "a.txt").write_text("other")
    assert (store.view(artifact) / "a.txt").read_bytes() == b"hello"
    (view / "deep/er/b.json").unlink()
    assert (store.view(artifact) / "deep/er/b.json").exists()
    assert store.verify() == []


def test_leaving_the_block_without_commit_leaves_nothing(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with store.writer("dataset") as writer:
        writer.add_bytes("a", b"a")
    with pytest.raises(RuntimeError, match="on purpose"), store.writer("dataset") as writer:
        writer.add_bytes("a", b"a")
        raise RuntimeError("on purpose")
    with pytest.raises(KeyboardInterrupt), store.writer("dataset") as writer:
        writer.add_bytes("a", b"a")
        raise KeyboardInterrupt
    assert _left_over(store) == []
    assert list(store.digests()) == []
    assert list(store.objects()) == []


def test_a_writer_commits_once(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with store.writer("dataset") as writer:
        writer.commit()
        with pytest.raises(ValueError, match="closed"):
            writer.commit()


@pytest.mark.parametrize("name", ["../out", "/out", "", ".", "a\\b", "a/../../b"])
def test_file_names_stay_inside(tmp_path: Path, name: str) -> None:
    with _store(tmp_path).writer("dataset") as writer, pytest.raises(ValueError, match="stay inside"):
        writer.add_bytes(name, b"")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for make in (
        lambda p: p.symlink_to("/etc/hosts"),
        lambda p: p.symlink_to(tmp_path),
        os.mkfifo,
    ):
        with store.writer("dataset") as writer, pytest.raises(ValueError, match="regular files"):
            make(writer.path("odd"))
            writer.commit()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with store.writer("dataset") as writer, pytest.raises(ValueError, match="link to a folder"):
        writer.add_tree(tmp_path / "folder")
    with (
        store.writer("dataset", meta={"x": float("nan")}) as writer,
        pytest.raises(ValueError, match="canonical"),
    ):
        writer.commit()
    assert _left_over(store) == []
    assert list(store.objects()) == []


def test_a_hard_link_into_the_staging_folder_is_copied(tmp_path: Path) -> None:
    store = _store(tmp_path)
    mine = tmp_path / "mine"
    mine.write_bytes(b"one")
    with store.writer("dataset") as writer:
        os.link(mine, writer.path("file"))
        artifact = writer.commit()
    mine.write_bytes(b"two")
    assert store.read_bytes(artifact, "file") == b"one"
    assert mine.stat().st_mode & 0o200


# -- weights are safetensors only ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "a/model.PT",
        "x.pkl",
        "x.pth",
        "last.ckpt",
        "x.pickle",
        "weights.dat",
        "noname",
        "x.msgpack",
    ],
)
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    store = _store(tmp_path)
    with store.writer("model") as writer:
        if name == "noname":  # what torch.save writes
            with zipfile.ZipFile(writer.path(name), "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps({}))
        else:
            writer.add_bytes(name, pickle.dumps({"weight": [1.0]}))
        with pytest.raises(ModelError, match="safetensors only") as caught:
            writer.commit()
    assert caught.value.hint
    assert list(store.digests()) == list(store.objects()) == _left_over(store) == []


def test_what_a_model_may_hold(tmp_path: Path) -> None:
    store = _store(tmp_path)
    # A safetensors header whose length happens to begin like a pickle.
    header = b'{"__metadata__":{}}'.ljust(0x0280)
    with store.writer("model") as writer:
        writer.add_bytes("model.safetensors", len(header).to_bytes(8, "little") + header)
        writer.add_bytes("model.gguf", b"GGUF" + bytes(40))
        writer.add_bytes("tiny.txt", b"\x80")
        writer.add_bytes("chat_template.jinja", "{{ '文' }}".encode())
        with zipfile.ZipFile(writer.path("docs.zip"), "w") as archive:
            archive.writestr("readme.txt", "hello")
        artifact = writer.commit()
    assert store.has(artifact.digest)
    with store.writer("dataset") as writer:
        writer.add_bytes("table.bin", b"not weights")
        writer.commit()


# -- damage ----------------------------------------------------------------------------------------


def test_changed_file_is_found_by_every_way_of_reading(tmp_path: Path) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    view = store.view(artifact)
    _replace(view / "a.txt", b"hallo")  # same length, through the view
    for read in (
        lambda: store.read_bytes(artifact, "a.txt"),
        lambda: store.file(artifact, "a.txt"),
        lambda: store.view(artifact),
        lambda: store.ensure(artifact.digest),
    ):
        with pytest.raises(CorruptArtifactError, match=r"a\.txt.*digest") as caught:
            read()
        assert "verify" in str(caught.value.hint)
    assert not store.has(artifact.digest)
    assert [(p.digest, p.path) for p in store.verify()] == [(artifact.digest, "a.txt")]


def test_rotten_bits_are_found_by_verify(tmp_path: Path) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    path = store.file(artifact, "a.txt")
    before = path.stat()
    _replace(path, b"hallo")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptArtifactError):
        store.read_bytes(artifact, "a.txt")
    seen: list[tuple[int, int]] = []
    problems = store.verify(progress=lambda done, total: seen.append((done, total)))
    assert [problem.what for problem in problems] == ["does not match its digest"]
    assert seen == [(1, 2), (2, 2)]
    assert store.verify(_make(store, "other").digest) == []


def test_touched_but_unchanged_file_is_fine(tmp_path: Path) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    path = store.file(artifact, "a.txt")
    os.utime(path)
    assert store.has(artifact.digest)
    assert store.view(artifact)


@pytest.mark.parametrize("damage", ["cut", "grown", "missing"])
def test_cut_grown_or_missing_file(tmp_path: Path, damage: str) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    path = store.file(artifact, "a.txt")
    if damage == "missing":
        path.unlink()
    else:
        _replace(path, b"hell" if damage == "cut" else b"hello!")
    expected = MissingArtifactError if damage == "missing" else CorruptArtifactError
    with pytest.raises(expected, match=r"a\.txt"):
        store.read_bytes(artifact, "a.txt")
    assert store.get(artifact.digest) == artifact
    assert not store.has(artifact.digest)
    assert [problem.path for problem in store.verify(artifact.digest)] == ["a.txt"]


def test_making_an_artifact_again_repairs_it(tmp_path: Path) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    view = store.view(artifact)
    _replace(store.object_path(artifact.files[0].digest), b"hallo")
    store.object_path(artifact.files[1].digest).unlink()
    _replace(store.manifest_path(artifact.digest), b"{}")
    assert len(store.verify()) >= 2
    assert _make(store) == artifact
    assert store.verify() == []
    assert store.has(artifact.digest)
    assert (store.view(artifact) / "a.txt").read_bytes() == b"hello"
    assert store.view(artifact) == view


def test_damaged_manifest(tmp_path: Path) -> None:
    store = _store(tmp_path)
    artifact = _make(store)
    path = store.manifest_path(artifact.digest)
    changed = path.read_bytes().replace(b'"rows":1', b'"rows":2')
    _replace(path, changed)
    with pytest.raises(CorruptArtifactError, match="manifest"):
        store.get(artifact.digest)
    assert not store.has(artifact.digest)
    assert [(p.digest, p.path) for p in store.verify()] == [(artifact.digest, "manifest")]


def test_absent_artifact(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with pytest.raises(MissingArtifactError) as caught:
        store.get(digest_bytes(b"none"))
    assert caught.value.hint
    assert not store.has(digest_bytes(b"none"))
    for text in ("", "sha256:abc", "../../etc/passwd", "sha256:" + "A" * 64):
        with pytest.raises(UnknownReferenceError):
            store.get(text)


def test_errors_survive_a_process_boundary(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with pytest.raises(PosttrainError) as caught:
        store.get(digest_bytes(b"none"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is MissingArtifactError
    assert (str(again), again.hint) == (str(caught.value), caught.value.hint)


def _plant(store: ArtifactStore, manifest: object) -> str:
    raw = canonical_json(manifest)
    path = store.manifest_path(digest_bytes(raw))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    return digest_bytes(raw)


def test_manifest_of_a_later_version(tmp_path: Path) -> None:
    store = _store(tmp_path)
    digest = _plant(store, {**_make(store).manifest(), "schema": 3, "new": True})
    with pytest.raises(NewerStoreError, match="schema 3"):
        store.get(digest)
    assert [problem.digest for problem in store.verify()] == [digest]


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        {"schema": 1},
        {"schema": "1"},
        "text",
        {"schema": 1, "kind": "x", "files": [{"path": "../x"}], "meta": {}},
    ],
)
def test_manifest_that_is_none(tmp_path: Path, manifest: object) -> None:
    store = _store(tmp_path)
    with pytest.raises(CorruptArtifactError, match="not a manifest"):
        store.get(_plant(store, manifest))


def test_golden_manifest_of_version_1(tmp_path: Path) -> None:
    raw = (_GOLDEN / "manifest_v1.json").read_bytes()
    pinned = "sha256:aef911b2844abcc72c185f49db01fc00440f6b84dfb469b4f9bb31b19b4c9eca"
    assert digest_bytes(raw) == pinned
    store = _store(tmp_path)
    path = store.manifest_path(pinned)
    path.parent.mkdir()
    path.write_bytes(raw)
    artifact = store.get(pinned)
    assert artifact.digest == pinned
    assert canonical_json(artifact.manifest()) == raw
    assert artifact.kind == "model"
    assert [entry.path for entry in artifact.files] == ["config.json", "tokenizer/文字.json"]
    assert artifact.size_bytes == 28
    assert artifact.meta["parameters"] == 1_234_567
    assert artifact.producers == (Producer("grpo", "sha256:" + "ab" * 32, "model"),)
    assert sorted(artifact.inputs) == ["base", "prompts"]


# -- opening ---------------------------------------------------------------------------------------


def test_store_of_a_later_version(tmp_path: Path) -> None:
    store = _store(tmp_path)
    (store.root / "store.json").write_text('{"format": 3}')
    with pytest.raises(NewerStoreError, match="format 3") as caught:
        ArtifactStore(store.root)
    assert "upgrade" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": null}', '{"format": "x"}'])
def test_unreadable_store_marker(tmp_path: Path, text: str) -> None:
    store = _store(tmp_path)
    (store.root / "store.json").write_text(text)
    with pytest.raises(StoreError):
        ArtifactStore(store.root)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"thesis\.tex") as caught:
        ArtifactStore(tmp_path)
    assert "POSTTRAIN_HOME" in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="is a file"):
        ArtifactStore(tmp_path / "thesis.tex")
    with pytest.raises(StoreError, match="cannot make") as refused:
        ArtifactStore(tmp_path / "thesis.tex" / "home")
    assert "POSTTRAIN_HOME" in str(refused.value.hint)


def test_creation_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "objects").mkdir(parents=True)
    (home / "tmp").mkdir()
    (home / "tmp" / "left.part").write_text("x")
    assert ArtifactStore(home).verify() == []
    assert json.loads((home / "store.json").read_bytes()) == {"format": 2}


def test_left_overs_go_after_a_day_unless_their_owner_lives(tmp_path: Path) -> None:
    store = _store(tmp_path)
    old = time.time() - 2 * 24 * 3600
    dead, young = store.temporary / "dead", store.temporary / "young"
    (dead / "sub").mkdir(parents=True)
    (dead / "sub" / "f").write_text("x")
    young.mkdir()
    (store.temporary / "file.part").write_text("x")
    os.utime(store.temporary / "file.part", (old, old))
    os.utime(dead, (old, old))
    with store.writer("dataset") as writer:
        os.utime(writer.directory, (old, old))
        ArtifactStore(store.root)
        assert set(_left_over(store)) == {young, writer.directory}
        writer.add_bytes("a", b"a")
        writer.commit()


def test_importing_the_store_loads_nothing_heavy() -> None:
    code = (
        "import sys; import posttrain.artifacts, posttrain.artifacts.store, posttrain.artifacts.records;"
        "print([m for m in ('sqlalchemy', 'fsspec', 'torch', 'pydantic', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_resolves() -> None:
    import posttrain.artifacts

    for name in posttrain.artifacts.__all__:
        assert getattr(posttrain.artifacts, name) is not None


# -- several processes -----------------------------------------------------------------------------


def test_processes_that_write_the_same_artifacts_at_once(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from posttrain.artifacts.store import ArtifactStore
        store = ArtifactStore(Path(sys.argv[1]))
        for number in range(12):
            with store.writer("dataset", meta={"number": number}) as writer:
                writer.add_bytes("shared.bin", b"s" * 300_000)
                writer.add_bytes("own.bin", bytes([number]) * 50_000)
                artifact = writer.commit()
            assert store.view(artifact).joinpath("own.bin").read_bytes() == bytes([number]) * 50_000
            print(artifact.digest)
    """)
    home = tmp_path / "home"  # made by whichever process is first
    command = [sys.executable, "-c", code, str(home)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = {process.communicate(timeout=120)[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(printed) == 1
    store = ArtifactStore(home)
    assert sorted(printed.pop().split()) == list(store.digests())
    assert len(list(store.objects())) == 13
    assert store.verify() == []
    assert _left_over(store) == []
