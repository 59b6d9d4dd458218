"""The index says what the segments say: exactly once, in any order, after any kill, on both databases."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.traffic import columns
from posttrain.traffic.audit import reconcile, verify_log
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.index import TrafficIndex, known_sink, metadata
from posttrain.traffic.indexer import Indexer, index_once
from posttrain.traffic.query import Where, counts, feedback_of, pairs, request, requests, verdicts_of
from posttrain.traffic.records import FeedbackRow, RequestRow, VerdictRow
from posttrain.traffic.segments import SegmentWriter, list_segments
from tests.traffic.traffic_world import child, memory_folder, wait_until

_SMALL = TrafficConfig(segment_bytes=4096)


def dumped(index: TrafficIndex) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that the rows made, but for which writer's copy of a row it was."""
    found = {}
    with index.database.reading() as connection:
        for table in columns.TABLES:
            names = ", ".join(columns.quoted(name) for name in table.all_columns if name != "writer")
            found[table.name] = [
                tuple(row)
                for row in connection.exec_driver_sql(f"SELECT {names} FROM {table.name} ORDER BY id")
            ]
    return found


def begin(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "v": 1, "kind": "begin", "id": f"r-{number}", "at_ms": 1_000_000 + number, "worker": "w0", "epoch": 3,
        "model": "m", "lane": "production", "request": {"messages": [{"content": f"question {number}"}]}, **fields,
    }  # fmt: skip


def end(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "v": 1, "kind": "end", "id": f"r-{number}", "at_ms": 1_000_000 + number, "status": 200, "finish": "stop",
        "stream": True, "latency_ms": 10.5, "slices": ["math"], "guardrails": [{"name": "pii"}],
        "response": {"content": f"answer {number}"}, "prompt_tokens": 5, **fields,
    }  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]], owner: str = "w0", **options: Any) -> None:
    writer = SegmentWriter(folder, owner=owner, config=TrafficConfig(**options) if options else _SMALL)
    for row in rows:
        writer.append(json.dumps(row).encode())
    writer.close()


def test_rows_come_out_as_they_went_in(tmp_path: Path, registry_url: str) -> None:
    index = TrafficIndex.open(tmp_path, registry_url)
    shadow = RequestRow(
        id="s-1", at_ms=1_000_002, worker="w0", epoch=3, model="m", lane="shadow", of="r-1", rollout="x",
        tries=2, cost_usd=0.25, user="u", response={"content": "other"}, finish="length", slices=("a", "b"),
    )  # fmt: skip
    said = FeedbackRow("f-1", "r-1", 5, "comment", text="nice\x00", data={"a": [1]})
    word = VerdictRow("v-1", "r-1", "s-1", 6, "judge", "shadow", flipped=True, detail={"b": 1})
    write(
        tmp_path,
        [
            begin(1, user="u"), end(1),
            {"kind": "shadow", **dataclasses.asdict(shadow)},
            {"kind": "feedback", **dataclasses.asdict(said)},
            {"kind": "verdict", **dataclasses.asdict(word)},
        ],
    )  # fmt: skip
    done = index_once(tmp_path, index)
    assert done is not None
    assert (done.rows, done.bad_rows, done.lost) == (5, 0, 0)
    assert request(index, "s-1") == shadow
    assert request(index, "r-1") == RequestRow(
        id="r-1", at_ms=1_000_001, worker="w0", epoch=3, model="m", lane="production", user="u", status=200,
        finish="stop", stream=True, latency_ms=10.5, slices=("math",), guardrails=({"name": "pii"},), prompt_tokens=5,
        request={"messages": [{"content": "question 1"}]}, response={"content": "answer 1"},
    )  # fmt: skip
    assert feedback_of(index, "r-1") == [dataclasses.replace(said, text="nice\ufffd")]
    assert verdicts_of(index, "r-1") == [word]
    assert [(p.shadow.id, p.production.id) for p in pairs(index, "x")] == [("s-1", "r-1")]
    assert request(index, "none") is None


def test_every_field_of_the_records_is_a_column() -> None:
    for table, record in (
        (columns.REQUESTS, RequestRow),
        (columns.FEEDBACK, FeedbackRow),
        (columns.VERDICTS, VerdictRow),
    ):
        assert {"id", *table.columns} == {item.name for item in dataclasses.fields(record)}


