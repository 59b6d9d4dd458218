"""Writing and verifying an artifact, beside copying and hashing its files by hand.

Here: 200 files of 512 KiB (100 MiB). The peer is what a careful script does: ``shutil.copy`` of each file and a
``SHA256SUMS`` file, and later the sums derived again; once as written (bytes may still be in memory only) and once
with each file and the folder put on the disk, which is what the store promises. Not here: DVC or a hub cache, which
bring a program of their own.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import Outcome, Size, Values, measure, pair

_CHUNK_BYTES = 1 << 20
_FILES = {"smallest": (8, 1 << 16), "default": (200, 1 << 19)}


def run(size: Size, rounds: int) -> Outcome:
    """Write and verify the files once on each side a round, in fresh folders."""
    count, file_bytes = _FILES[size]
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as name:
        folder = Path(name)
        source = _make_files(folder / "source", count, file_bytes)
        pairs = pair(
            rounds,
            lambda number: _ours(source, folder / "store", faults),
            lambda number: _peers(source, folder / "copies", faults),
        )
    return Outcome(
        rows=(
            pairs.row("write, wall", "write_wall", "copy + sha256, synced", their_name="synced_wall"),
            pairs.row("write, processor", "write_cpu", "copy + sha256, synced", their_name="synced_cpu"),
            pairs.row("write, wall", "write_wall", "copy + sha256, not synced", their_name="copied_wall"),
            pairs.row("verify, wall", "verify_wall", "sha256 of each file"),
            pairs.row("verify, processor", "verify_cpu", "sha256 of each file"),
        ),
        notes=(
            f"{count} files of {file_bytes >> 10} KiB, warm in the file cache; the disk is synced before each write is "
            f"timed, and the folder is {'in memory' if _in_memory() else 'on a disk'} (TMPDIR moves it)",
        ),
        faults=faults,
    )


def _make_files(folder: Path, count: int, file_bytes: int) -> Path:
    """Files of fixed pseudo-random bytes, so that nothing compresses or repeats."""
    rng = random.Random("benchmark-store")
    folder.mkdir()
    for index in range(count):
        (folder / f"part-{index:04d}.bin").write_bytes(rng.randbytes(file_bytes))
    return folder


def _ours(source: Path, folder: Path, faults: list[str]) -> Values:
    import posttrain.artifacts.verify  # noqa: F401 - loaded before any clock runs
    from posttrain.artifacts.store import ArtifactStore

    store = ArtifactStore(folder)
    digests: list[str] = []
    problems: list[object] = []

    def write() -> None:
        with store.writer("dataset") as writer:
            writer.add_tree(source)
            digests.append(writer.commit().digest)

    values = {**_timed("write", write), **_timed("verify", lambda: problems.extend(store.verify(digests[0])))}
    faults += [f"the store found {problem}" for problem in problems]
    _empty(folder)
    return values


def _peers(source: Path, folder: Path, faults: list[str]) -> Values:
    values = _timed("copied", lambda: _copy(source, folder, sync=False))
    _empty(folder)
    values |= _timed("synced", lambda: _copy(source, folder, sync=True))
    wrong: list[str] = []
    values |= _timed("verify", lambda: wrong.extend(_check(folder)))
    faults += [f"the copy of {name} differs" for name in wrong]
    _empty(folder)
    return values


def _copy(source: Path, folder: Path, *, sync: bool) -> None:
    folder.mkdir()
    sums = []
    for path in sorted(source.iterdir()):
        target = folder / path.name
        shutil.copy(path, target)
        sums.append(f"{_sha256(target)}  {path.name}\n")
        if sync:
            _sync(target)
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    if sync:
        _sync(folder / "SHA256SUMS")
        _sync(folder)


def _check(folder: Path) -> list[str]:
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return [
        name for line in lines for known, _, name in [line.partition("  ")] if _sha256(folder / name) != known
    ]


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _timed(name: str, work: Callable[[], object]) -> dict[str, float]:
    os.sync()
    return {f"{name}_{kind}": seconds for kind, seconds in measure(work).items()}


def _empty(folder: Path) -> None:
    from posttrain.core.atomic import remove_tree

    remove_tree(folder)


def _in_memory() -> bool:
    """Whether temporary folders are on a file system without a disk."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    folder = Path(tempfile.gettempdir()).resolve()
    under = [fields for fields in mounts if folder.is_relative_to(fields[1])]
    return bool(under) and max(under, key=lambda fields: len(fields[1]))[2] in {"tmpfs", "ramfs"}
