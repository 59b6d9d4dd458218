"""An hour of real traffic through a whole gateway: two workers, control, the durable log, the index.

Here: requests of the Azure conversation trace of 2023 (``_replay_trace``), sent at their own times, ten and a hundred
times as fast, to a gateway in front of a mock server that takes as long as the answer has tokens (divided by the speed
as well, so that as many requests are under way). Every second request is a stream. Then everything is stopped and
counted: whatever was sent is an answer, a refusal or a broken connection, and a row in the index. Each row of the
table sets the latency that a client saw beside the server's own time of the same requests. Not here: how fast it can go
(``gateway``).

The trace is no part of this repository: ``POSTTRAIN_TRACES`` names its folder, default ``../shared/data/llm-traces``;
without it this benchmark says so and is skipped (the smallest size makes its own). More by options, for instance five
minutes at twice the speed: ``python -m benchmarks.gateway_replay --speed 2 --seconds 300``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT, Outcome, Row, Size, machine, quiet_environment
from benchmarks import _replay_trace as traces
from benchmarks._replay_trace import Asked

FIRST_SECONDS = 0.2
"""Until the server's first token, at the trace's own speed."""
EACH_SECONDS = 0.02
"""A token of the server, at the trace's own speed."""
_PARTS: Mapping[float, float] = {1: 60, 10: 600, 100: 3600}
"""Speed, and how many seconds of the trace are played at it: the busiest so many."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One replay."""

    facts: Mapping[str, Any]
    seen_ms: Mapping[str, float]
    """Latency at the client, by percentile, of whole good answers."""
    server_ms: Mapping[str, float]
    """The server's own time for the same requests."""
    faults: Sequence[str]


def run(size: Size, rounds: int) -> Outcome:
    """Replay the trace at every speed, ``rounds`` times."""
    if size == "smallest":
        return _outcome([(20, traces.made_up(200, 40.0))], rounds)
    trace = traces.read_trace(traces.folder() / traces.FILE)
    if trace is None:
        return Outcome(
            (), [f"skipped: {traces.folder()} has no {traces.FILE}; POSTTRAIN_TRACES names a folder"]
        )
    return _outcome([(speed, traces.busiest(trace, seconds)) for speed, seconds in _PARTS.items()], rounds)


