"""``posttrain log``, queries, export, the clock, the configuration, and files of earlier versions."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.cli import main
from posttrain.traffic.clock import MonotonicWallClock
from posttrain.traffic.config import TrafficConfig
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.indexer import index_once
from posttrain.traffic.pseudonym import load_or_make_secret, pseudonym
from posttrain.traffic.query import Where, counts, feedback, requests, verdicts
from posttrain.traffic.segment_format import list_segments, read_segment
from posttrain.traffic.segments import SegmentWriter
from tests.traffic.test_traffic_index import begin, end, write

_GOLDEN = Path(__file__).parents[1] / "traffic" / "golden" / "traffic-v1-0000000001.seg"


@pytest.fixture
def traffic_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log where the commands look for it, with two users, a shadow, feedback and a lost request."""
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    folder = tmp_path / "serving" / "default" / "traffic"
    secret = load_or_make_secret(folder)
    rows: list[dict[str, Any]] = []
    for number in range(6):
        user = pseudonym(secret, "user", "anna" if number % 2 else "bob")
        arm = "candidate" if number < 2 else "control"
        rows.append(begin(number, user=user, arm=arm, rollout="x"))
        if number:
            rows.append(end(number, arm=arm, latency_ms=float(number), cost_usd=0.5, completion_tokens=3))
    rows.append({**end(7), "kind": "shadow", "id": "s-1", "of": "r-1", "lane": "shadow", "rollout": "x"})
    rows.append({"kind": "feedback", "id": "f-1", "of": "r-1", "at_ms": 9, "type": "thumbs", "value": -1})
    rows.append({"kind": "verdict", "id": "v-1", "of": "r-1", "shadow": "s-1", "at_ms": 9, "outcome": "tie"})
    write(folder, rows)
    return folder


