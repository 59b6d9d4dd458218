"""Kills at every step, and disks that fill: nothing half-written is ever seen, and the next try works."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.artifacts.gc import collect_garbage
from posttrain.artifacts.home import Home, open_home
from posttrain.artifacts.records import Artifact, Producer
from posttrain.artifacts.store import ArtifactStore
from posttrain.artifacts.verify import verify_home
from posttrain.core.atomic import write_atomic
from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import StorageFullError
from posttrain.core.settings import Settings

_KEY = digest_bytes(b"key")
# What Python says before it asks the system to change a file.
_STEPS = frozenset(
    {
        "open",
        "os.mkdir",
        "os.rename",
        "os.link",
        "os.remove",
        "os.rmdir",
        "os.chmod",
        "os.utime",
        "shutil.rmtree",
    }
)


def _killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a process that dies by SIGKILL just before its n-th change of a file; whether it died."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(name: str, arguments: object) -> None:
            nonlocal seen
            if name in _STEPS:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _home(folder: Path) -> Home:
    return open_home(Settings(home=folder))


def _finish_stage(folder: Path) -> dict[str, str]:
    """A stage with two outputs, as the runner finishes it."""
    home = _home(folder)
    made = {}
    for name, kind in (("model", "model"), ("metrics", "metrics")):
        with home.store.writer(kind, producer=Producer("grpo", _KEY, name)) as writer:
            writer.add_bytes("shared.txt", b"shared")
            writer.add_bytes(f"sub/{name}.txt", name.encode())
            artifact = writer.commit()
        home.registry.record(artifact)
        home.store.view(artifact)
        made[name] = artifact.digest
    home.registry.complete_stage(_KEY, "grpo", made)
    return made


def _check(home: Home) -> None:
    """What must hold after any kill: whatever can be seen is whole, whatever is called finished is there."""
    assert verify_home(home) == []
    for digest in home.store.digests():
        assert home.store.has(digest)
    for digest in (home.registry.stage_outputs(_KEY) or {}).values():
        assert home.store.has(digest)


def test_a_stage_killed_at_every_step_ends_the_same(fast_folder: Path) -> None:
    expected = _finish_stage(fast_folder / "whole")
    step, outcomes = 0, set()
    while True:
        step += 1
        folder = fast_folder / f"killed-{step}"
        died = _killed_at(step, lambda folder=folder: _finish_stage(folder))
        home = _home(folder)
        _check(home)
        outcomes.add(len(list(home.store.digests())))
        if not died:
            break
        assert _finish_stage(folder) == expected
        _check(home)
        collect_garbage(home, min_age_seconds=-1)
        assert list(home.store.objects()) == []
        shutil.rmtree(folder)
    assert step > 40
    assert outcomes == {0, 1, 2}


def test_a_collection_killed_at_every_step_ends_the_same(fast_folder: Path) -> None:
    template = fast_folder / "template"
    home = _home(template)
    kept = _finish_stage(template)
    home.registry.set_ref("best", kept["model"])
    for number in range(2):
        with home.store.writer("dataset") as writer:
            writer.add_bytes("shared.txt", b"shared")
            writer.add_bytes("own.txt", bytes([number]))
            home.registry.record(writer.commit())
        home.store.view(home.store.get(sorted(home.store.digests())[0]))
    home.work_folder(_KEY).joinpath("checkpoint").write_bytes(b"x")

    step = 0
    while True:
        step += 1
        folder = fast_folder / f"killed-{step}"
        shutil.copytree(template, folder)
        died = _killed_at(step, lambda folder=folder: collect_garbage(_home(folder), min_age_seconds=-1))
        home = _home(folder)
        assert verify_home(home) == []
        assert home.store.has(kept["model"])
        collect_garbage(home, min_age_seconds=-1)
        assert list(home.store.digests()) == [kept["model"]]
        assert len(list(home.store.objects())) == 2
        assert home.registry.stage_outputs(_KEY) is None
        assert list((folder / "work").iterdir()) == []
        assert verify_home(home) == []
        shutil.rmtree(folder)
        if not died:
            break
    assert step > 10


def test_an_atomic_write_killed_at_every_step_is_old_or_new(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    found = []
    for step in range(1, 100):
        write_atomic(target, b"old")
        died = _killed_at(step, lambda: write_atomic(target, b"new"))
        found.append(target.read_bytes())
        if not died:
            break
    # Old until the one step that makes it new.
    assert sorted(found, reverse=True) == found
    assert set(found) == {b"old", b"new"}
    assert len(found) > 2


def test_a_reader_sees_the_old_bytes_or_all_of_the_new(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"a" * 500_000)
    child = os.fork()
    if child == 0:
        try:
            for number in range(60):
                write_atomic(target, (b"b" if number % 2 else b"c") * 500_000)
            os._exit(0)
        finally:
            os._exit(1)
    seen = set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        data = target.read_bytes()
        assert len(data) == 500_000
        seen.add(data[:1])
        assert data.count(data[:1]) == len(data)
    assert len(seen) > 1
    assert target.read_bytes()[:1] == b"b"


# -- disks that fill -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here (needs root); the file-size limit is tested instead")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _keep(store: ArtifactStore, text: bytes) -> Artifact:
    with store.writer("dataset") as writer:
        writer.add_bytes("a", text)
        return writer.commit()


def _ways_to_write(big: bytes, source: Path) -> dict[str, Callable[[ArtifactStore], object]]:
    def by_hand(store: ArtifactStore) -> None:
        with store.writer("dataset") as writer, writer.path("big").open("wb") as stream:
            stream.write(big)

    def by_file(store: ArtifactStore) -> None:
        with store.writer("dataset") as writer:
            writer.add_file("big", source)

    def by_safetensors(store: ArtifactStore) -> None:
        numpy = pytest.importorskip("numpy")
        safetensors = pytest.importorskip("safetensors.numpy")
        with store.writer("model") as writer:
            safetensors.save_file({"w": numpy.zeros(len(big), numpy.uint8)}, writer.path("model.safetensors"))

    return {
        "add_bytes": lambda store: _keep(store, big),
        "by_hand": by_hand,
        "add_file": by_file,
        "safetensors": by_safetensors,
    }


@pytest.mark.parametrize("way", ["add_bytes", "by_hand", "add_file", "safetensors"])
def test_a_disk_that_fills(small_disk: Path, tmp_path: Path, way: str) -> None:
    source = tmp_path / "big"
    source.write_bytes(bytes(8 << 20))
    store = ArtifactStore(small_disk / "home")
    kept = _keep(store, b"before")
    with pytest.raises(StorageFullError, match="no space left") as caught:
        _ways_to_write(bytes(8 << 20), source)[way](store)
    assert "POSTTRAIN_HOME" in str(caught.value.hint)
    assert list(store.temporary.iterdir()) == []
    assert list(store.digests()) == [kept.digest]
    assert len(list(store.objects())) == 1
    assert store.verify() == []
    assert store.has(_keep(store, b"after").digest)


def test_a_disk_that_fills_at_any_moment(small_disk: Path) -> None:
    """With 0, 3, 6, ... free pages, making and finishing a stage works or says that the disk is full."""
    folder = small_disk / "home"
    _home(folder)
    ballast = small_disk / "ballast"
    results = set()
    for free_pages in range(0, 160, 3):
        with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while stream.write(bytes(4096)):
                pass
        os.truncate(ballast, max(0, ballast.stat().st_size - free_pages * 4096))
        try:
            made = _finish_stage(folder)
        except StorageFullError:
            made = {}
        ballast.unlink()
        home = _home(folder)
        _check(home)
        assert list(home.store.temporary.iterdir()) == []
        assert set(made.values()) <= set(home.store.digests())
        results.add(bool(made))
        collect_garbage(home, min_age_seconds=-1)
        assert list(home.store.digests()) == []
    assert results == {True, False}


def test_a_file_size_limit(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from posttrain.artifacts.store import ArtifactStore
        from posttrain.core.atomic import write_atomic
        from posttrain.core.errors import StorageFullError
        store = ArtifactStore(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for size in (50_000, 200_000):
            try:
                with store.writer("dataset") as writer:
                    writer.add_bytes("a", bytes(size))
                    print("kept", writer.commit().size_bytes)
            except StorageFullError as error:
                print("full", error.exit_code)
        write_atomic(store.root / "file", b"old")
        try:
            write_atomic(store.root / "file", bytes(200_000))
        except StorageFullError as error:
            print("full", error.exit_code)
    """)
    home = tmp_path / "home"
    printed = subprocess.check_output([sys.executable, "-c", code, str(home)], text=True)
    assert printed.split("\n")[:3] == ["kept 50000", "full 1", "full 1"]
    assert (home / "file").read_bytes() == b"old"
    (home / "file").unlink()
    store = ArtifactStore(home)
    assert list(store.temporary.iterdir()) == []
    assert len(list(store.digests())) == 1
    assert store.verify() == []
