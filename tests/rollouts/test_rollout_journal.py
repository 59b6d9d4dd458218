"""Events on disk: killed at any byte, changed by anybody, written by several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from posttrain.rollouts.errors import RolloutError
from posttrain.rollouts.events import Advanced, Cleared, Created, Held, Resumed, Started
from posttrain.rollouts.fold import fold
from posttrain.rollouts.journal import RolloutJournal, events_of
from tests.rollouts.rollout_world import LARGE, SMALL, go, history, make_spec

SPEC = make_spec()

WRITER = """
import sys
from pathlib import Path
from posttrain.rollouts.events import Held, Resumed
from posttrain.rollouts.journal import RolloutJournal

path, name, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
journal = RolloutJournal(path)
for number in range(first, first + count):
    event = Held(reason=f"{name} {number} " + "x" * (37 * number % 900)) if number % 2 else Resumed()
    entry = journal.append(event, id=f"{name}-{number}", at_ms=number)
    print(entry.seq, flush=True)
"""


def write(path, events):
    journal = RolloutJournal(path)
    for number, event in enumerate(events, start=1):
        journal.append(event, id=f"e{number}", at_ms=1000 * number)
    return journal


def writer(path, name, first=0, count=100_000):
    arguments = [sys.executable, "-c", WRITER, str(path), name, str(first), str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_what_was_appended_is_read_back(tmp_path):
    path = tmp_path / "rollouts" / "r-1" / "events.jsonl"
    journal = write(path, history(SPEC, SMALL))
    again = RolloutJournal(path)
    assert again.entries == journal.entries and again.tip == journal.tip
    assert [entry.seq for entry in again.entries] == [1, 2, 3, 4, 5]
    assert fold(SPEC, again.entries).stage == SMALL
    assert events_of(again.entries)[2] == {
        "seq": 3,
        "id": "e3",
        "at_ms": 3000,
        "by": "control",
        "kind": "started",
        "epoch": 2,
    }
    assert RolloutJournal(tmp_path / "none").entries == [] and not (tmp_path / "none").exists()


def test_an_id_is_appended_once_and_time_does_not_go_back(tmp_path):
    journal = write(tmp_path / "j", history(SPEC, SMALL))
    first = journal.append(Held(reason="a"), id="h", at_ms=9000)
    assert journal.append(Held(reason="another"), id="h", at_ms=9999) is first
    other = RolloutJournal(tmp_path / "j")
    assert other.append(Held(reason="another"), id="h", at_ms=9999) == first, "another process sees it too"
    assert journal.append(Resumed(), id="r", at_ms=10).at_ms == 9000, "a clock that was set back"
    assert [entry.id for entry in other.refresh()] == ["r"] and other.tip == journal.tip


def test_cut_at_every_byte(tmp_path):
    """A kill leaves some prefix of the bytes: the torn event did not happen, the next append takes its place."""
    path = tmp_path / "j"
    journal = write(path, [Created(spec=SPEC.digest), go(SPEC), Started(epoch=2)])
    data = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
    for cut in range(ends[1], len(data) + 1):
        path.write_bytes(data[:cut])
        opened = RolloutJournal(path)
        whole = sum(end <= cut for end in ends)
        assert opened.entries == journal.entries[:whole]
        if cut % 7 == 0 or cut >= len(data) - 2:
            entry = opened.append(Advanced(to=1, epoch=3), id="next", at_ms=5000)
            assert entry.seq == whole + 1
            assert RolloutJournal(path).entries == [*journal.entries[:whole], entry]


def test_any_changed_byte_is_seen(tmp_path):
    path = tmp_path / "j"
    write(path, history(SPEC, LARGE))
    data = path.read_bytes()
    for at in range(0, len(data) - 1, 11):
        if data[at] == 10 or data[at + 1] == 10:
            continue
        changed = bytes([data[at] ^ 1])
        path.write_bytes(data[:at] + changed + data[at + 1 :])
        with pytest.raises(RolloutError, match=r"line \d") as error:
            RolloutJournal(path)
        assert "backup" in error.value.hint


def test_a_line_taken_out_put_in_or_moved_is_seen(tmp_path):
    path = tmp_path / "j"
    write(path, history(SPEC, LARGE))
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (
        lines[:2] + lines[3:],
        lines[1:],
        [lines[0], lines[0], *lines[1:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
    ):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(RolloutError, match="does not follow"):
            RolloutJournal(path)


def test_an_event_of_a_later_posttrain_keeps_its_place(tmp_path):
    from posttrain.core.canonical import canonical_json, digest_bytes

    path = tmp_path / "j"
    journal = write(path, history(SPEC, SMALL))
    body = {
        "v": 1,
        "seq": 6,
        "id": "new",
        "at_ms": 6000,
        "prev": journal.tip,
        "event": {"kind": "paused_for_lunch", "until": "one"},
    }
    line = canonical_json({**body, "digest": digest_bytes(canonical_json(body))}) + b"\n"
    path.write_bytes(path.read_bytes() + line)
    opened = RolloutJournal(path)
    assert opened.entries[-1].event is None and fold(SPEC, opened.entries).stage == SMALL
    opened.append(Held(reason="x"), id="h", at_ms=7000)
    assert json.loads(path.read_bytes().splitlines()[5]) == json.loads(line), "its bytes are not touched"
    assert RolloutJournal(path).entries == opened.entries
    assert events_of(opened.entries)[5]["kind"] == "unknown"


def test_several_processes_append_to_one_chain(tmp_path):
    path = tmp_path / "j"
    processes = [writer(path, name, count=25) for name in ("a", "b", "c")]
    for process in processes:
        assert process.wait() == 0
        process.stdout.close()
    entries = RolloutJournal(path).entries
    assert [entry.seq for entry in entries] == list(range(1, 76))
    for name in "abc":
        mine = [entry.id for entry in entries if entry.id.startswith(name)]
        assert mine == [f"{name}-{number}" for number in range(25)]


def chain_of_kills(path, kills):
    """Kill a writer again and again; each starts where its own last event was. Returns what was acknowledged."""
    acknowledged = set()
    for kill in range(kills):
        journal = RolloutJournal(path)
        # What the dead writer had begun to do it does again, under the same id.
        first = max(0, len(journal.entries) - 1)
        process = writer(path, "w", first=first)
        process.stdout.readline()
        time.sleep(0.0007 * (kill * 13 % 17))
        os.kill(process.pid, signal.SIGKILL)
        acknowledged |= {int(line) for line in process.stdout.read().splitlines()}
        process.wait()
        process.stdout.close()
    return acknowledged


def check_after_kills(path, acknowledged):
    entries = RolloutJournal(path).entries
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.id for entry in entries] == [f"w-{number}" for number in range(len(entries))]
    assert acknowledged and max(acknowledged) <= len(entries), "nothing that was acknowledged is lost"


def test_a_short_chain_of_kills(tmp_path):
    acknowledged = chain_of_kills(tmp_path / "j", 5)
    check_after_kills(tmp_path / "j", acknowledged)


@pytest.mark.slow
def test_a_chain_of_kills(tmp_path):
    acknowledged = chain_of_kills(tmp_path / "j", 150)
    check_after_kills(tmp_path / "j", acknowledged)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path):
    """A real limit on file size, in a process of its own."""
    path = tmp_path / "j"
    journal = write(path, history(SPEC, SMALL))
    size = path.stat().st_size
    code = f"""
import resource, signal, sys
from pathlib import Path
from posttrain.core.errors import StorageFullError
from posttrain.rollouts.events import Cleared
from posttrain.rollouts.journal import RolloutJournal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 40}, {size + 40}))
try:
    RolloutJournal(Path(sys.argv[1])).append(Cleared(reason="x"), id="c", at_ms=1)
except StorageFullError:
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == 7 and path.stat().st_size == size
    assert RolloutJournal(path).entries == journal.entries
    assert journal.append(Cleared(reason="x"), id="c", at_ms=1).seq == 6
