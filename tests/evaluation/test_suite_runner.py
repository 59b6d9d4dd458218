"""Playing suites: the same rows whatever the order, failures as data, and going on after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.stage import StopRequest
from posttrain.core.errors import Interrupted
from posttrain.engines.chat import ChatFailure, ChatReply, WrittenCall, split_calls
from posttrain.engines.conversation import ChatPlayer, Job, turn_seed
from posttrain.environments.tools import BAD_ARGUMENTS, NOT_RECORDED, UNKNOWN_TOOL
from posttrain.evaluation.suites.journal import Journal
from posttrain.evaluation.suites.rows import SuiteRow, dump_lines, load_lines
from posttrain.evaluation.suites.runner import batches_of
from tests.evaluation.suite_world import Clerk, Saying, by_case, play, small_suite

ROOT = Path(__file__).parents[2]


def test_every_case_is_played_and_graded(tmp_path: Path) -> None:
    engine = Clerk()
    rows = play(small_suite(6), engine, tmp_path, samples=2)
    assert [row.place for row in rows] == [
        (name, f"{case}-{n:04d}", sample)
        for name, case in (("looks", "look"), ("sums", "sum"))
        for n in range(6)
        for sample in (0, 1)
    ]
    looked = by_case(rows)["look-0003"]
    assert looked.graded.success is True
    assert looked.played.answer is not None
    assert [(c.name, c.arguments, c.reply) for c in looked.played.answer.tool_calls] == [
        ("lookup", {"name": "sdk-3"}, "v3")
    ]
    assert (looked.played.answer.turns, looked.played.answer.prompt_tokens) == (2, 30)
    assert looked.live == {"latency_ms": 500.0}
    summed = {row.graded.success for row in rows if row.played.slice == "sums"}
    assert summed == {True, False}
    first = engine.asked[0]
    assert [m["role"] for m in first.messages] == ["system", "user"]
    assert first.tools[0]["function"]["name"] == "lookup"


def test_order_concurrency_batches_and_hash_seed_decide_nothing(tmp_path: Path) -> None:
    suite = small_suite(15)
    plans: list[dict[str, Any]] = [
        {},
        {"concurrency": 4, "graders": 3, "order_seed": 1},
        {"concurrency": 2, "order_seed": 2, "hash_seed": 99},
    ]
    found = set()
    for number, plan in enumerate(plans):
        (tmp_path / str(number)).mkdir()
        found.add(
            dump_lines(play(suite, Clerk(batch_size=3 + number), tmp_path / str(number), samples=3, **plan))
        )
    assert len(found) == 1


def test_batches_are_a_function_of_the_suite() -> None:
    batches = batches_of(small_suite(5), 2, 8)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert [(job.case.id, job.sample) for job in batches[0][:3]] == [
        ("look-0000", 0),
        ("look-0000", 1),
        ("look-0001", 0),
    ]


def test_no_two_turns_share_a_seed() -> None:
    seeds = {
        turn_seed(s, c, k, t) for s in (0, 1) for c in ("a", "b", "a\0") for k in range(20) for t in range(5)
    }
    assert len(seeds) == 2 * 3 * 20 * 5
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert turn_seed(0, "a", 0, 0) == turn_seed(0, "a", 0, 0)


# -- tools -----------------------------------------------------------------------------------------


def converse(*turns: ChatReply, case: str = "look-0001", **settings: Any) -> tuple[Any, list[list[str]]]:
    """Play one case with an engine that says ``turns`` one after another; the result, and what it was shown."""
    suite = small_suite(4, **settings)
    seen: list[list[str]] = []

    def say(request: Any) -> ChatReply:
        seen.append([str(message["content"]) for message in request.messages])
        return turns[min(len(seen), len(turns)) - 1]

    job = Job(next(c for c in suite.cases if c.id == case), 0)
    return ChatPlayer(suite, Saying(say)).play([job])[0], seen


def test_calls_that_fail_are_told_and_recorded() -> None:
    calls = (
        WrittenCall("lookup", '{"name": "sdk-9"}'),
        WrittenCall("look", "{}"),
        WrittenCall("lookup", "[1]"),
        WrittenCall("lookup", '{"name": NaN}'),
        WrittenCall("lookup", '{"name": "sdk-2"}'),
    )
    played, seen = converse(ChatReply("hm", calls), ChatReply("v2"))
    assert played.answer.text == "v2"
    assert [call.reply for call in played.answer.tool_calls] == [None, None, None, None, "v2"]
    assert seen[1][-5:] == [NOT_RECORDED, UNKNOWN_TOOL, BAD_ARGUMENTS, BAD_ARGUMENTS, "v2"]
    assert [miss.tool for miss in played.misses] == ["lookup", "look", "lookup", "lookup"]
    assert played.misses[0].nearest == '{"name":"sdk-0"}'


def test_a_model_that_never_stops_calling_is_stopped() -> None:
    call = WrittenCall("lookup", '{"name": "sdk-1"}')
    played, seen = converse(ChatReply("again", (call,)), max_turns=3)
    assert len(seen) == 3
    assert (played.answer.finish, played.answer.turns, len(played.answer.tool_calls)) == ("turns", 3, 3)


def test_a_case_without_tools_answers_no_call() -> None:
    played, seen = converse(
        ChatReply("x", (WrittenCall("lookup", '{"name": "sdk-1"}'),)), ChatReply("2"), case="sum-0001"
    )
    assert seen[1][-1] == UNKNOWN_TOOL
    assert played.answer.text == "2"


def test_half_a_surrogate_pair_can_be_kept(tmp_path: Path) -> None:
    played, _ = converse(ChatReply("a\ud800b", (WrittenCall("lo\udfff", "\ud800"),)), ChatReply("\ud83d"))
    assert played.answer.text == "?"
    assert played.answer.tool_calls[0].name == "lo?"


def test_calls_in_the_hermes_form_are_read() -> None:
    text = (
        'So. <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><tool_call>{"name": "g"}</tool_call>'
    )
    assert split_calls(text) == ("So.", (WrittenCall("f", '{"a": 1}'), WrittenCall("g", "{}")))
    assert split_calls("plain <tool_call> text") == ("plain <tool_call> text", ())
    for broken in ("{", "[]", '{"name": 3}', '"f"', '{"arguments": {}}'):
        _, (call,) = split_calls(f"<tool_call>{broken}</tool_call>")
        assert (call.name, call.arguments) == ("", broken)
    (call,) = split_calls('<tool_call>{"name": "f", "arguments": "{\\"a\\": 2}"}</tool_call>')[1]
    assert call.parsed() == {"a": 2}


# -- failures --------------------------------------------------------------------------------------


def test_an_engine_that_raises_or_fails_makes_rows_with_an_error(tmp_path: Path) -> None:
    def say(request: Any) -> Any:
        number = int(request.case.split("-")[1])
        if number == 1:
            raise RuntimeError("out of memory")
        return ChatFailure("HTTP 500") if number == 2 else ChatReply("3")

    rows = by_case(play(small_suite(4), Saying(say), tmp_path))
    assert rows["sum-0001"].graded.error == "engine: RuntimeError: out of memory"
    assert rows["sum-0002"].graded.error == "engine: HTTP 500"
    assert [rows[case].graded.success for case in ("sum-0001", "sum-0002")] == [None, None]
    # The neighbours in the batch of the one that raised have their answers.
    assert [rows[case].graded.success for case in ("sum-0000", "sum-0003")] == [False, False]


def test_an_engine_that_hangs_costs_its_batch_only(tmp_path: Path) -> None:
    def say(request: Any) -> ChatReply:
        if request.case == "look-0001":
            time.sleep(30)
        return ChatReply("v0")

    engine = Saying(say)
    engine.batch_size = 1
    started = time.monotonic()
    rows = by_case(play(small_suite(3), engine, tmp_path, timeout_seconds=1.0))
    assert time.monotonic() - started < 25
    assert rows["look-0001"].graded.error == "engine: no answer within 1 s"
    assert {name for name, row in rows.items() if row.graded.success is None} == {"look-0001"}


def test_the_engine_reaches_no_network_but_its_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def say(request: Any) -> ChatReply:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return ChatReply("reached")

        rows = play(small_suite(1), Saying(say), tmp_path)
        assert all("the network is closed" in (row.graded.error or "") for row in rows)


# -- going on --------------------------------------------------------------------------------------


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    suite, stop = small_suite(12), StopRequest()

    class Stopping(Clerk):
        def turn(self, request: Any) -> Any:
            stop.requested = stop.requested or request.case == "sum-0004"
            return super().turn(request)

    with pytest.raises(Interrupted):
        play(suite, Stopping(pause_seconds=0.05), tmp_path, stop=stop)
    engine = Clerk()
    rows = play(suite, engine, tmp_path)
    assert 0 < len({request.case for request in engine.asked}) < 24
    (tmp_path / "other").mkdir()
    assert dump_lines(rows) == dump_lines(play(suite, Clerk(), tmp_path / "other"))
    again = Clerk()
    assert dump_lines(play(suite, again, tmp_path)) == dump_lines(rows)
    assert again.asked == []


def test_a_cut_or_foreign_journal_is_played_again(tmp_path: Path) -> None:
    suite = small_suite(8)
    whole = dump_lines(play(suite, Clerk(), tmp_path))
    path = tmp_path / "journal.jsonl"
    data = path.read_bytes()
    draw = random.Random(3)
    for cut in [0, 5, len(data) - 1, *(draw.randrange(len(data)) for _ in range(5))]:
        path.write_bytes(data[:cut])
        engine = Clerk()
        assert dump_lines(play(suite, engine, tmp_path)) == whole
        assert engine.asked
    path.write_bytes(data.replace(b'"batch":1,', b'"batch":1;'))
    assert dump_lines(play(suite, Clerk(), tmp_path)) == whole
    other = Clerk()
    play(suite, other, tmp_path, key="another model")
    assert len({request.case for request in other.asked}) == 16
    with Journal(path, "another model") as journal:
        assert sum(map(len, journal.batches.values())) == 16


def test_a_killed_evaluation_ends_with_the_same_rows(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.evaluation.suite_world", str(folder)],
            cwd=ROOT,
            env=dict(os.environ),
        )

    assert start(tmp_path / "whole").wait(timeout=120) == 0
    folder, draw, kills = tmp_path / "killed", random.Random(7), 0
    for _ in range(10):
        process = start(folder)
        journal = folder / "journal.jsonl"
        before = journal.stat().st_size if journal.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.stat().st_size > before:
                time.sleep(draw.random() / 2)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        if process.wait(timeout=60) == 0:
            break
        kills += 1
    else:
        assert start(folder).wait(timeout=120) == 0
    assert kills >= 2
    assert (folder / "lines").read_bytes() == (tmp_path / "whole" / "lines").read_bytes()


def test_rows_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = play(small_suite(3), Clerk(), tmp_path)
    assert [row.to_json() for row in load_lines(dump_lines(rows))] == [row.to_json() for row in rows]
    for row in rows:
        assert SuiteRow.from_json(json.loads(json.dumps(row.journal_json()))) == row
