"""Writing files whole, and locks between processes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.artifacts.store import ArtifactStore
from posttrain.core.atomic import is_storage_full, locked, move_new, remove_tree, storage_errors, write_atomic
from posttrain.core.errors import StorageFullError, StoreError


def _together(count: int, work: Callable[[int], int]) -> list[int]:
    """Run ``work(n)`` in several processes that start at the same moment; the code that each ended with."""
    start = time.monotonic() + 0.05
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                time.sleep(max(0.0, start - time.monotonic()))
                code = work(number)
            finally:
                os._exit(code)
        children.append(child)
    return [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children]


def test_written_bytes_replace_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file"
    write_atomic(target, b"old")
    write_atomic(target, b"new", mode=0o444)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o444
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_name_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    assert move_new(tmp_path / "one", tmp_path / "name")
    assert not move_new(tmp_path / "two", tmp_path / "name")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    assert (tmp_path / "name").read_text() == "one"


def test_of_many_processes_one_gives_the_name(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / str(number)).write_text(str(number))
    won = _together(4, lambda number: int(move_new(tmp_path / str(number), tmp_path / "name")))
    assert sorted(won) == [0, 0, 0, 1]
    assert (tmp_path / "name").read_text() == str(won.index(1))


def test_a_lock_is_shared_or_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, exclusive=False), locked(path, exclusive=False) as second:
        assert second
        with locked(path, exclusive=True, wait=False) as alone:
            assert not alone
    with locked(path, exclusive=True), locked(path, exclusive=False, wait=False) as shared:
        assert not shared
    with locked(path, exclusive=True, wait=False) as alone:
        assert alone
    with pytest.raises(StoreError, match="lock"), locked(tmp_path / "no" / "folder", exclusive=True):
        pass


def test_a_lock_goes_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def hold(number: int) -> int:
        manager = locked(path, exclusive=True)
        assert manager.__enter__()
        os._exit(7)  # without leaving the block

    assert _together(1, hold) == [7]
    with locked(path, exclusive=True, wait=False) as free:
        assert free


def test_removing_takes_read_only_folders_and_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("x")
    (tree / "link").symlink_to(outside)
    (tree / "sub").chmod(0o555)
    remove_tree(tree)
    remove_tree(tree)
    remove_tree(tmp_path / "dangling")
    assert not tree.exists()
    assert (outside / "file").exists()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EFBIG, "x"), True),
        (OSError(errno.EACCES, "x"), False),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("database or disk is full"), True),
        (RuntimeError("the answer is too long"), False),
    ],
)
def test_what_a_full_disk_looks_like(tmp_path: Path, error: Exception, full: bool) -> None:
    assert is_storage_full(error) is full
    with pytest.raises(StorageFullError if full else type(error)), storage_errors(tmp_path):
        raise error
    try:
        raise ValueError("saving failed") from error
    except ValueError as outer:
        assert is_storage_full(outer) is full


def test_processes_that_make_the_same_view_at_once(fast_folder: Path) -> None:
    store = ArtifactStore(fast_folder / "home")
    for round_number in range(15):
        with store.writer("dataset", meta={"round": round_number}) as writer:
            for number in range(30):
                writer.add_bytes(f"{number % 3}/{number}.txt", str(number).encode())
            artifact = writer.commit()
        inodes = fast_folder / "inodes"
        inodes.mkdir()

        def look(number: int, artifact: object = artifact, inodes: Path = inodes) -> int:
            view = store.view(artifact)
            (inodes / str(view.stat().st_ino)).touch()
            return int((view / "2" / "29.txt").read_bytes() != b"29")

        assert _together(4, look) == [0, 0, 0, 0]
        # Whoever came second took the first one's view instead of moving it away from under a reader.
        assert [path.name for path in inodes.iterdir()] == [str(store.view(artifact).stat().st_ino)]
        remove_tree(inodes)
    assert list(store.temporary.iterdir()) == []
