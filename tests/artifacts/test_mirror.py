"""The second home: what goes there comes back the same, and nothing else is taken from it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from posttrain.artifacts.mirror import Mirror
from posttrain.artifacts.records import Artifact, FileEntry
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.canonical import canonical_json, digest_bytes
from posttrain.core.errors import (
    CorruptArtifactError,
    MissingArtifactError,
    MissingDependencyError,
    ModelError,
    StorageFullError,
    StoreError,
    UsageError,
)


@pytest.fixture(params=["file", "memory"])
def mirror_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path / 'mirror [1]'}"
        return
    name = uuid4().hex
    yield f"memory://{name}"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(f"/{name}"):
        filesystem.rm(f"/{name}", recursive=True)


def _make(store: ArtifactStore, text: str, **inputs: str) -> Artifact:
    with store.writer("dataset", inputs=inputs) as writer:
        writer.add_bytes("a.txt", text.encode())
        writer.add_bytes("sub/same.txt", b"same")
        return writer.commit()


def _mirrored(url: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root).lstrip("/"): filesystem.cat_file(path) for path in filesystem.find(root)}


def _write(url: str, name: str, data: bytes) -> None:
    filesystem, root = fsspec.core.url_to_fs(url)
    path = f"{root}/{name}"
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    if filesystem.exists(path):
        filesystem.rm_file(path)
    filesystem.pipe_file(path, data)


def _object_name(artifact: Artifact, index: int = 0) -> str:
    name = artifact.files[index].digest.removeprefix("sha256:")
    return f"objects/{name[:2]}/{name[2:]}"


def test_there_and_back(tmp_path: Path, mirror_url: str) -> None:
    here = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    artifact = _make(here, "hello")
    here.push(artifact.digest)
    here.push(artifact.digest)
    mirrored = _mirrored(mirror_url)
    assert sorted(mirrored.values()) == sorted([b"hello", b"same", canonical_json(artifact.manifest())])
    assert {name.split("/")[0] for name in mirrored} == {"objects", "manifests"}
    assert Mirror(mirror_url).has(artifact.digest)
    assert not Mirror(mirror_url).has(digest_bytes(b"none"))

    there = ArtifactStore(tmp_path / "there", mirror_url=mirror_url)
    assert not there.has(artifact.digest)
    assert there.get(artifact.digest) == artifact
    assert there.has(artifact.digest)
    assert there.read_bytes(artifact, "a.txt") == b"hello"
    assert there.verify() == []
    assert list(there.temporary.iterdir()) == []
    with pytest.raises(MissingArtifactError):
        ArtifactStore(tmp_path / "unmirrored").get(artifact.digest)


def test_ancestors_come_along_when_asked(tmp_path: Path, mirror_url: str) -> None:
    here = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    data = _make(here, "data", absent=digest_bytes(b"collected"))
    base = _make(here, "base", data=data.digest)
    model = _make(here, "model", base=base.digest, data=data.digest)
    here.push(model.digest)
    assert not Mirror(mirror_url).has(base.digest)
    here.push(model.digest, ancestors=True)
    there = ArtifactStore(tmp_path / "there", mirror_url=mirror_url)
    there.fetch(model.digest)
    assert list(there.digests()) == [model.digest]
    assert there.fetch(model.digest, ancestors=True) == model
    assert set(there.digests()) == {model.digest, base.digest, data.digest}
    assert there.verify() == []


def test_a_damaged_store_is_repaired_from_the_mirror(tmp_path: Path, mirror_url: str) -> None:
    store = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    artifact = _make(store, "hello")
    store.push(artifact.digest)
    path = store.object_path(artifact.files[0].digest)
    path.chmod(0o644)
    path.write_bytes(b"hallo")
    store.object_path(artifact.files[1].digest).unlink()
    assert not store.has(artifact.digest)
    assert store.ensure(artifact.digest) == artifact
    assert store.verify() == []
    manifest = store.manifest_path(artifact.digest)
    manifest.chmod(0o644)
    manifest.write_bytes(b"{}")
    assert store.ensure(artifact.digest) == artifact
    assert store.verify() == []


def test_a_damaged_artifact_is_not_pushed(tmp_path: Path, mirror_url: str) -> None:
    store = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    artifact = _make(store, "hello")
    path = store.object_path(artifact.files[0].digest)
    path.chmod(0o644)
    path.write_bytes(b"hallo")
    with pytest.raises(CorruptArtifactError, match="not copied"):
        store.push(artifact.digest)
    assert _mirrored(mirror_url) == {}


@pytest.mark.parametrize("data", [b"hallo", b"hell", b""])
def test_a_damaged_object_in_the_mirror_is_refused(tmp_path: Path, mirror_url: str, data: bytes) -> None:
    here = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    artifact = _make(here, "hello")
    here.push(artifact.digest)
    index = [entry.path for entry in artifact.files].index("a.txt")
    _write(mirror_url, _object_name(artifact, index), data)
    there = ArtifactStore(tmp_path / "there", mirror_url=mirror_url)
    with pytest.raises(CorruptArtifactError, match=r"a\.txt.*mirror") as caught:
        there.get(artifact.digest)
    assert caught.value.hint
    assert list(there.digests()) == list(there.objects()) == list(there.temporary.iterdir()) == []
    if len(data) != 5:  # of another size: pushing again repairs the mirror
        here.push(artifact.digest)
        assert there.get(artifact.digest) == artifact


def test_a_manifest_in_the_mirror_is_hashed(tmp_path: Path, mirror_url: str) -> None:
    here = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    artifact, other = _make(here, "hello"), _make(here, "other")
    here.push(artifact.digest)
    name = artifact.digest.removeprefix("sha256:")
    _write(mirror_url, f"manifests/{name[:2]}/{name[2:]}.json", canonical_json(other.manifest()))
    there = ArtifactStore(tmp_path / "there", mirror_url=mirror_url)
    with pytest.raises(CorruptArtifactError, match="manifest"):
        there.get(artifact.digest)


def test_what_the_mirror_lacks(tmp_path: Path, mirror_url: str) -> None:
    here = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    with pytest.raises(MissingArtifactError, match="mirror") as caught:
        here.get(digest_bytes(b"none"))
    assert caught.value.hint
    artifact = _make(here, "hello")
    here.push(artifact.digest)
    filesystem, root = fsspec.core.url_to_fs(mirror_url)
    filesystem.rm_file(f"{root}/{_object_name(artifact)}")
    there = ArtifactStore(tmp_path / "there", mirror_url=mirror_url)
    with pytest.raises(MissingArtifactError):
        there.get(artifact.digest)
    assert list(there.digests()) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights"])
def test_pickled_weights_are_refused_from_the_mirror_too(tmp_path: Path, mirror_url: str, name: str) -> None:
    data = b"\x80\x04N."
    entry = FileEntry(name, digest_bytes(data), len(data))
    artifact = Artifact("model", files=(entry,))
    _write(mirror_url, _object_name(artifact), data)
    hexdigits = artifact.digest.removeprefix("sha256:")
    _write(mirror_url, f"manifests/{hexdigits[:2]}/{hexdigits[2:]}.json", canonical_json(artifact.manifest()))
    store = ArtifactStore(tmp_path / "here", mirror_url=mirror_url)
    with pytest.raises(ModelError, match="safetensors only"):
        store.get(artifact.digest)
    assert list(store.objects()) == list(store.temporary.iterdir()) == []


def test_what_cannot_be_a_mirror(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as unset:
        ArtifactStore(tmp_path / "here").push(digest_bytes(b"x"))
    assert "POSTTRAIN_MIRROR" in str(unset.value.hint)
    with pytest.raises(UsageError, match="nosuch"):
        Mirror("nosuch://x")
    try:
        import s3fs  # noqa: F401 - only whether it is there
    except ImportError:
        with pytest.raises(MissingDependencyError):
            Mirror("s3://bucket/x")


def test_a_mirror_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = ArtifactStore(tmp_path / "here", mirror_url=f"file://{tmp_path / 'file'}")
    artifact = _make(store, "hello")
    with pytest.raises(StoreError, match="mirror") as caught:
        store.push(artifact.digest)
    assert caught.value.hint


def test_a_mirror_that_fills(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here (needs root)")
    try:
        store = ArtifactStore(tmp_path / "here", mirror_url=f"file://{disk / 'mirror'}")
        artifact = _make(store, "x" * (2 << 20))
        with pytest.raises(StorageFullError, match="mirror"):
            store.push(artifact.digest)
        for name, data in _mirrored(f"file://{disk / 'mirror'}").items():
            assert name.replace("/", "") == "objects" + digest_bytes(data).removeprefix("sha256:")
        assert store.has(artifact.digest)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
