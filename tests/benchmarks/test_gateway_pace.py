"""Requests at a fixed rate: which are due, what a wait costs, what is lost, and the table of it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import ROOT, gateway
from benchmarks import _gateway_table as table
from benchmarks._gateway_ends import answer_size, percentile, question
from benchmarks._gateway_pace import Pace, play


def played(pace: Pace, takes: float) -> dict[str, float]:
    """A server that answers each connection's request after ``takes`` seconds; the clock is a number."""
    now = 0.0
    ends: list[tuple[float, int]] = []
    while not pace.is_over():
        while (connection := pace.begin(now)) is not None:
            ends.append((now + takes, connection))
        sleep = pace.sleep_seconds(now)
        # Straight to the next thing that happens: a request is due, or an answer is there.
        now = min([end for end, _ in ends] + ([] if sleep is None else [now + sleep + 1e-12]))
        for end, connection in [item for item in ends if item[0] <= now]:
            pace.answered(connection, end, True)
            ends.remove((end, connection))
    return pace.result()


def test_requests_are_due_at_even_distances() -> None:
    pace = Pace(rate=4.0, requests=3, connections=8)
    assert pace.begin(0.0) == 0
    assert pace.begin(0.0) is None
    assert pace.sleep_seconds(0.1) == pytest.approx(0.15)
    assert pace.begin(0.25) == 1
    assert pace.sleep_seconds(0.75) == 0.0
    assert pace.begin(0.75) == 2
    # All have begun: only answers can end it, and they do.
    assert pace.begin(9.0) is None and pace.sleep_seconds(9.0) is None and not pace.is_over()
    for connection in range(3):
        pace.answered(connection, 1.0, True)
    assert pace.is_over()
    assert pace.times == [1.0, 0.75, 0.5]
    assert pace.late == [0.0, 0.0, 0.25]


def test_connections_take_turns() -> None:
    pace = Pace(rate=1.0, requests=9, connections=3)
    taken = []
    for number in range(6):
        connection = pace.begin(number)
        assert connection is not None
        pace.answered(connection, number + 0.5, True)
        taken.append(connection)
    assert taken == [0, 1, 2, 0, 1, 2]


def test_a_rate_that_is_kept_costs_the_answer_alone() -> None:
    found = played(Pace(rate=100.0, requests=200, connections=4), takes=0.005)
    assert found["requests"] == 200 and found["waited"] == 0 and found["failed"] == 0
    assert found["p50_ms"] == pytest.approx(5.0) and found["p99_ms"] == pytest.approx(5.0)
    assert found["kept"] == 1.0 and found["late_p99_ms"] == pytest.approx(0.0, abs=1e-6)


def test_a_wait_for_a_connection_counts_and_is_not_lateness() -> None:
    # One connection that can do half of the rate: request i begins at 0.02 i and was due at 0.01 i.
    pace = Pace(rate=100.0, requests=100, connections=1)
    found = played(pace, takes=0.02)
    assert pace.times == pytest.approx([0.02 + 0.01 * number for number in range(100)])
    assert found["waited"] == 99
    assert found["late_p99_ms"] == pytest.approx(0.0, abs=1e-6)
    assert found["kept"] == pytest.approx(0.5)


def test_one_stall_is_paid_by_all_that_it_held_up() -> None:
    pace = Pace(rate=10.0, requests=20, connections=1)
    assert pace.begin(0.0) == 0
    pace.answered(0, 1.0, True)
    for _ in range(19):
        now = max(1.0, pace.begun / 10)
        assert pace.begin(now) == 0
        pace.answered(0, now, True)
    # A generator that waits for answers would have seen one slow request of 20; here are ten.
    assert sum(time > 0.05 for time in pace.times) == 10
    assert pace.times[5] == pytest.approx(0.5)


def test_who_is_too_far_behind_is_stopped() -> None:
    pace = Pace(rate=100.0, requests=100, connections=1)
    for number in range(25):
        assert pace.begin(0.05 * number) == 0
        pace.answered(0, 0.05 * (number + 1), True)
    pace.stop()
    assert pace.is_over()
    assert pace.result()["kept"] == pytest.approx(0.2)


def test_lost_connections_are_failures_and_end_it() -> None:
    pace = Pace(rate=10.0, requests=10, connections=3)
    assert pace.begin(0.0) == 0
    pace.lose(0)
    pace.lose(2)
    assert pace.begin(0.1) == 1
    assert not pace.is_over()
    pace.give_up()
    assert pace.is_over()
    found = pace.result()
    assert (found["requests"], found["failed"], found["p99_ms"], found["kept"]) == (0, 3, 0.0, 0.0)


def test_answers_that_are_not_200_are_failures() -> None:
    pace = Pace(rate=10.0, requests=1, connections=1)
    pace.begin(0.0)
    pace.answered(0, 0.1, False)
    assert pace.result()["failed"] == 1


def test_percentiles() -> None:
    hundred = [float(number) for number in range(100)]
    assert (percentile(hundred, 0.5), percentile(hundred, 0.99), percentile(hundred, 1.0)) == (50, 99, 99)
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) == 0.0


def test_an_answer_is_as_long_as_it_says() -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nserver: x\r\n\r\nok"
    assert answer_size(whole) == len(whole)
    assert answer_size(whole[:30]) == 0
    assert answer_size(question(stream=False)) == len(question(stream=False))
    assert b'"stream": true' in question(stream=True)


def test_the_generator_asks_a_real_server_as_often_as_planned() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with gateway._mock(environment) as port:
        found = play(port, connections=4, rate=200.0, seconds=0.1)
    assert found["requests"] == 20 and found["failed"] == 0
    assert found["p99_ms"] >= found["p50_ms"] > 0
    assert 0 < found["kept"] <= 1