def _said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["log", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.out + captured.err


def test_the_commands(traffic_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split()[1] for line in _said(capsys, "tail", "-n", "3").splitlines()] == [
        "r-4",
        "r-5",
        "s-1",
    ]
    assert json.loads(_said(capsys, "tail", "-n", "1", "--json"))["id"] == "s-1"

    shown = json.loads(_said(capsys, "show", "r-1", "--json"))
    assert shown["request"]["response"] == {"content": "answer 1"}
    assert [shown[name][0]["id"] for name in ("feedback", "shadows", "verdicts")] == ["f-1", "s-1", "v-1"]
    assert "question 1" in _said(capsys, "show", "r-1")
    assert "no request 'r-99'" in _said(capsys, "show", "r-99", code=2)

    by_arm = {
        item["key"]["arm"]: item for item in json.loads(_said(capsys, "stats", "--by", "arm", "--json"))
    }
    assert by_arm["candidate"]["finishes"] == {"lost": 1, "stop": 1}
    assert by_arm["candidate"]["errors"] == 1
    assert by_arm["control"]["latency_ms"] == [3.0, 5.0, 5.0]
    assert by_arm["control"]["cost_usd"] == 2.0
    table = _said(capsys, "stats")
    assert table.split()[:3] == ["LANE", "REQUESTS", "ERRORS"]
    assert json.loads(_said(capsys, "stats", "--since", "2020-01-01", "--json")) == []
    assert len(json.loads(_said(capsys, "stats", "--until", "1d", "--json"))) == 2
    assert "is no time" in _said(capsys, "stats", "--since", "soon", code=2)

    assert _said(capsys, "verify").splitlines() == ["w0: 6 accepted, 6 in the index, 5 ended, 1 lost", "ok"]
    path = traffic_folder / str(list_segments(traffic_folder)[0])
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    assert "damaged" in _said(capsys, "verify", code=1)
    assert json.loads(_said(capsys, "verify", "--json", code=1))["ok"] is False


def test_forget_asks_and_erases_by_name(
    traffic_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("no\n"))
    assert "Erase 3 requests of 'anna'" in _said(capsys, "forget", "anna", code=130)
    assert len(_said(capsys, "tail").splitlines()) == 7
    said = json.loads(_said(capsys, "forget", "anna", "--yes", "--json"))
    assert said["counts"]["requests"] == 4
    assert said["counts"]["feedback"] == said["counts"]["verdicts"] == 1
    left = [json.loads(line)["id"] for line in _said(capsys, "tail", "--json").splitlines()]
    assert left == ["r-0", "r-2", "r-4"]
    assert "requests" in _said(capsys, "forget", said["user"], "--hashed", "--yes")
    assert _said(capsys, "verify").endswith("ok\n")
    assert pseudonym(load_or_make_secret(traffic_folder), "user", "anna") == said["user"]


def test_retain_and_export(traffic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyarrow import parquet

    lines, table = tmp_path / "out" / "rows.jsonl", tmp_path / "rows.parquet"
    assert json.loads(_said(capsys, "export", "-o", str(lines), "--json"))["requests"] == 7
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows[1]["feedback"][0]["value"] == -1
    assert rows[1]["verdicts"][0]["outcome"] == "tie"
    _said(capsys, "export", "-o", str(table))
    found = parquet.read_table(table).to_pylist()
    assert [json.loads(row["response"]) for row in found[1:2]] == [{"content": "answer 1"}]
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert ".jsonl or .parquet" in _said(capsys, "export", "-o", str(tmp_path / "rows.csv"), code=2)

    assert "would remove 7 requests" in _said(capsys, "retain", "--days", "1", "--dry-run")
    assert json.loads(_said(capsys, "retain", "--days", "1", "--json"))["rows"]["requests"] == 7
    assert _said(capsys, "tail") == ""
    assert list_segments(traffic_folder)


def test_the_log_must_be_there_and_its_index_be_named(
    traffic_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no traffic log" in _said(capsys, "tail", "--folder", str(tmp_path / "none"), code=2)
    (traffic_folder / "sink").write_text("postgresql+psycopg://me:***@host/db\n")
    assert "--index" in _said(capsys, "tail", code=2)
    url = f"sqlite:///{tmp_path}/elsewhere.sqlite"
    assert len(_said(capsys, "tail", "--index", url).splitlines()) == 7


def test_tail_follows(traffic_folder: Path) -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so would their children.
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from posttrain.cli import main\n"
        "sys.exit(main(['log', 'tail', '--follow', '-n', '1']))\n"
    )
    command = [sys.executable, "-u", "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        assert "s-1" in process.stdout.readline()
        writer = SegmentWriter(traffic_folder, owner="w5")
        writer.append(json.dumps(begin(50)).encode())
        assert "r-50 kind=begin" in process.stdout.readline()
        writer.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_queries_page_in_order(tmp_path: Path, registry_url: str) -> None:
    index = TrafficIndex.open(tmp_path, registry_url)
    rows: list[dict[str, Any]] = []
    for number in range(1203):
        rows.append(begin(number, at_ms=number // 3, lane="canary" if number % 5 else "production"))
        if number % 2:
            rows.append({"kind": "feedback", "id": f"f-{number}", "of": f"r-{number}", "at_ms": number // 7})
    write(tmp_path, rows, segment_bytes=1 << 20)
    index_once(tmp_path, index)
    times = [row.at_ms for row in requests(index)]
    assert times == sorted(times)
    assert len({row.id for row in requests(index)}) == 1203
    assert [row.at_ms for row in requests(index, Where(newest_first=True, limit=4))] == [400, 400, 400, 399]
    assert len(list(requests(index, Where(limit=501)))) == 501
    assert len(list(requests(index, Where(since_ms=10, until_ms=20)))) == 30
    assert len(list(requests(index, Where(lane="production")))) == 241
    assert len(list(feedback(index))) == 601
    assert [item.at_ms for item in feedback(index, 3, 4)] == [3] * 4
    assert verdicts(index, "none") == []
    assert [(item.key, item.requests) for item in counts(index, ("lane", "model"))] == [
        (("canary", "m"), 962),
        (("production", "m"), 241),
    ]


# -- the clock -------------------------------------------------------------------------------------


class _Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000_000_000_000
        self.steady = 5_000_000_000

    def pass_ms(self, passed: float) -> None:
        self.wall += int(passed * 1e6)
        self.steady += int(passed * 1e6)


def test_time_never_goes_back_whatever_the_wall_clock_does() -> None:
    clocks = _Clocks()
    clock = MonotonicWallClock(lambda: clocks.wall, lambda: clocks.steady)
    seen = []
    for jump_ms in (0, -3_600_000, 7_200_000, 10, -500, -86_400_000):
        clocks.wall += jump_ms * 1_000_000
        for _ in range(50):
            seen.append(clock.now_ms())
            clocks.pass_ms(7.3)
    assert seen == sorted(seen)
    assert [round(jump.by_ms, -3) for jump in clock.jumps] == [-3_600_000, 7_200_000, -86_400_000]


def test_time_follows_the_wall_clock() -> None:
    clocks = _Clocks()
    clock = MonotonicWallClock(lambda: clocks.wall, lambda: clocks.steady)
    assert clock.now_ms() == clocks.wall // 1_000_000
    clocks.wall += 5_000_000_000
    clocks.pass_ms(200)
    assert clock.now_ms() == clocks.wall // 1_000_000
    clocks.wall -= 5_000_000_000
    ahead = []
    for _ in range(120):
        clocks.pass_ms(100)
        ahead.append(clock.now_ms() - clocks.wall // 1_000_000)
    assert ahead == sorted(ahead, reverse=True)
    assert ahead[0] > 4_000
    assert abs(ahead[-1]) <= 1


def test_the_real_clock_is_the_wall_clock() -> None:
    import time

    assert abs(MonotonicWallClock().now_ms() - time.time() * 1000) < 1000


# -- configuration and old files -------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_share": 5},
        {"sync_seconds": 0},
        {"durability": "none"},
        {"retention_days": 0},
        {"nonsense": 1},
    ],
)
def test_a_configuration_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrafficConfig(**wrong)
    assert TrafficConfig(content="sampled", content_share=5).content_share == 5


def test_segments_of_version_1_are_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / _GOLDEN.name).write_bytes(_GOLDEN.read_bytes())
    reader = read_segment(_GOLDEN)
    assert [json.loads(row.payload)["kind"] for row in reader] == [
        "begin",
        "end",
        "shadow",
        "feedback",
        "verdict",
    ]
    assert reader.seal is not None
    index = TrafficIndex.open(tmp_path)
    index_once(tmp_path, index)
    row = next(requests(index))
    assert (row.id, row.finish, row.user, row.cost_usd, row.slices) == ("r-1", "stop", "u", 0.25, ("math",))
