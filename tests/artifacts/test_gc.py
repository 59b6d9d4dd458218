"""Garbage collection: nothing that is named goes, everything else does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.artifacts.gc import collect_garbage
from posttrain.artifacts.home import Home, open_home
from posttrain.artifacts.records import Artifact, Producer, RunRecord, RunStageRecord
from posttrain.artifacts.verify import verify_home
from posttrain.core.canonical import digest_bytes, digest_json
from posttrain.core.clock import utc_now
from posttrain.core.errors import CorruptArtifactError, StoreError
from posttrain.core.settings import Settings

_OLD_SECONDS = 7200.0


def _home(folder: Path, registry_url: str | None = None) -> Home:
    return open_home(Settings(home=folder, registry_url=registry_url))


def _make(
    home: Home, *files: str, inputs: Mapping[str, str] | None = None, key: str | None = None
) -> Artifact:
    """An artifact of two hours ago, recorded, whose files hold their own names."""
    producer = Producer("grpo", key, "out") if key else None
    with home.store.writer(
        "dataset", meta={"n": len(list(home.store.digests()))}, inputs=inputs, producer=producer
    ) as w:
        for name in files:
            w.add_bytes(name, name.encode())
        artifact = w.commit()
    home.registry.record(artifact)
    _age(home, artifact)
    return artifact


def _age(home: Home, artifact: Artifact, seconds: float = _OLD_SECONDS) -> None:
    then = time.time() - seconds
    os.utime(home.store.manifest_path(artifact.digest), (then, then))


def _run(home: Home, run_id: str, *stages: RunStageRecord) -> None:
    now = utc_now()
    home.registry.create_run(RunRecord(run_id, "r", digest_json({}), "{}", now, now), stages)


def _here(home: Home) -> set[str]:
    return set(home.store.digests())


def test_what_is_named_stays(tmp_path: Path, registry_url: str) -> None:
    home = _home(tmp_path / "home", registry_url)
    data = _make(home, "data")
    base = _make(home, "base", inputs={"data": data.digest})
    model = _make(home, "model", "shared", inputs={"base": base.digest, "gone": digest_bytes(b"gone")})
    past, current = _make(home, "past"), _make(home, "current")
    run_input, run_output, by_stage = (_make(home, name, key=name) for name in ("in", "out", "st"))
    _make(home, "made", key="made")
    loose = _make(home, "loose", "shared")
    home.registry.set_ref("best", model.digest)
    home.registry.publish_release("production", past.digest, None)
    home.registry.publish_release("production", current.digest, past.digest)
    home.registry.complete_stage("key-of-stage", "grpo", {"out": by_stage.digest})
    _run(
        home,
        "run-1",
        RunStageRecord(
            "run-1", 0, "a", "a", inputs={"x": run_input.digest}, outputs={"y": run_output.digest}
        ),
        RunStageRecord("run-1", 1, "b", "b", status="running", key="made"),
        RunStageRecord("run-1", 2, "c", "c", status="running", key="key-of-stage"),
    )
    for artifact in (model, loose):
        home.store.view(artifact)

    plan = collect_garbage(home, dry_run=True)
    assert (plan.removed, plan.kept) == ((loose.digest,), 9)
    assert (plan.objects, plan.freed_bytes) == (1, len("loose"))
    assert len(_here(home)) == 10
    done = collect_garbage(home)
    assert done.removed == plan.removed
    assert (done.objects, done.freed_bytes, done.folders, done.stages) == (1, 5, 1, ())
    assert loose.digest not in _here(home)
    assert not home.store.view_path(loose.digest).exists()
    assert home.store.has(model.digest)
    assert home.store.view_path(model.digest).exists()
    assert loose not in home.registry.artifacts()
    assert verify_home(home) == []

    home.registry.delete_run("run-1")
    home.registry.delete_ref("best")
    collect_garbage(home)
    assert _here(home) == {past.digest, current.digest}
    assert home.registry.stage_outputs("key-of-stage") is None


def test_stages_whose_outputs_go_run_again(tmp_path: Path, registry_url: str) -> None:
    home = _home(tmp_path / "home", registry_url)
    kept, lost = _make(home, "kept"), _make(home, "lost")
    home.registry.set_ref("kept", kept.digest)
    home.registry.complete_stage("both", "s", {"a": kept.digest, "b": lost.digest})
    home.registry.complete_stage("kept", "s", {"a": kept.digest})
    home.registry.complete_stage("gone before", "s", {"a": digest_bytes(b"elsewhere")})
    home.registry.complete_stage("without", "s", {})
    assert collect_garbage(home, dry_run=True).stages == ("both", "gone before")
    assert home.registry.stage_outputs("both") is not None
    assert collect_garbage(home).stages == ("both", "gone before")
    assert home.registry.stage_outputs("both") is None
    assert home.registry.stage_outputs("kept") == {"a": kept.digest}
    assert home.registry.stage_outputs("without") == {}


def test_what_is_young_stays_with_its_ancestors(tmp_path: Path) -> None:
    home = _home(tmp_path / "home")
    parent = _make(home, "parent")
    child = _make(home, "child", inputs={"parent": parent.digest})
    _age(home, child, 60)
    assert collect_garbage(home, min_age_seconds=3600).removed == ()
    assert collect_garbage(home, min_age_seconds=30).removed == tuple(sorted([parent.digest, child.digest]))


def test_making_an_artifact_again_makes_it_young(tmp_path: Path) -> None:
    home = _home(tmp_path / "home")
    artifact = _make(home, "x")
    with home.store.writer("dataset", meta=artifact.meta) as writer:
        writer.add_bytes("x", b"x")
        assert writer.commit() == artifact
    assert collect_garbage(home).removed == ()


def test_work_folders_and_left_overs(tmp_path: Path) -> None:
    home = _home(tmp_path / "home")
    keys = {
        name: digest_bytes(name.encode()) for name in ("resumable", "finished", "unknown", "young", "busy")
    }
    _run(
        home,
        "run-1",
        RunStageRecord("run-1", 0, "a", "a", status="failed", key=keys["resumable"]),
        RunStageRecord("run-1", 1, "b", "b", status="finished", key=keys["finished"]),
    )
    old = time.time() - _OLD_SECONDS
    for name, key in keys.items():
        folder = home.work_folder(key)
        (folder / "checkpoint").mkdir()
        if name != "busy":
            os.utime(folder / "checkpoint", (old, old))
        if name != "young":
            os.utime(folder, (old, old))
    stale = home.store.temporary / "stale"
    stale.mkdir()
    orphan = home.store.object_path(digest_bytes(b"orphan"))
    orphan.parent.mkdir()
    orphan.write_bytes(b"orphan")
    view = home.store.view_path(digest_bytes(b"no artifact"))
    view.mkdir()
    report = collect_garbage(home)
    assert (report.folders, report.objects) == (3, 1)
    left = {name for name, key in keys.items() if home.work_path(key).exists()}
    assert left == {"resumable", "young", "busy"}
    assert not orphan.exists()
    assert not view.exists()
    assert stale.exists()
    os.utime(stale, (0, 0))
    assert collect_garbage(home).folders == 1


def test_a_needed_artifact_with_a_damaged_manifest_stops_the_collection(tmp_path: Path) -> None:
    home = _home(tmp_path / "home")
    parent = _make(home, "parent")
    child = _make(home, "child", inputs={"parent": parent.digest})
    loose = _make(home, "loose")
    home.registry.set_ref("best", child.digest)
    for artifact in (child, loose):
        path = home.store.manifest_path(artifact.digest)
        path.chmod(0o644)
        path.write_bytes(b"{}")
        _age(home, artifact)
    with pytest.raises(CorruptArtifactError, match="nothing was removed") as caught:
        collect_garbage(home)
    assert caught.value.hint
    assert len(_here(home)) == 3
    home.registry.delete_ref("best")
    assert len(collect_garbage(home).removed) == 3


def test_a_new_registry_beside_old_runs_removes_nothing(tmp_path: Path) -> None:
    home = _home(tmp_path / "home")
    artifact = _make(home, "x")
    _run(home, "run-1", RunStageRecord("run-1", 0, "a", "a", outputs={"x": artifact.digest}))
    home.run_folder("run-1")
    other = _home(tmp_path / "home", f"sqlite:///{tmp_path / 'new.sqlite'}")
    with pytest.raises(StoreError, match="knows none") as caught:
        collect_garbage(other)
    assert "POSTTRAIN_REGISTRY" in str(caught.value.hint)
    assert collect_garbage(home).removed == ()
    home.delete_run("run-1")
    assert collect_garbage(home).removed == (artifact.digest,)


def test_collecting_while_others_write(tmp_path: Path) -> None:
    """What was old and is made again is whole, though the collector takes its files just before."""
    home = _home(tmp_path / "home")
    code = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from posttrain.artifacts.home import open_home
        from posttrain.core.settings import Settings
        home = open_home(Settings(home=Path(sys.argv[1])))
        while not (home.settings.home / "runs" / "stop").exists():
            with home.store.writer("dataset", meta={"of": os.getpid()}) as writer:
                for name in range(5):
                    writer.add_bytes(f"{name}.txt", f"shared {name}".encode())
                artifact = writer.commit()
            assert home.store.view(artifact).joinpath("0.txt").read_text() == "shared 0"
            assert home.store.verify(artifact.digest) == []
            os.utime(home.store.manifest_path(artifact.digest), (0, 0))  # old: nobody asked for it for long
    """)
    command = [sys.executable, "-c", code, str(home.settings.home)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    collected = 0
    _run(home, "run-1")
    deadline = time.monotonic() + 60
    while (
        collected < 8 and time.monotonic() < deadline and all(process.poll() is None for process in started)
    ):
        collected += len(collect_garbage(home, min_age_seconds=60).removed)
    (home.settings.home / "runs" / "stop").touch()
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert collected >= 8
    assert verify_home(home) == []


@dataclass(frozen=True)
class _World:
    """A random home: per artifact its files and its inputs (earlier artifacts), and what names which."""

    files: list[set[int]]
    inputs: list[set[int]]
    old: list[bool]
    refs: set[int]
    releases: list[int]
    run_outputs: set[int]


@st.composite
def _worlds(draw: st.DrawFn) -> _World:
    count = draw(st.integers(0, 7))
    which = st.sets(st.integers(0, count - 1), max_size=2) if count else st.just(set[int]())
    return _World(
        files=[draw(st.sets(st.integers(0, 4), max_size=3)) for _ in range(count)],
        inputs=[draw(st.sets(st.integers(0, n - 1), max_size=2)) if n else set() for n in range(count)],
        old=[draw(st.booleans()) for _ in range(count)],
        refs=draw(which),
        releases=sorted(draw(which)),
        run_outputs=draw(which),
    )


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(world=_worlds())
def test_exactly_what_is_reachable_stays(fast_folder: Path, world: _World) -> None:
    with tempfile.TemporaryDirectory(dir=fast_folder) as folder:
        home = _home(Path(folder) / "home")
        made: list[Artifact] = []
        for number, (files, inputs) in enumerate(zip(world.files, world.inputs, strict=True)):
            named = {str(n): made[n].digest for n in inputs}
            with home.store.writer("dataset", meta={"number": number}, inputs=named) as writer:
                for name in files:
                    writer.add_bytes(str(name), str(name).encode())
                made.append(writer.commit())
            home.registry.record(made[-1])
            home.registry.complete_stage(f"key-{number}", "s", {"out": made[-1].digest})
            _age(home, made[-1], _OLD_SECONDS if world.old[number] else 0)
        for number in world.refs:
            home.registry.set_ref(f"ref-{number}", made[number].digest)
        previous = None
        for number in world.releases:
            previous = home.registry.publish_release("production", made[number].digest, previous).digest
        outputs = {str(number): made[number].digest for number in world.run_outputs}
        _run(home, "run-1", RunStageRecord("run-1", 0, "a", "a", status="finished", outputs=outputs))

        reachable = world.refs | set(world.releases) | world.run_outputs
        reachable |= {number for number, old in enumerate(world.old) if not old}
        for number in reversed(range(len(made))):  # inputs come before what is made from them
            if number in reachable:
                reachable |= world.inputs[number]

        plan = collect_garbage(home, dry_run=True)
        report = collect_garbage(home)
        assert (plan.removed, plan.objects, plan.freed_bytes) == (
            report.removed,
            report.objects,
            report.freed_bytes,
        )
        assert _here(home) == {made[number].digest for number in reachable}
        contents = {path.read_bytes().decode() for path in home.store.root.glob("objects/??/*")}
        assert contents == {str(name) for number in reachable for name in world.files[number]}
        for number in range(len(made)):
            assert (home.registry.stage_outputs(f"key-{number}") is not None) == (number in reachable)
        assert verify_home(home) == []
        assert collect_garbage(home).removed == ()
