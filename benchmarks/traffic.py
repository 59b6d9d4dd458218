"""Keeping a row of traffic, beside what a user would write: ``logging``, JSON lines with fsync, SQLite a row at a time.

Here: rows of 2.2 KB, two a request (``begin``, ``end``), in a burst. Ours goes to the kernel before ``append`` returns
and to the disk every 20 ms; ``logging`` flushes each row to the kernel and never syncs; the other two sync each row,
which is the only way that they promise what our log promises. Then the index: ours reads the segments and puts 40
columns into SQLite, in transactions of 2,000 rows; the peer puts the rows as JSON into one column, one transaction a
row. Last, how long a row waits for the disk at 2,000 rows a second: what a power cut may cost with ``durability:
group``. Not here: the gateway around it (``gateway``), PostgreSQL.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sqlite3
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from benchmarks import Outcome, Size, Values, measure, pair
from benchmarks._gateway_ends import percentile

_ROWS = {"smallest": (400, 20), "default": (40_000, 500)}
"""Rows of a burst, and rows of what syncs each one."""
_PACE_SECONDS = 0.0005
_SHARES = {"p50": 0.5, "p99": 0.99, "at most": 1.0}


def run(size: Size, rounds: int) -> Outcome:
    """Write and index the rows once on each side a round, in fresh folders."""
    many, few = _ROWS[size]
    rows = _rows(many)
    faults: list[str] = []
    facts: dict[str, float] = {}
    waits: list[float] = []
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as name:
        folder = Path(name)
        pairs = pair(
            rounds,
            lambda number: _ours(folder / f"ours-{number}", rows, faults, facts),
            lambda number: _peers(folder / f"peers-{number}", rows, rows[:few]),
        )
        for number in range(rounds):
            waits += _waits(folder / f"waits-{number}", rows[: 4 * few])
    waits.sort()
    micro = {"scale": 1e6, "unit": "us"}
    return Outcome(
        rows=(
            pairs.row(
                "append a row, processor", "append_cpu", "logging, no sync", their_name="logging_cpu", **micro
            ),
            pairs.row(
                "append a row, wall", "append_wall", "logging, no sync", their_name="logging_wall", **micro
            ),
            pairs.row(
                "append a row, processor", "append_cpu", "JSON lines, fsync", their_name="lines_cpu", **micro
            ),
            pairs.row(
                "append a row, wall", "append_wall", "JSON lines, fsync", their_name="lines_wall", **micro
            ),
            pairs.row(
                "append a row, processor", "append_cpu", "SQLite, commit", their_name="sqlite_cpu", **micro
            ),
            pairs.row(
                "append a row, wall", "append_wall", "SQLite, commit", their_name="sqlite_wall", **micro
            ),
            pairs.row(
                "index a row, processor", "index_cpu", "SQLite, commit", their_name="sqlite_cpu", **micro
            ),
            pairs.row("index a row, wall", "index_wall", "SQLite, commit", their_name="sqlite_wall", **micro),
        ),
        notes=(
            f"{many} rows of {len(rows[1])} bytes at most; {few} where each is synced; ours includes the syncs and "
            f"closing: {facts['syncs']:.0f} syncs and {facts['segments']:.0f} sealed segments in the last round",
            "a row waits for the disk (all rounds, `group`): "
            + ", ".join(
                f"{name} {percentile(waits, share) * 1000:.1f} ms" for name, share in _SHARES.items()
            ),
        ),
        facts=facts,
        faults=faults,
    )


def _rows(count: int) -> list[bytes]:
    rng = random.Random("benchmark-traffic")
    words = [f"{rng.getrandbits(40):010x}" for _ in range(500)]
    rows = []
    for number in range(count // 2):
        name = f"{rng.getrandbits(128):032x}"
        common = {
            "v": 1, "id": name, "at_ms": 1_800_000_000_000 + number, "worker": "w0", "epoch": 3, "model": "model",
            "lane": "production", "arm": "control", "rollout": "r-1", "user": f"{rng.getrandbits(128):032x}",
        }  # fmt: skip
        said = {
            "target": "v1.3", "upstream": "u0", "tries": 1, "release": f"sha256:{rng.getrandbits(256):064x}",
            "tenant": f"{number % 7:032x}", "stream": True, "status": 200, "finish": "stop", "prompt_tokens": 200,
            "completion_tokens": 150, "cost_usd": 0.00035, "queue_ms": 0.1, "first_ms": 20.5, "latency_ms": 310.25,
            "gateway_ms": 0.05, "slices": ["chat"], "guardrails": [],
            "request": {"messages": [{"role": "user", "content": " ".join(rng.choices(words, k=90))}]},
            "response": {"role": "assistant", "content": " ".join(rng.choices(words, k=60))},
        }  # fmt: skip
        rows += [
            json.dumps({**common, "kind": "begin"}).encode(),
            json.dumps({**common, "kind": "end", **said}).encode(),
        ]
    return rows


def _ours(folder: Path, rows: list[bytes], faults: list[str], facts: dict[str, float]) -> Values:
    from posttrain.traffic.config import TrafficConfig
    from posttrain.traffic.index import TrafficIndex
    from posttrain.traffic.indexer import Indexer
    from posttrain.traffic.segments import SegmentWriter, list_segments

    config = TrafficConfig(segment_bytes=16 << 20, backlog_bytes=1 << 30)

    def append() -> None:
        writer = SegmentWriter(folder, owner="w0", config=config)
        for row in rows:
            writer.append(row)
        writer.close()
        facts["syncs"] = writer.syncs

    values = _timed("append", append, len(rows))
    facts["segments"] = len(list_segments(folder))
    index = TrafficIndex.open(folder)
    with index.held_open():
        indexer = Indexer(folder, index)
        values |= _timed("index", indexer.poll, len(rows))
    found = index.scalar("SELECT count(*) FROM requests WHERE finish = 'stop'")
    if found != len(rows) // 2:
        faults.append(f"{len(rows) // 2} requests were written and {found} are in the index")
    return values


def _waits(folder: Path, rows: list[bytes]) -> list[float]:
    """Seconds from a row's append to the end of the sync that has it, seen every half a millisecond."""
    from posttrain.traffic.config import TrafficConfig
    from posttrain.traffic.segments import SegmentWriter

    writer = SegmentWriter(folder, owner="w0", config=TrafficConfig())
    waiting: deque[tuple[int, float]] = deque()
    waits: list[float] = []
    left = iter(rows)
    row = next(left, None)
    while row is not None or waiting:
        if row is not None:
            waiting.append((writer.append(row), time.perf_counter()))
            row = next(left, None)
        time.sleep(_PACE_SECONDS)
        synced, now = writer.synced, time.perf_counter()
        while waiting and waiting[0][0] <= synced:
            waits.append(now - waiting.popleft()[1])
    writer.close()
    return waits


def _peers(folder: Path, rows: list[bytes], few: list[bytes]) -> Values:
    folder.mkdir()
    return {
        **_timed("logging", lambda: _by_logging(folder / "log.jsonl", rows), len(rows)),
        **_timed("lines", lambda: _by_lines(folder / "lines.jsonl", few), len(few)),
        **_timed("sqlite", lambda: _by_sqlite(folder / "rows.sqlite", few), len(few)),
    }


def _by_logging(path: Path, rows: list[bytes]) -> None:
    logger = logging.Logger("traffic")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    for row in rows:
        logger.info(row.decode())
    handler.close()


def _by_lines(path: Path, rows: list[bytes]) -> None:
    with path.open("wb") as stream:
        for row in rows:
            stream.write(row + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def _by_sqlite(path: Path, rows: list[bytes]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, row TEXT)")
        for row in rows:
            connection.execute("INSERT INTO rows (row) VALUES (?)", (row.decode(),))
            connection.commit()


def _timed(name: str, work: Callable[[], object], count: int) -> dict[str, float]:
    os.sync()
    return {f"{name}_{kind}": seconds / count for kind, seconds in measure(work).items()}
