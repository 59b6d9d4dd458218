"""History, erasure and retention: moved rows are all there, removed rows are nowhere and do not return."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.traffic.audit import verify_log
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.erasure import forget
from posttrain.traffic.errors import TrafficLogError
from posttrain.traffic.follow import Follower
from posttrain.traffic.history import archive, part_paths, read_part, schema, verify_parts
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.indexer import Indexer, index_once
from posttrain.traffic.pseudonym import load_or_make_secret, pseudonym
from posttrain.traffic.query import Where, feedback_of, request, requests
from posttrain.traffic.removals import Removals
from posttrain.traffic.retention import retain
from posttrain.traffic.segment_format import list_segments
from posttrain.traffic.segments import SegmentWriter
from tests.traffic.test_traffic_index import begin, dumped, end, write
from tests.traffic.traffic_world import child, rows_in

_DAY = 86_400_000
_SMALL = TrafficConfig(segment_bytes=4096)


def _requests(first: int, count: int, at_ms: int, **fields: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(first, first + count):
        rows += [begin(number, at_ms=at_ms + number, **fields), end(number, at_ms=at_ms + number, **fields)]
    return rows


def _from_zero(folder: Path) -> TrafficIndex:
    """Another index, made from what is in the folder now."""
    index = TrafficIndex.open(folder, f"sqlite:///{folder}/again-{time.monotonic_ns()}.sqlite")
    Indexer(folder, index).poll()
    return index


# -- history ---------------------------------------------------------------------------------------


def test_old_segments_become_parquet_and_the_index_can_be_made_from_it(
    tmp_path: Path, registry_url: str
) -> None:
    index = TrafficIndex.open(tmp_path, registry_url)
    write(tmp_path, _requests(0, 30, 1_000) + _requests(30, 30, _DAY) + [begin(99, at_ms=_DAY)])
    write(tmp_path, _requests(100, 5, 10 * _DAY))
    index_once(tmp_path, index)
    before, segments = dumped(index), len(list_segments(tmp_path))
    assert archive(tmp_path, index, older_than_seconds=20 * 86_400, now_ms=20 * _DAY).segments == 0
    done = archive(tmp_path, index, older_than_seconds=86_400, now_ms=20 * _DAY)
    assert done.segments == segments - 1  # the newest of an owner stays
    assert [path.split("/")[0] for path in part_paths(tmp_path)] == ["day=1970-01-01", "day=1970-01-02"]
    assert len(list_segments(tmp_path)) == 1
    assert done.rows == 30 * 2 + 30 * 2 + 1
    assert verify_parts(tmp_path, index) == []
    assert dumped(index) == before
    assert verify_log(tmp_path, index).ok
    again = _from_zero(tmp_path)
    assert dumped(again) == before
    assert request(again, "r-99").finish == "lost"  # type: ignore[union-attr]
    assert verify_parts(tmp_path, again) == []
    assert archive(tmp_path, index, older_than_seconds=86_400, now_ms=20 * _DAY).segments == 0
    SegmentWriter(tmp_path, owner="w0").close()
    assert max(name.sequence for name in list_segments(tmp_path)) == segments + 1


def test_a_part_has_the_stated_columns(tmp_path: Path) -> None:
    from pyarrow import parquet

    index = TrafficIndex.open(tmp_path)
    write(tmp_path, _requests(0, 20, 5, user="u", cost_usd=0.5))
    index_once(tmp_path, index)
    archive(tmp_path, index, older_than_seconds=0, now_ms=_DAY)
    table = parquet.read_table(tmp_path / "history" / part_paths(tmp_path)[0], partitioning=None)
    assert table.schema.equals(schema())
    row = table.to_pylist()[1]
    assert (row["kind"], row["id"], row["at_ms"], row["user"], row["cost_usd"]) == ("end", "r-0", 5, "u", 0.5)
    assert json.loads(row["row"]) == end(0, at_ms=5, user="u", cost_usd=0.5)


def test_rows_that_are_not_indexed_yet_stay_in_their_segments(tmp_path: Path) -> None:
    index = TrafficIndex.open(tmp_path)
    write(tmp_path, _requests(0, 50, 5))
    assert archive(tmp_path, index, older_than_seconds=0).segments == 0
    writer = SegmentWriter(tmp_path, owner="w0")
    writer.append(json.dumps(begin(99)).encode())
    index_once(tmp_path, index)
    archive(tmp_path, index, older_than_seconds=0)
    assert [row["id"] for row in rows_in(tmp_path)] == ["r-99"]
    writer.close()


def test_a_move_killed_anywhere_loses_nothing(tmp_path: Path) -> None:
    index = TrafficIndex.open(tmp_path)
    write(tmp_path, _requests(0, 100, 5))
    index_once(tmp_path, index)
    before = dumped(index)
    steps = {"open", "os.rename", "os.remove", "os.mkdir"}

    def killed_at(step: int) -> Callable[[int], None]:
        def work(pipe: int) -> None:
            import sys

            seen = 0

            def count(name: str, arguments: object) -> None:
                nonlocal seen
                if name in steps:
                    seen += 1
                    if seen == step:
                        os.kill(os.getpid(), signal.SIGKILL)

            own = TrafficIndex.open(tmp_path)
            sys.addaudithook(count)
            archive(tmp_path, own, older_than_seconds=0)
            os.write(pipe, b"x")

        return work

    step, done = 1, b""
    while done != b"x":
        with child(killed_at(step)) as (_, pipe):
            done = os.read(pipe, 1)
        assert dumped(_from_zero(tmp_path)) == before
        step += 3
        for spare in tmp_path.glob("again-*"):
            spare.unlink()
    assert step > 10
    assert len(list_segments(tmp_path)) == 1
    assert verify_log(tmp_path, index).ok


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    index = TrafficIndex.open(tmp_path)
    write(tmp_path, _requests(0, 50, 5))
    index_once(tmp_path, index)
    archive(tmp_path, index, older_than_seconds=0)
    path = tmp_path / "history" / part_paths(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert verify_parts(tmp_path, index) == [f"history/{part_paths(tmp_path)[0]} is not what was written"]
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(TrafficLogError, match="cannot be read"):
        list(read_part(tmp_path, part_paths(tmp_path)[0]))


# -- erasure ---------------------------------------------------------------------------------------


def _bytes_of(folder: Path) -> bytes:
    """Every byte of every file below a folder, Parquet unpacked."""
    raw = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    return raw + b"".join(row.payload for part in part_paths(folder) for row in read_part(folder, part))


def _crowd(name: str, count: int, tag: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(count):
        request_id = f"{name}{tag}-{number}"
        own = {"id": request_id, "user": name, "request": f"ask-{name}", "response": f"tell-{name}"}
        rows += [
            begin(number, **own),
            end(number, **own),
            end(number, **{**own, "kind": "shadow", "id": f"s-{request_id}", "of": request_id}),
            {"kind": "feedback", "id": f"f-{request_id}", "of": request_id, "at_ms": 7, "text": f"say-{name}"},
            {"kind": "verdict", "id": f"v-{request_id}", "of": request_id, "shadow": f"s-{request_id}", "at_ms": 7,
             "detail": {"why": f"judge-{name}"}},
        ]  # fmt: skip
    return rows


def _without(tables: dict[str, list[tuple[Any, ...]]], name: str) -> dict[str, list[tuple[Any, ...]]]:
    return {table: [row for row in rows if name not in str(row[0])] for table, rows in tables.items()}


def test_a_forgotten_user_is_nowhere_and_does_not_return(tmp_path: Path, registry_url: str) -> None:
    folder = tmp_path / "traffic"
    index = TrafficIndex.open(folder, registry_url)
    mixed = [row for pair in zip(_crowd("anna", 20), _crowd("bob", 20), strict=True) for row in pair]
    write(folder, mixed)
    index_once(folder, index)
    archive(folder, index, older_than_seconds=0)
    write(folder, _crowd("anna", 3, "-x") + _crowd("bob", 3, "-x"), owner="w1")
    living = SegmentWriter(folder, owner="w2")
    for row in [*_crowd("bob", 1, "-y"), *_crowd("anna", 1, "-y")]:
        living.append(json.dumps(row).encode())
    index_once(folder, index)
    for word in (b"ask-anna", b"tell-anna", b"say-anna", b"judge-anna"):
        assert word in _bytes_of(tmp_path)
    bobs, kept = _bytes_of(folder).count(b"ask-bob"), _without(dumped(index), "anna")
    follower = Follower.from_now(folder)

    removal = forget(folder, index, user="anna")
    assert {name: removal.counts[name] for name in ("requests", "feedback", "verdicts")} == {
        "requests": 2 * 24,
        "feedback": 24,
        "verdicts": 24,
    }
    assert removal.counts["history_rows"] > 50
    assert removal.counts["segment_rows"] > 5
    for word in (b"ask-anna", b"tell-anna", b"say-anna", b"judge-anna"):
        assert word not in _bytes_of(tmp_path)
    assert _bytes_of(folder).count(b"ask-bob") == bobs > 10
    assert dumped(index) == kept
    assert {row.user for row in requests(index)} == {"bob"}
    assert [item.counts for item in Removals.load(folder).removals] == [removal.counts]

    # The owner went on; what it writes of her old requests late stays out, what she asks later is new.
    late = {"kind": "feedback", "id": "f-late", "of": "anna-y-0", "at_ms": removal.at_ms + 5, "text": "late"}
    later = begin(1, id="anna-z", user="anna", at_ms=removal.at_ms + 1)
    for row in (end(1, id="anna-y-0", user="anna"), late, later):
        living.append(json.dumps(row).encode())
    assert [row["id"] for row in follower.poll()] == ["anna-y-0", "f-late", "anna-z"]
    index_once(folder, index)
    assert [row.id for row in requests(index, Where(user="anna"))] == ["anna-z"]
    assert feedback_of(index, "anna-y-0") == []
    living.close()
    index_once(folder, index)
    assert verify_log(folder, index).ok
    assert dumped(_from_zero(folder)) == dumped(index)


def test_forgetting_before_anything_is_indexed(tmp_path: Path) -> None:
    write(tmp_path, _crowd("anna", 10) + _crowd("bob", 10))
    index = TrafficIndex.open(tmp_path)
    forget(tmp_path, index, user="anna")
    index_once(tmp_path, index)
    assert {row.user for row in requests(index)} == {"bob"}
    assert b"anna" not in b"".join((tmp_path / str(name)).read_bytes() for name in list_segments(tmp_path))
    assert verify_log(tmp_path, index).ok


def test_forgetting_single_requests(tmp_path: Path) -> None:
    write(tmp_path, _crowd("bob", 3))
    index = TrafficIndex.open(tmp_path)
    index_once(tmp_path, index)
    forget(tmp_path, index, requests=["bob-1"])
    assert sorted(row.id for row in requests(index)) == ["bob-0", "bob-2", "s-bob-0", "s-bob-2"]


def test_forgetting_blanks_damaged_ranges_and_torn_tails(tmp_path: Path) -> None:
    write(tmp_path, _crowd("anna", 1) + _crowd("bob", 1), segment_bytes=1 << 20)
    path = tmp_path / str(list_segments(tmp_path)[0])
    content = bytearray(path.read_bytes())
    content[content.index(b"ask-anna")] ^= 1
    torn = content[: content.index(b"judge-bob")]
    path.write_bytes(torn)
    assert b"tell-anna" in torn
    index = TrafficIndex.open(tmp_path)
    forget(tmp_path, index, user="anna")
    after = path.read_bytes()
    assert b"anna" not in after
    assert after.count(b"ask-bob") == torn.count(b"ask-bob") == 3
    index_once(tmp_path, index)
    assert {row.id for row in requests(index)} == {"bob-0", "s-bob-0"}


def test_a_user_is_found_by_name_with_the_secret_of_the_folder(tmp_path: Path) -> None:
    secret = load_or_make_secret(tmp_path)
    assert load_or_make_secret(tmp_path) == secret
    assert len(secret) == 32
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert len(pseudonym(secret, "user", "anna")) == 32
    names = {
        pseudonym(secret, kind, name) for kind in ("user", "tenant") for name in ("anna", "bob", "\ud800")
    }
    assert len(names) == 6
    other = load_or_make_secret(tmp_path / "other")
    assert pseudonym(other, "user", "anna") != pseudonym(secret, "user", "anna")
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(TrafficLogError, match="32 bytes"):
        load_or_make_secret(tmp_path)


def test_a_writer_that_hangs_is_named(tmp_path: Path) -> None:
    def work(pipe: int) -> None:
        writer = SegmentWriter(tmp_path, owner="w7")
        writer.append(json.dumps(begin(1)).encode())
        os.write(pipe, b"x")
        time.sleep(60)

    with child(work) as (pid, pipe):
        assert os.read(pipe, 1) == b"x"
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TrafficLogError, match="'w7' did not finish"):
            forget(tmp_path, TrafficIndex.open(tmp_path), user="anna", wait_seconds=0.3)
        os.kill(pid, signal.SIGCONT)
    forget(tmp_path, TrafficIndex.open(tmp_path), user="anna", wait_seconds=0.3)


# -- retention -------------------------------------------------------------------------------------


def test_what_is_past_its_time_goes_and_does_not_return(tmp_path: Path, registry_url: str) -> None:
    index = TrafficIndex.open(tmp_path, registry_url)
    write(tmp_path, _requests(0, 40, 1_000))
    write(tmp_path, _requests(40, 40, 5 * _DAY))
    write(tmp_path, _requests(200, 10, 1_000), owner="dead")
    index_once(tmp_path, index)
    archive(tmp_path, index, older_than_seconds=0, now_ms=2 * _DAY)
    write(tmp_path, [*_requests(80, 5, 1_000), *_requests(85, 5, 9 * _DAY)], segment_bytes=1 << 20)
    index_once(tmp_path, index)
    everything = dumped(index)
    planned = retain(tmp_path, index, before_ms=3 * _DAY, dry_run=True)
    assert planned.rows == {"requests": 55, "feedback": 0, "verdicts": 0}
    assert len(planned.parts) == 1
    assert dumped(index) == everything
    done = retain(tmp_path, index, before_ms=3 * _DAY)
    assert (done.rows, done.parts) == (planned.rows, planned.parts)
    assert done.freed_bytes > 0
    assert part_paths(tmp_path) == []
    assert {row.id for row in requests(index)} == {f"r-{n}" for n in [*range(40, 80), *range(85, 90)]}
    again = _from_zero(tmp_path)
    assert dumped(again) == dumped(index)
    assert retain(tmp_path, index, before_ms=3 * _DAY).rows["requests"] == 0
    assert {"w0", "dead"} == {name.owner for name in list_segments(tmp_path)}
    assert "r-200" not in {row.get("id") for row in rows_in(tmp_path)}
    assert verify_log(tmp_path, index).ok


def test_removals_that_are_damaged_stop_the_indexer(tmp_path: Path) -> None:
    write(tmp_path, _requests(0, 1, 5))
    (tmp_path / "removed.jsonl").write_text("{")
    with pytest.raises(TrafficLogError, match="damaged"):
        index_once(tmp_path, TrafficIndex.open(tmp_path))


# -- following -------------------------------------------------------------------------------------


def test_a_follower_sees_every_row_once_over_rotation_restart_and_cursor(tmp_path: Path) -> None:
    follower, seen = Follower(tmp_path), []
    assert follower.poll() == []
    for life in range(3):
        writers = [SegmentWriter(tmp_path, owner=f"w{n}", config=_SMALL) for n in range(2)]
        for number in range(60):
            for owner, writer in enumerate(writers):
                writer.append(json.dumps(begin(number, id=f"{owner}-{life}-{number}")).encode())
            if number % 7 == 0:
                seen += [row["id"] for row in follower.poll(max_rows=5)]
                follower = Follower(tmp_path, follower.cursor)
        for writer in writers:
            writer.close()
    while rows := follower.poll(max_rows=11):
        seen += [row["id"] for row in rows]
    expected = [f"{owner}-{life}-{number}" for owner in range(2) for life in range(3) for number in range(60)]
    assert sorted(seen) == sorted(expected)
    for owner in range(2):
        own = [name for name in seen if name.startswith(f"{owner}-")]
        assert own == [name for name in expected if name.startswith(f"{owner}-")]
    assert Follower.from_now(tmp_path).poll() == []
