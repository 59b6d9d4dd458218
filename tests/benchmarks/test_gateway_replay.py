"""The replay of a trace, small: a real gateway, and every request accounted for."""

from __future__ import annotations

import copy
import gzip
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gateway_replay
from benchmarks._replay_trace import MAX_PROMPT_TOKENS, Asked, busiest, made_up, read_trace
from benchmarks.gateway_replay import percentiles, replay

pytestmark = pytest.mark.xdist_group("durability")


def test_a_replay_accounts_for_every_request() -> None:
    (row, tail), facts = _smallest()
    assert facts["due"] == facts["sent"] == facts["rows"] == facts["begun"] == 200
    assert facts["answered"] == {"200": 200}
    assert facts["tokens"] == facts["tokens_in_log"] == sum(asked.answer_tokens for asked in made_up(200, 40))
    assert facts["finish"] == {"stop": 200}
    # Which of the two was faster on a busy machine is a figure for the benchmark, not for a test.
    assert min(row.ours[0], row.theirs[0], tail.ours[0], tail.theirs[0]) > 0


def _smallest() -> tuple[Any, dict[str, Any]]:
    outcome = gateway_replay.run("smallest", 1)
    assert outcome.faults == []
    return outcome.rows, outcome.facts["20x"][0]


def test_requests_that_are_refused_are_rows_too() -> None:
    trace = made_up(120, 12.0)
    found = replay(trace, 20, workers=1, limits={"max_in_flight": 4, "queue": 2, "queue_seconds": 5})
    facts = found.facts
    assert found.faults == []
    assert facts["refused"] > 10
    assert facts["answered"]["200"] + facts["refused"] == facts["rows"] == facts["sent"] == 120
    assert facts["finish"] == {"shed": facts["refused"], "stop": facts["answered"]["200"]}


def test_what_does_not_add_up_is_a_fault() -> None:
    trace = made_up(3, 1.0)
    sent = [
        types.SimpleNamespace(number=number, status=200, whole=True, tokens=asked.answer_tokens)
        for number, asked in enumerate(trace)
    ]
    clients = types.SimpleNamespace(sent=sent)
    facts = {
        "speed": 1.0,
        "due": 3,
        "sent": 3,
        "answered": {"200": 3},
        "refused": 0,
        "broken": 0,
        "index_agrees": True,
        "rows": 3,
        "answers_without_a_row": 0,
    }
    assert gateway_replay._faults(trace, clients, facts) == []
    for change in (
        {"due": 4},
        {"answered": {"200": 2}},
        {"index_agrees": False},
        {"rows": 2},
        {"rows": 4},
        {"answers_without_a_row": 1},
    ):
        assert len(gateway_replay._faults(trace, clients, {**facts, **change})) == 1, change
    other = copy.deepcopy(clients)
    other.sent[1].tokens += 1
    assert len(gateway_replay._faults(trace, other, facts)) == 1


def test_a_trace_is_read_from_its_first_request_on(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    assert read_trace(path) is None
    lines = [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:48.1805900,99999,109",
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    first, second = read_trace(path) or []
    assert first == Asked(0.0, 374, 44)
    assert second == Asked(pytest.approx(1.5), MAX_PROMPT_TOKENS, 109)


def test_the_busiest_stretch_is_found() -> None:
    trace = [Asked(at, 1, number) for number, at in enumerate((0.0, 5.0, 10.0, 10.4, 10.9, 11.1, 20.0))]
    assert [asked.answer_tokens for asked in busiest(trace, 1.0)] == [2, 3, 4]
    assert busiest(trace, 1.0)[0].at_seconds == 0.0
    assert len(busiest(trace, 100.0)) == 7


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles([0.003, 0.001, 0.002]) == {"p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 3.0}
    assert percentiles([])["max"] == 0.0


def test_without_the_trace_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_TRACES", str(tmp_path))
    outcome = gateway_replay.run("default", 1)
    assert outcome.rows == ()
    assert "POSTTRAIN_TRACES" in outcome.notes[0]