def test_a_server_that_leaves_is_noticed() -> None:
    with _leaving() as port:
        found = play(port, connections=2, rate=100.0, seconds=0.1)
    assert found["requests"] == 0 and found["failed"] == 2 and found["kept"] == 0


@contextlib.contextmanager
def _leaving() -> Iterator[int]:
    """Answers every connection once, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            opened = [server.accept()[0] for _ in range(2)]
            for connection in opened:
                with connection:
                    heard = connection.recv(65536)
                    while len(heard) < answer_size(heard):
                        heard += connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def figures(scale: float, kept: float = 1.0) -> dict[str, float]:
    """What a round measures of one target."""
    values = {"chunk_us": 10.0 * scale, "stream_ms": 100.0 * scale}
    for connections in table.CONNECTIONS:
        for name in ("cpu_us", "wall_us", "p50_ms", "p99_ms"):
            values[f"{name}_{connections}"] = scale
    for rate in (1000, 4000):
        values |= {f"paced_p50_ms_{rate}": scale, f"paced_p99_ms_{rate}": 4 * scale}
        values |= {f"paced_cpu_us_{rate}": 50.0 * scale, f"paced_kept_{rate}": kept if rate == 4000 else 1.0}
    return values


def measured(**targets: Any) -> dict[str, list[dict[str, float]]]:
    return {"direct": [figures(1.0), figures(3.0), figures(2.0)], **targets}


OURS = [figures(2.0), figures(3.5), figures(4.0)]


def test_added_time_is_the_median_of_the_rounds_own_differences() -> None:
    direct, ours = table.paced(measured(ours=OURS), [1000])
    assert (direct.target, direct.p50_ms, direct.added_p50_ms, direct.cpu_us) == (
        "no gateway",
        2.0,
        None,
        None,
    )
    # Differences of 1, 0.5 and 2; the difference of the medians would be 1.5.
    assert (ours.target, ours.p50_ms, ours.added_p50_ms) == ("gateway", 3.5, 1.0)
    assert (ours.p99_ms, ours.added_p99_ms, ours.kept) == (14.0, 4.0, 1.0)


def test_a_rate_that_is_not_kept_has_no_latency_and_no_row() -> None:
    slow = [figures(9.0, kept=0.4), figures(9.0, kept=0.5), figures(9.0, kept=0.99)]
    everything = measured(ours=OURS, vllm=slow)
    lines = table.paced(everything, [1000, 4000])
    assert [(line.target, line.rate) for line in lines if not line.is_kept] == [("vllm-router", 4000)]
    assert lines[-1].p50_ms is None and lines[-1].added_p99_ms is None and lines[-1].kept == 0.5
    _, header, *cells = table.paced_lines(lines)
    assert re.split(r" {2,}", header.strip()) == list(table._HEADER)
    assert cells[-1].split() == ["vllm-router", "4,000", "50.0%", *["not", "kept"] * 4, "450"]
    assert cells[1].split() == ["gateway", "1,000", "100.0%", "3.500", "14.000", "1.000", "4.000", "175"]
    assert cells[0].split()[-3:] == ["-", "-", "-"]
    assert len({len(line) for line in (header, *cells)}) == 1
    against = {(row.peer, row.what) for row in table.rows(everything, [1000, 4000]) if "a second" in row.what}
    assert ("vllm-router", "99th percentile, 1,000 a second") in against
    assert ("no gateway", "99th percentile, 4,000 a second") in against
    assert ("vllm-router", "99th percentile, 4,000 a second") not in against


def test_nothing_is_added_to_an_upstream_that_did_not_keep_the_rate() -> None:
    values = {"direct": [figures(1.0, kept=0.5)], "ours": [figures(2.0)]}
    direct, ours = table.paced(values, [4000])
    assert not direct.is_kept and ours.p50_ms == 2.0 and ours.added_p50_ms is None
    assert table.paced_lines([ours])[-1].split()[-3:] == ["-", "-", "100"]


def test_the_table_says_which_gateway_is_compiled() -> None:
    alone, both = measured(ours=OURS), measured(ours=OURS, interpreted=OURS)
    assert [line.target for line in table.paced(alone, [1000])] == ["no gateway", "gateway"]
    assert "posttrain compile" in table.last_lines(False)[0]
    names = ["no gateway", "gateway (compiled)", "gateway (interpreted)"]
    assert [line.target for line in table.paced(both, [1000])] == names
    assert [line.split(":")[0] for line in table.notes(both)] == names[1:]
    assert {row.peer for row in table.rows(both, [1000])} == {"no gateway", "gateway (interpreted)"}
    assert "compiled" in table.last_lines(True)[0] and "posttrain compile" not in table.last_lines(True)[0]
    assert "gateway (compiled)" in table.memory_line(both, "ours", [40.0, 41.0], 7)


def test_rates_are_read_or_refused() -> None:
    assert gateway.read_rates("1000, 250") == [1000, 250]
    for text in ("", "0", "1e3", "1000,,2", "-5"):
        with pytest.raises(SystemExit, match="POSTTRAIN_BENCH_RATES"):
            gateway.read_rates(text)


def test_a_target_whose_name_is_not_true_is_a_fault(tmp_path: Any) -> None:
    worker = gateway._Target("ours", 0, os.getpid(), tmp_path)
    other = gateway._Target("interpreted", 0, os.getpid(), tmp_path)
    # Of this very process: no file of an empty folder is mapped, files of / are.
    (fault,) = gateway._mistaken([worker, other], tmp_path)
    assert fault.startswith("ours: no module")
    (fault,) = gateway._mistaken([worker, other], tmp_path.__class__("/"))
    assert fault.startswith("interpreted: a module")
