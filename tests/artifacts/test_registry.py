"""The registry: the same behaviour on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from posttrain.artifacts import tables
from posttrain.artifacts.errors import ConflictError
from posttrain.artifacts.migrations import load_migrations
from posttrain.artifacts.records import Artifact, Producer, Provenance, RunRecord, RunStageRecord
from posttrain.artifacts.registry import Registry, new_run_id
from posttrain.core.canonical import digest_bytes, digest_json
from posttrain.core.clock import utc_now
from posttrain.core.errors import NewerStoreError, StoreError, UnknownReferenceError, UsageError


def _digest(name: str) -> str:
    return digest_bytes(name.encode())


def _artifact(name: str, kind: str = "dataset", **inputs: str) -> Artifact:
    return Artifact(kind, files=(), meta={"name": name}, provenance=(Provenance(inputs),))


def _run(run_id: str = "20261123-150405-ab12") -> RunRecord:
    now = utc_now()
    return RunRecord(
        id=run_id,
        recipe="r1-zero-tiny",
        recipe_digest=digest_json({}),
        recipe_json="{}",
        created_at=now,
        updated_at=now,
        seed=7,
        pid=123,
        host="here",
    )


def _processes(code: str, count: int, *arguments: str) -> list[str]:
    """Run the same code in several processes at once; what each printed."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(count)
    ]
    printed = []
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        printed.append(out.decode())
    return printed