def test_migrations_make_the_tables_that_the_code_expects(tmp_path: Path, registry_url: str) -> None:
    inspector = sa.inspect(TrafficIndex.open(tmp_path, registry_url).database.engine)
    for table in columns.TABLES:
        made = [column["name"] for column in inspector.get_columns(table.name)]
        assert sorted(made) == sorted(table.all_columns)
    for table in metadata.tables.values():
        made = {column["name"]: column["nullable"] for column in inspector.get_columns(table.name)}
        assert made == {column.name: column.nullable for column in table.columns}


def test_rows_that_are_none_of_ours_are_counted_and_cost_nothing(tmp_path: Path, registry_url: str) -> None:
    index = TrafficIndex.open(tmp_path, registry_url)
    odd = [
        begin(1, at_ms=1 << 80, user=["a", "b"], model="\ud800\x00", epoch="x", cost_usd=float("nan")),
        {"kind": "end"}, {"kind": "what", "id": "a"}, {"id": "b"}, {"kind": ["end"], "id": "c"},
        {"kind": "end", "id": 7},
    ]  # fmt: skip
    writer = SegmentWriter(tmp_path, owner="w0")
    for row in odd:
        writer.append(json.dumps(row).encode())
    for data in (b"[1]", b"not json", b"{}", b"{   }", b"\xff\xfe", b"[" * 100_000):
        writer.append(data)
    writer.append(json.dumps(end(2)).encode())
    writer.close()
    done = index_once(tmp_path, index)
    assert done is not None
    assert (done.rows, done.bad_rows) == (13, 8)
    assert [row[0] for row in dumped(index)["requests"]] == ["7", "r-1", "r-2"]
    found = request(index, "r-1")
    assert found is not None
    assert (found.user, found.model, found.epoch, found.at_ms) == ('["a","b"]', "?\ufffd", 0, 0)


def test_an_index_is_of_one_folder(tmp_path: Path, registry_url: str) -> None:
    write(tmp_path / "a", [begin(1)])
    write(tmp_path / "b", [begin(1)])
    index_once(tmp_path / "a", TrafficIndex.open(tmp_path, registry_url))
    with pytest.raises(TrafficLogError, match="another traffic log"):
        index_once(tmp_path / "b", TrafficIndex.open(tmp_path, registry_url))


# -- lost ------------------------------------------------------------------------------------------


def test_a_request_is_lost_once_its_writer_is_dead_and_not_before(tmp_path: Path, registry_url: str) -> None:
    index = TrafficIndex.open(tmp_path, registry_url)
    indexer = Indexer(tmp_path, index)

    def finish() -> list[str | None]:
        return [row.finish for row in requests(index)]

    def work(pipe: int) -> None:
        writer = SegmentWriter(tmp_path, owner="w0")
        for row in (begin(1), begin(2), end(2)):
            writer.append(json.dumps(row).encode())
        os.write(pipe, b"x")
        time.sleep(60)

    with child(work) as (pid, pipe):
        assert os.read(pipe, 1) == b"x"
        indexer.poll()
        assert finish() == [None, "stop"]
        assert indexer.poll().lost == 0
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: indexer.poll().lost == 1)
    assert finish() == ["lost", "stop"]
    assert [(o.accepted, o.ended, o.indexed, o.lost, o.agrees) for o in reconcile(tmp_path, index)] == [
        (2, 1, 2, 1, True)
    ]
    # Its end turns up after all, from wherever.
    write(tmp_path, [end(1, finish="length")], owner="w1")
    indexer.poll()
    assert finish() == ["length", "stop"]
    assert counts(index)[0].finishes == {"length": 1, "stop": 1}