def main() -> int:
    """One replay by options; its figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_replay", description=__doc__)
    parser.add_argument(
        "--speed", type=float, default=1.0, help="how many times as fast (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, help="of the trace, the busiest so many (default: by speed)")
    parser.add_argument("--durability", choices=("group", "strict"), default="group")
    options = parser.parse_args()
    trace = traces.read_trace(traces.folder() / traces.FILE)
    if trace is None:
        parser.error(f"{traces.folder()} has no {traces.FILE}; set POSTTRAIN_TRACES")
    seconds = options.seconds or _PARTS.get(options.speed, 60 * options.speed)
    found = replay(traces.busiest(trace, seconds), options.speed, traffic={"durability": options.durability})
    print(json.dumps({"machine": machine(), **found.facts, "faults": list(found.faults)}, indent=1))
    return 1 if found.faults else 0


def _outcome(parts: Sequence[tuple[float, list[Asked]]], rounds: int) -> Outcome:
    rows, faults, facts = [], [], {}
    for speed, trace in parts:
        found = []
        for number in range(rounds):
            print(f"  {len(trace)} requests at {speed:g}x, {number + 1} of {rounds}", file=sys.stderr)
            found.append(replay(trace, speed))
        for name in ("p50", "p99"):
            ours = [each.seen_ms[name] for each in found]
            rows.append(
                Row(
                    f"{name} latency at {speed:g}x",
                    "the server's own time",
                    ours,
                    [each.server_ms[name] for each in found],
                    "ms",
                )
            )
        facts[f"{speed:g}x"] = [each.facts for each in found]
        faults += [fault for each in found for fault in each.faults]
    notes = [
        f"the server takes ({FIRST_SECONDS} s + {EACH_SECONDS} s a token) / speed; prompts of "
        f"{traces.CHARACTERS_PER_TOKEN} characters a token, at most {traces.MAX_PROMPT_TOKENS} tokens",
        "added time, lateness of the generator, statuses and the counts of the log are in --json",
    ]
    return Outcome(rows, notes, facts, faults)


def replay(trace: Sequence[Asked], speed: float, **config: Any) -> Replayed:
    """Play a trace through a fresh gateway, stop it, and account for every request. ``config`` is laid over its own."""
    import uvloop

    from benchmarks._replay_ends import Clients

    environment = {**quiet_environment(), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as name:
        folder = Path(name)
        with _server(environment) as server, _gateway(folder, server.port, config, environment) as gateway:

            async def play() -> Clients:
                scaled = {"first_seconds": FIRST_SECONDS / speed, "each_seconds": EACH_SECONDS / speed}
                clients = Clients(gateway.port, **scaled)
                await clients.replay(list(trace), speed)
                return clients

            used = _cpu_seconds(folder)
            clients = uvloop.run(play())
            used = _cpu_seconds(folder) - used
        log = _log(folder / "home" / "serving" / "default" / "traffic")
    facts = _account(trace, clients, log)
    facts |= {
        "speed": speed,
        "config": config,
        "trace_seconds": round(trace[-1].at_seconds, 1),
        "workers_cpu_ms_a_request": round(1000 * used / len(trace), 3),
        "load": [round(load[0], 1), round(os.getloadavg()[0], 1)],
    }
    good = [sent for sent in clients.sent if sent.status == 200 and sent.whole]
    seen = [sent.seconds for sent in good]
    own = [server.took[sent.number] for sent in good]
    added = [sent.seconds - server.took[sent.number] for sent in good]
    late = [sent.late_seconds for sent in clients.sent]
    for what, values in (("seen_ms", seen), ("server_ms", own), ("added_ms", added), ("late_ms", late)):
        facts[what] = percentiles(values)
    return Replayed(facts, facts["seen_ms"], facts["server_ms"], _faults(trace, clients, facts))


# -- the books -------------------------------------------------------------------------------------


def _account(trace: Sequence[Asked], clients: Any, log: Mapping[str, Any]) -> dict[str, Any]:
    """Every request by what became of it, beside the log."""
    whole = [sent for sent in clients.sent if sent.status and sent.whole]
    answered = Counter(sent.status for sent in whole if sent.status != 429)
    told = {sent.id for sent in whole}
    return {
        "due": len(trace),
        "sent": len(clients.sent),
        "answered": {str(status): count for status, count in sorted(answered.items())},
        "refused": sum(sent.status == 429 for sent in whole),
        "broken": len(clients.sent) - len(whole),
        "connections": clients.connections,
        "begun": log["accepted"],
        "rows": len(log["finish"]),
        "finish": dict(sorted(Counter(log["finish"].values()).items())),
        "index_agrees": log["agrees"],
        "answers_without_a_row": len(told - {name for name, how in log["finish"].items() if how != "lost"}),
        "tokens": sum(sent.tokens for sent in whole),
        "tokens_in_log": log["tokens"],
        "gateway_ms": percentiles([value / 1000 for value in log["gateway_ms"]]),
    }


def _faults(trace: Sequence[Asked], clients: Any, facts: Mapping[str, Any]) -> list[str]:
    """What does not add up."""
    at = f"{facts['speed']:g}x"
    found = []
    total = sum(facts["answered"].values()) + facts["refused"] + facts["broken"]
    if not facts["due"] == facts["sent"] == total:
        found.append(f"{at}: {facts['due']} due, {facts['sent']} sent, {total} accounted for")
    if not facts["index_agrees"]:
        found.append(f"{at}: the index does not agree with the log")
    if not facts["sent"] - facts["broken"] <= facts["rows"] <= facts["sent"]:
        found.append(f"{at}: {facts['sent']} sent, {facts['broken']} broken, {facts['rows']} rows")
    if facts["answers_without_a_row"]:
        found.append(f"{at}: {facts['answers_without_a_row']} answers have no row")
    wrong = sum(
        sent.tokens != trace[sent.number].answer_tokens
        for sent in clients.sent
        if sent.status == 200 and sent.whole
    )
    if wrong:
        found.append(f"{at}: {wrong} answers are not as long as the server made them")
    return found


def _log(traffic: Path) -> dict[str, Any]:
    """The log and the index of a gateway that has stopped."""
    from posttrain.traffic.audit import reconcile
    from posttrain.traffic.index import TrafficIndex
    from posttrain.traffic.indexer import index_once

    index = TrafficIndex.open(traffic)
    index_once(traffic, index)
    counts = reconcile(traffic, index)
    with index.database.reading() as connection:
        query = "SELECT id, finish, gateway_ms, completion_tokens FROM requests"
        rows = connection.exec_driver_sql(query).all()
    return {
        "accepted": sum(count.accepted for count in counts),
        "agrees": all(count.agrees for count in counts),
        "finish": {row[0]: row[1] for row in rows},
        "gateway_ms": [row[2] for row in rows if row[2] is not None],
        "tokens": sum(row[3] or 0 for row in rows),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds; zeros of nothing."""
    found = sorted(seconds) or [0.0]
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * found[int(share * (len(found) - 1))], 3) for name, share in shares.items()}


# -- processes -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Process:
    port: int
    took: dict[int, float]
    """Of the server, once it has ended: how long each answer took it."""


@contextlib.contextmanager
def _server(environment: Mapping[str, str]) -> Iterator[_Process]:
    """The model server; it says at its end how long it took."""
    command = [sys.executable, "-m", "benchmarks._replay_ends"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        found = _Process(int(child.stdout.readline()), {})
        try:
            yield found
        finally:
            child.send_signal(signal.SIGTERM)
            said = child.stdout.read()
    found.took = {int(number): seconds for number, seconds in json.loads(said).items()}


@contextlib.contextmanager
def _gateway(
    folder: Path, server: int, config: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[_Process]:
    """``posttrain serve`` with two workers; stopped in good order."""
    written = {
        "listen": "127.0.0.1:0",
        "workers": 2,
        "upstreams": [{"name": "up", "url": f"http://127.0.0.1:{server}/v1", "max_connections": 1024}],
        "routes": [{"model": "m", "production": {"upstream": "up"}}],
        **config,
    }
    path = folder / "serve.yaml"
    path.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML, too
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "serve",
        str(path),
        "--json",
        "--home",
        str(folder / "home"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        said = b""
        while not said.endswith(b"\n}\n"):
            line = child.stdout.readline()
            if not line:
                raise RuntimeError("the gateway did not start")
            said += line
        try:
            yield _Process(int(json.loads(said)["url"].removesuffix("/v1").rpartition(":")[2]), {})
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait()
    if child.returncode != 0:
        raise RuntimeError(f"the gateway ended with {child.returncode}")


def _cpu_seconds(folder: Path) -> float:
    """Of the workers, since their start."""
    import psutil

    known = json.loads((folder / "home/serving/default/workers/workers.json").read_bytes())
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid, *_ in known.values())


if __name__ == "__main__":
    sys.exit(main())