def _raw(registry: Registry, *statements: str) -> None:
    with registry.database.engine.connect() as connection, connection.begin():
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_artifacts_and_lineage(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    prompts = _artifact("prompts")
    base = _artifact("base", "model", prompts=prompts.digest)
    tuned = _artifact("tuned", "model", base=base.digest, prompts=prompts.digest, lost=_digest("lost"))
    for artifact in (prompts, base, tuned, base):
        registry.record(artifact)
    assert [a.digest for a in registry.artifacts("model")] == [base.digest, tuned.digest]
    assert len(registry.artifacts()) == 3
    assert registry.artifacts()[2] == tuned
    assert registry.children(prompts.digest) == sorted([base.digest, tuned.digest])
    assert registry.ancestors(tuned.digest) == sorted([base.digest, prompts.digest, _digest("lost")])
    assert registry.ancestors(prompts.digest) == []


def test_the_index_keeps_the_manifest_exactly(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    artifact = Artifact(
        "report",
        files=(),
        meta={"text": "答案是 8 ≤ 9\n", "share": 0.1, "rows": 2**53 - 1},
        about={"model": _digest("m")},
        provenance=(Provenance({}, Producer("e", "k", "o"), {"threads": 2}),),
    )
    registry.record(artifact)
    assert registry.artifacts() == [artifact]
    assert registry.artifacts()[0].digest == artifact.digest
    assert registry.artifacts()[0].provenance == artifact.provenance


def test_an_artifact_that_came_about_twice(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    ways = [
        Provenance({"base": _digest(name)}, Producer("sft", _digest("key " + name), "model")) for name in "ab"
    ]
    for way in ways:
        registry.record(Artifact("model", files=(), provenance=(way,)))
    (kept,) = registry.artifacts()
    assert sorted(kept.provenance, key=str) == sorted(ways, key=str)
    assert registry.ancestors(kept.digest) == sorted([_digest("a"), _digest("b")])
    assert registry.children(_digest("a")) == registry.children(_digest("b")) == [kept.digest]


def test_finished_stages(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    assert registry.stage_outputs("sha256:k") is None
    registry.complete_stage("sha256:k", "grpo", {"model": _digest("m"), "metrics": _digest("t")})
    registry.complete_stage("sha256:none", "check", {})
    assert registry.stage_outputs("sha256:k") == {"metrics": _digest("t"), "model": _digest("m")}
    assert registry.stage_outputs("sha256:none") == {}
    registry.complete_stage("sha256:k", "grpo", {"model": _digest("m2")})
    assert registry.stage_outputs("sha256:k") == {"model": _digest("m2")}


def test_runs(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    run = _run()
    stage = RunStageRecord(run.id, position=1, name="grpo", kind="grpo")
    registry.create_run(run, [stage, RunStageRecord(run.id, position=0, name="base", kind="pretrain_tiny")])
    with pytest.raises(ConflictError):
        registry.create_run(run)
    assert registry.run(run.id) == run
    assert [s.name for s in registry.run_stages(run.id)] == ["base", "grpo"]

    done = replace(
        stage,
        status="finished",
        key=_digest("key"),
        inputs={"base": _digest("b")},
        outputs={"model": _digest("m")},
        summary={"accuracy": 0.5, "bad": float("inf"), "big": 2**60, "text": "好"},
        started_at=utc_now(),
        finished_at=utc_now(),
        seconds=1.25,
    )
    registry.save_run_stage(done)
    assert registry.run_stages(run.id)[1] == done
    assert registry.run(run.id).updated_at > run.updated_at

    failed = registry.update_run(run.id, status="failed", error="no space left")
    assert (failed.status, failed.error, failed.pid) == ("failed", "no space left", 123)
    resumed = registry.update_run(run.id, status="running", pid=456)
    assert (resumed.status, resumed.error, resumed.pid) == ("running", None, 456)
    assert registry.update_run(run.id, status=None).status == "running"

    registry.create_run(replace(_run("20261124-000000-0000"), created_at=utc_now()))
    assert [r.id for r in registry.runs()] == [run.id, "20261124-000000-0000"]
    registry.delete_run(run.id)
    assert registry.run_stages(run.id) == []
    for action in (
        lambda: registry.run(run.id),
        lambda: registry.delete_run(run.id),
        lambda: registry.update_run(run.id, status="failed"),
        lambda: registry.save_run_stage(done),
    ):
        with pytest.raises(UnknownReferenceError):
            action()


def test_an_impossible_status_is_refused_by_the_database(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    with pytest.raises(StoreError):
        registry.create_run(replace(_run(), status="sleeping"))
    assert registry.runs() == []


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) > 45
    assert all(len(run_id) == 20 for run_id in ids)


def test_refs_compare_and_set(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    registry.set_ref("best", _digest("a"))
    registry.set_ref("best", _digest("b"), expected=_digest("a"))
    with pytest.raises(ConflictError, match="best"):
        registry.set_ref("best", _digest("c"), expected=_digest("a"))
    with pytest.raises(ConflictError):
        registry.set_ref("other", _digest("c"), expected=_digest("a"))
    assert registry.refs() == {"best": _digest("b")}
    assert registry.ref("other") is None
    registry.delete_ref("best")
    assert registry.ref("best") is None
    for name, digest in (("a:b", _digest("a")), ("", _digest("a")), ("ok", "sha256:12")):
        with pytest.raises(UsageError):
            registry.set_ref(name, digest)


def test_releases_compare_and_set(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    assert registry.current_release("production") is None
    first = registry.publish_release("production", _digest("a"), None)
    with pytest.raises(ConflictError):
        registry.publish_release("production", _digest("b"), None)
    second = registry.publish_release("production", _digest("b"), _digest("a"))
    back = registry.publish_release("production", _digest("a"), _digest("b"))
    registry.publish_release("staging", _digest("c"), None)
    assert registry.releases("production") == [first, second, back]
    assert [r.position for r in registry.releases("production")] == [1, 2, 3]
    assert registry.current_release("production") == back
    assert back.previous == _digest("b")


def test_of_many_processes_one_wins_a_release(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    code = """
        import os, sys
        from posttrain.artifacts.errors import ConflictError
        from posttrain.artifacts.registry import Registry
        from posttrain.core.canonical import digest_bytes
        registry = Registry.open(sys.argv[1])
        won = 0
        expected = None
        for position in range(10):
            mine = digest_bytes(f"{os.getpid()}/{position}".encode())
            try:
                registry.publish_release("production", mine, expected)
                won += 1
            except ConflictError:
                pass
            history = registry.releases("production")
            expected = history[-1].digest
        print(won)
    """
    won = [int(text) for text in _processes(code, 3, registry_url)]
    history = registry.releases("production")
    assert sum(won) == len(history) >= 10
    assert [r.position for r in history] == list(range(1, len(history) + 1))
    assert [r.previous for r in history] == [None, *(r.digest for r in history[:-1])]


def test_journal_is_chained(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    first = registry.append_journal("me", "run.finished", "run-1", {"seconds": 1.5, "文": ["a", None]})
    second = registry.append_journal("me", "release.published", "production")
    assert registry.journal() == [first, second]
    assert registry.journal(after=1) == [second]
    assert registry.journal(limit=1) == [first]
    assert (first.sequence, first.previous, second.previous) == (1, None, first.digest)
    assert registry.verify_journal() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET actor = 'you'",
        "DELETE FROM journal",
        "DELETE FROM journal WHERE sequence = 2",
        "INSERT INTO journal SELECT sequence + 5, at, actor, action, subject, data, previous, '' FROM journal",
        "INSERT INTO journal VALUES (3, 'now', 'you', 'a', 's', '{}', 'sha256:other', 'sha256:x')",
    ],
)
def test_journal_refuses_changes(registry_url: str, statement: str) -> None:
    registry = Registry.open(registry_url)
    entries = [registry.append_journal("me", "run.finished", f"run-{i}") for i in range(2)]
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        _raw(registry, statement)
    assert registry.journal() == entries


def test_journal_refuses_replace_in_sqlite(tmp_path: Path) -> None:
    registry = Registry.open_file(tmp_path / "registry.sqlite")
    entry = registry.append_journal("me", "run.finished", "run-1")
    # A plain connection, without this program's settings.
    connection = sqlite3.connect(tmp_path / "registry.sqlite")
    with pytest.raises(sqlite3.DatabaseError, match="append-only"):
        connection.execute(
            "INSERT OR REPLACE INTO journal VALUES (1, 'now', 'you', 'a', 's', '{}', NULL, 'sha256:x')"
        )
    connection.close()
    assert registry.journal() == [entry]


def test_journal_refuses_truncate_in_postgres(postgres_server: object) -> None:
    registry = Registry.open(postgres_server.new_url())
    registry.append_journal("me", "run.finished", "run-1")
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        _raw(registry, "TRUNCATE journal")


@pytest.mark.parametrize(
    ("forgery", "found"),
    [
        ("UPDATE journal SET data = '{\"seconds\":2}' WHERE sequence = 2", "changed"),
        ("DELETE FROM journal WHERE sequence = 2", "missing"),
        ("UPDATE journal SET sequence = 2 WHERE sequence = 3", "does not name"),
        ("UPDATE journal SET previous = NULL WHERE sequence = 3", "does not name"),
    ],
)
def test_verify_journal_sees_what_went_around_the_triggers(
    registry_url: str, forgery: str, found: str
) -> None:
    registry = Registry.open(registry_url)
    for i in range(4):
        registry.append_journal("me", "run.finished", f"run-{i}", {"seconds": 1})
    if registry.database.dialect == "sqlite":
        drops = ["DROP TRIGGER journal_no_update", "DROP TRIGGER journal_no_delete"]
    else:
        drops = ["DROP TRIGGER journal_no_change ON journal"]
    if "sequence = 2 WHERE sequence = 3" in forgery:
        drops.append("DELETE FROM journal WHERE sequence = 2")
    _raw(registry, *drops, forgery)
    assert any(found in problem.what for problem in registry.verify_journal())


def test_many_processes_append_to_one_journal(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    code = """
        import os, sys
        from posttrain.artifacts.registry import Registry
        registry = Registry.open(sys.argv[1])
        for i in range(25):
            registry.append_journal(str(os.getpid()), "test", str(i))
    """
    _processes(code, 3, registry_url)
    entries = registry.journal()
    assert [e.sequence for e in entries] == list(range(1, 76))
    assert len({e.actor for e in entries}) == 3
    assert registry.verify_journal() == []


def test_processes_that_open_a_new_registry_at_once(registry_url: str) -> None:
    code = """
        import os, sys
        from posttrain.artifacts.registry import Registry
        Registry.open(sys.argv[1]).append_journal(str(os.getpid()), "opened", "registry")
    """
    _processes(code, 5, registry_url)
    registry = Registry.open(registry_url)
    assert len(registry.journal()) == 5
    with registry.database.reading() as connection:
        applied = connection.scalars(sa.select(tables.schema_migrations.c.number)).all()
    assert applied == [m.number for m in load_migrations()]


def test_a_failed_transaction_leaves_nothing(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    with pytest.raises(StoreError), registry.database.writing(tables.refs) as connection:
        connection.execute(tables.refs.insert().values(name="a", digest="d", updated_at="now"))
        connection.exec_driver_sql("INSERT INTO no_such_table VALUES (1)")
    assert registry.refs() == {}


def test_a_newer_schema_is_refused(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    _raw(registry, "INSERT INTO schema_migrations VALUES (999, 'later', 'now')")
    with pytest.raises(NewerStoreError, match="999") as caught:
        Registry.open(registry_url)
    assert "upgrade" in str(caught.value.hint)


def test_migrations_make_the_tables_that_the_code_expects(registry_url: str) -> None:
    registry = Registry.open(registry_url)
    inspector = sa.inspect(registry.database.engine)
    assert set(inspector.get_table_names()) == set(tables.metadata.tables)
    for table in tables.metadata.tables.values():
        made = {c["name"]: c["nullable"] for c in inspector.get_columns(table.name)}
        assert made == {c.name: c.nullable for c in table.columns}, table.name
        keys = inspector.get_pk_constraint(table.name)["constrained_columns"]
        assert set(keys) == {c.name for c in table.primary_key}


def test_migration_numbers_have_no_gap() -> None:
    numbers = [migration.number for migration in load_migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_sqlite_settings(tmp_path: Path) -> None:
    folder = tmp_path / "with space#and?%20"
    folder.mkdir()
    registry = Registry.open_file(folder / "registry.sqlite")
    assert (folder / "registry.sqlite").exists()
    with registry.database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 1000
    with pytest.raises(StoreError):
        _insert_orphan(registry)


def test_opening_waits_for_whoever_writes_a_file_that_is_not_in_wal_mode_yet(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "registry.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE theirs (a)")
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    registry = Registry.open_file(tmp_path / "registry.sqlite")
    timer.join()
    other.close()
    assert registry.refs() == {}


def _insert_orphan(registry: Registry) -> None:
    with registry.database.writing() as connection:
        connection.execute(tables.stage_outputs.insert().values(key="none", name="x", digest="d"))


def test_what_is_no_registry(tmp_path: Path) -> None:
    for url in ("mysql://here/x", "not a url", ""):
        with pytest.raises(UsageError) as caught:
            Registry.open(url)
        assert caught.value.hint
    broken = tmp_path / "registry.sqlite"
    broken.write_bytes(b"this is not a database, but it is long enough to look like one" * 50)
    with pytest.raises(StoreError, match="not a database"):
        Registry.open_file(broken)
    with pytest.raises(StoreError) as refused:
        Registry.open(f"postgresql://postgres@/none?host={tmp_path}")
    assert "POSTTRAIN_REGISTRY" in str(refused.value.hint)


def test_the_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Registry.open(f"postgresql://me:geheim@/none?host={tmp_path}")
    assert "geheim" not in f"{caught.value} {caught.value.hint}"