def test_a_living_writer_of_the_same_name_does_not_save_its_predecessors_requests(tmp_path: Path) -> None:
    index = TrafficIndex.open(tmp_path)
    indexer = Indexer(tmp_path, index)

    def die(pipe: int) -> None:
        writer = SegmentWriter(tmp_path, owner="w0", config=_SMALL)
        for number in range(40):
            writer.append(json.dumps(begin(number)).encode())
        for number in range(1, 40):
            writer.append(json.dumps(end(number)).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    with child(die) as (_, pipe):
        assert os.read(pipe, 1) == b""
    writer = SegmentWriter(tmp_path, owner="w0")
    writer.append(json.dumps(begin(100)).encode())
    assert indexer.poll().lost == 1
    assert {row.id for row in requests(index, Where(finish="lost"))} == {"r-0"}
    writer.close()
    assert indexer.poll().lost == 1


def test_a_writer_that_lived_and_died_between_two_looks(tmp_path: Path) -> None:
    index = TrafficIndex.open(tmp_path)
    indexer = Indexer(tmp_path, index)
    living = SegmentWriter(tmp_path, owner="w1")
    living.append(json.dumps(begin(1)).encode())
    assert indexer.poll().lost == 0
    write(tmp_path, [begin(2)])
    assert indexer.poll().lost == 1
    assert {row.id: row.finish for row in requests(index)} == {"r-1": None, "r-2": "lost"}
    living.close()


# -- order -----------------------------------------------------------------------------------------


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows once in order, and the same rows duplicated and shuffled."""
    rows: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 6))):
        of = f"r-{number}"
        rows.append(begin(number, user=draw(st.sampled_from([None, "u"]))))
        if draw(st.booleans()):
            finish = draw(st.sampled_from(["stop", "error", None]))
            rows.append(end(number, finish=finish, status=draw(st.integers(0, 599))))
        if draw(st.booleans()):
            rows.append({**end(number), "kind": "shadow", "id": f"s-{number}", "of": of, "lane": "shadow"})
        if draw(st.booleans()):
            rows.append(
                {"kind": "feedback", "id": f"f-{number % 2}", "of": of, "at_ms": number, "value": number}
            )
        if draw(st.booleans()):
            rows.append(
                {"kind": "verdict", "id": f"v-{number}", "of": of, "shadow": f"s-{number}", "at_ms": 1}
            )
    again = rows + draw(st.lists(st.sampled_from(rows), max_size=8))
    return rows, draw(st.permutations(again))


@settings(max_examples=25, deadline=None)
@given(history=_histories(), cut=st.integers(0, 30), batch=st.integers(1, 4))
def test_duplicated_late_and_reordered_rows_give_the_same_state(
    history: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    cut: int,
    batch: int,
) -> None:
    rows, again = history
    states = []
    for parts in ([rows], [again[:cut], again[cut:]]):
        with memory_folder() as folder:
            index = TrafficIndex.open(folder)
            for number, part in enumerate(parts):
                write(folder, part, owner=f"w{number}")
                Indexer(folder, index, batch_rows=batch if len(parts) > 1 else 1000).poll()
            states.append(dumped(index))
    assert states[0] == states[1]


def test_both_databases_merge_rows_the_same(tmp_path: Path, registry_url: str) -> None:
    rng = random.Random(7)
    rows = [begin(n, arm="a") for n in range(60)] + [end(n, arm=None) for n in range(0, 60, 2)]
    rows += [{**end(n), "kind": "shadow", "id": f"s-{n}", "of": f"r-{n}"} for n in range(0, 60, 3)]
    expected = TrafficIndex.open(tmp_path / "expected")
    write(tmp_path / "expected", rows)
    index_once(tmp_path / "expected", expected)
    shuffled = rows * 2
    rng.shuffle(shuffled)
    index = TrafficIndex.open(tmp_path, registry_url)
    write(tmp_path / "other", shuffled)
    Indexer(tmp_path / "other", index, batch_rows=11).poll()
    assert dumped(index) == dumped(expected)
    assert request(index, "r-2").arm == "a"  # type: ignore[union-attr]


# -- kills -----------------------------------------------------------------------------------------


def _index_process(folder: Path, url: str | None) -> Callable[[int], None]:
    def work(pipe: int) -> None:
        index = TrafficIndex.open(folder, url)
        os.write(pipe, b"x")
        Indexer(folder, index, batch_rows=7).poll()
        os.write(pipe, b"y")

    return work


def _kill_indexer(folder: Path, url: str | None, times: int) -> None:
    rng = random.Random(times)
    total = 0
    index = TrafficIndex.open(folder, url)
    for number in range(times):
        rows = [begin(1000 * number + n) for n in range(60)] + [
            end(1000 * number + n) for n in range(0, 60, 2)
        ]
        write(folder, rows, owner=f"w{number % 3}")
        total += len(rows)
        with child(_index_process(folder, url)) as (pid, pipe):
            assert os.read(pipe, 1) == b"x"
            time.sleep(rng.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
    index_once(folder, index)
    cursors = index.cursors().values()
    assert sum(cursor.rows for cursor in cursors) == total
    assert sum(cursor.accepted for cursor in cursors) == 60 * times
    assert all(cursor.finished for cursor in cursors)
    assert index.scalar("SELECT count(*) FROM requests") == 60 * times
    assert index.scalar("SELECT count(*) FROM requests WHERE finish = 'lost'") == 30 * times
    found = verify_log(folder, index)
    assert found.ok
    assert sum(owner.accepted for owner in found.owners) == 60 * times
    # From zero, the same.
    again = TrafficIndex.open(folder, f"sqlite:///{folder}/again.sqlite")
    Indexer(folder, again).poll()
    assert dumped(again) == dumped(index)


def test_an_indexer_killed_anywhere_loses_and_doubles_nothing(tmp_path: Path, registry_url: str) -> None:
    _kill_indexer(tmp_path, registry_url, 6)


@pytest.mark.slow
def test_an_indexer_killed_hundreds_of_times(tmp_path: Path) -> None:
    for number in range(8):
        _kill_indexer(tmp_path / str(number), None, 30)


def _everything_killed(folder: Path, times: int) -> None:
    """Two writers and an indexer, all killed at once, again and again; then one quiet look."""
    rng = random.Random(times)
    acknowledged: set[str] = set()

    def worker(owner: str, life: int) -> Callable[[int], None]:
        def work(pipe: int) -> None:
            writer = SegmentWriter(folder, owner=owner, config=TrafficConfig(segment_bytes=256 << 10))
            number = 0
            while True:
                name = f"{owner}-{life}-{number}"
                writer.append(json.dumps(begin(number, id=name)).encode())
                writer.append(json.dumps(end(number, id=name)).encode())
                os.write(pipe, f"{name}\n".encode())
                number += 1

        return work

    def indexer(pipe: int) -> None:
        following = Indexer(folder, TrafficIndex.open(folder), batch_rows=50)
        os.write(pipe, b"x")
        while True:
            following.poll()

    TrafficIndex.open(folder)
    for life in range(times):
        with (
            child(worker("w0", life)) as (pid0, pipe0),
            child(worker("w1", life)) as (pid1, pipe1),
            child(indexer) as (pid2, pipe2),
        ):
            assert os.read(pipe2, 1) == b"x"
            said = [b"", b""]
            deadline = time.monotonic() + rng.uniform(0.02, 0.1)
            while time.monotonic() < deadline:
                said = [old + os.read(pipe, 4096) for old, pipe in zip(said, (pipe0, pipe1), strict=True)]
            for pid in (pid2, pid0, pid1):
                os.kill(pid, signal.SIGKILL)
            for number, pipe in enumerate((pipe0, pipe1)):
                while part := os.read(pipe, 4096):
                    said[number] += part
            for text in said:
                acknowledged.update(text.decode().split("\n")[:-1])
    index = TrafficIndex.open(folder)
    index_once(folder, index)
    ended = {row.id for row in requests(index, Where(finish="stop"))}
    lost = {row.id for row in requests(index, Where(finish="lost"))}
    assert acknowledged <= ended
    assert len(acknowledged) > times * 5
    # At most the one that each writer was at.
    assert len(lost) + len(ended - acknowledged) <= 2 * times
    assert ended | lost == {row.id for row in requests(index)}
    found = verify_log(folder, index)
    assert found.ok
    assert sum(owner.accepted for owner in found.owners) == len(ended | lost)


def test_everything_killed_at_once(tmp_path: Path) -> None:
    _everything_killed(tmp_path, 3)


@pytest.mark.slow
def test_everything_killed_at_once_a_hundred_times(tmp_path: Path) -> None:
    for number in range(10):
        _everything_killed(tmp_path / str(number), 10)


# -- the process -----------------------------------------------------------------------------------


def test_the_process_follows_and_ends_on_sigterm(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "posttrain.traffic",
        "--folder",
        str(tmp_path),
        "--poll-seconds",
        "0.01",
    ]
    writer = SegmentWriter(tmp_path, owner="w0")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        writer.append(json.dumps(begin(1)).encode())
        index = TrafficIndex.open(tmp_path)
        wait_until(lambda: request(index, "r-1") is not None)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "already running" in second.stderr
        assert index_once(tmp_path, index) is None
        writer.append(json.dumps(end(1)).encode())
        wait_until(lambda: request(index, "r-1").finish == "stop")  # type: ignore[union-attr]
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        writer.close()
    assert index_once(tmp_path, index) is not None


def test_the_process_moves_old_segments_to_the_history(tmp_path: Path) -> None:
    write(tmp_path, [row for number in range(40) for row in (begin(number), end(number))])
    segments = len(list_segments(tmp_path))
    url = f"sqlite:///{tmp_path}/elsewhere.sqlite"
    command = [sys.executable, "-m", "posttrain.traffic", "--folder", str(tmp_path), "--index", url]
    process = subprocess.Popen([*command, "--history-after", "0"], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(list_segments(tmp_path)) == 1 < segments)
        assert known_sink(tmp_path) == f"{tmp_path}/elsewhere.sqlite"
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    index = TrafficIndex.open(tmp_path, url)
    assert len(list(requests(index, Where(finish="stop")))) == 40
    assert verify_log(tmp_path, index).ok
