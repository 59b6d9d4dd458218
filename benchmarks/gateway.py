"""One gateway worker with its durable log, beside no gateway at all and beside the routers of vLLM and SGLang.

Here: on loopback, a mock model server and a load generator that cost next to nothing (``_gateway_ends``), and between
them whatever is measured, one after the other within a round. What the worker does for a request: reads and checks it,
assigns it, calls the upstream, writes a ``begin`` and an ``end`` row with question and answer to disk, counts.
The routers pass on and log nothing. Their Pythons are named by ``POSTTRAIN_BENCH_VLLM_ROUTER`` and
``POSTTRAIN_BENCH_SGLANG_ROUTER`` (environments of their own with ``vllm-router``, ``sglang-router``); without them they
are left out. ``POSTTRAIN_BENCH_REQUESTS`` asks for that many requests more at the end, to see whether memory grows.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import ROOT, Outcome, Row, Size, quiet_environment
from benchmarks._gateway_ends import CHUNKS

_SECONDS = {"smallest": 0.15, "default": 2.0}
_CONNECTIONS = (1, 16, 64)
_STREAMS = 32
_PEERS = {"vllm": ("VLLM_ROUTER", "vllm_router"), "sglang": ("SGLANG_ROUTER", "sglang_router")}
_AIMS = (
    "aims on an idle machine: 50 us CPU a request, 10,000 requests a second and core, added p99 of 1 ms at c=16, "
    "15 us CPU a chunk, 80 MB"
)


class _Target:
    """Something that answers, and the process whose time it costs."""

    def __init__(self, name: str, port: int, pid: int | None) -> None:
        self.name = name
        self.port = port
        self.pid = pid

    def cpu_seconds(self) -> float:
        """Of all its processes."""
        import psutil

        if self.pid is None:
            return 0.0
        process = psutil.Process(self.pid)
        return sum(sum(item.cpu_times()[:2]) for item in (process, *process.children(recursive=True)))

    def rss_mb(self) -> float:
        """Of all its processes."""
        import psutil

        if self.pid is None:
            return 0.0
        process = psutil.Process(self.pid)
        return sum(item.memory_info().rss for item in (process, *process.children(recursive=True))) / 1e6


def run(size: Size, rounds: int) -> Outcome:
    """Measure every target in every round, forwards and backwards in turn."""
    seconds = _SECONDS[size]
    faults: list[str] = []
    environment = {**quiet_environment(), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posttrain-bench-")))
        mock = stack.enter_context(_mock(environment))
        targets = [_Target("direct", mock, None), stack.enter_context(_worker(folder, mock, environment))]
        for name, (variable, module) in _PEERS.items():
            python = os.environ.get(f"POSTTRAIN_BENCH_{variable}")
            if python:
                targets.append(stack.enter_context(_router(name, python, module, mock)))
        ours = targets[1]
        for target in targets:
            _load(target, 4, seconds / 4, stream=False, environment=environment)
        memory = [ours.rss_mb()]
        measured: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
        total = 0
        for number in range(rounds):
            print(f"  round {number + 1} of {rounds}", file=sys.stderr)
            for target in targets if number % 2 == 0 else reversed(targets):
                values, requests, failed = _measure(target, seconds, environment)
                measured[target.name].append(values)
                total += requests if target is ours else 0
                if failed:
                    faults.append(f"{target.name}: {failed} requests were not answered with 200")
        memory.append(ours.rss_mb())
        more = int(os.environ.get("POSTTRAIN_BENCH_REQUESTS", "0"))
        while more > 0:
            found = _load(ours, 16, 20.0, stream=False, environment=environment)
            more -= int(found["requests"])
            total += int(found["requests"])
            memory.append(ours.rss_mb())
            print(f"  {more} more, {memory[-1]:.1f} MB", file=sys.stderr)
        faults += _unlogged(ours, folder, total)
    return Outcome(
        _rows(measured), _notes(measured, memory, total), {"measured": measured, "rss_mb": memory}, faults
    )


def _measure(
    target: _Target, seconds: float, environment: Mapping[str, str]
) -> tuple[dict[str, float], int, int]:
    values: dict[str, float] = {}
    requests = failed = 0
    for connections in _CONNECTIONS:
        found = _load(target, connections, seconds, stream=False, environment=environment)
        values[f"cpu_us_{connections}"] = found["cpu"] / found["requests"] * 1e6
        values[f"wall_us_{connections}"] = found["seconds"] / found["requests"] * 1e6
        values[f"p50_ms_{connections}"] = found["p50_ms"]
        values[f"p99_ms_{connections}"] = found["p99_ms"]
        requests += int(found["requests"])
        failed += int(found["failed"])
    found = _load(target, _STREAMS, seconds, stream=True, environment=environment)
    values["chunk_us"] = found["cpu"] / found["requests"] / CHUNKS * 1e6
    values["stream_ms"] = found["p50_ms"]
    return values, requests + int(found["requests"]), failed + int(found["failed"])


def _load(
    target: _Target, connections: int, seconds: float, *, stream: bool, environment: Mapping[str, str]
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks._gateway_ends", "load", str(target.port), str(connections)]
    before = target.cpu_seconds()
    done = subprocess.run(
        [*command, str(seconds), str(int(stream))],
        capture_output=True,
        text=True,
        env=dict(environment),
        check=True,
    )
    return {**json.loads(done.stdout), "cpu": target.cpu_seconds() - before}


def _rows(measured: Mapping[str, list[dict[str, float]]]) -> list[Row]:
    ours = measured["ours"]

    def row(what: str, value: str, peer: str, unit: str) -> Row:
        names = {"direct": "no gateway", "vllm": "vllm-router", "sglang": "sglang-router"}
        theirs = [values[value] for values in measured[peer]]
        return Row(what, names[peer], [values[value] for values in ours], theirs, unit)

    rows = [
        row("median time, c=1", "p50_ms_1", "direct", "ms"),
        row("99th percentile, c=16", "p99_ms_16", "direct", "ms"),
        row("median time of a stream, c=32", "stream_ms", "direct", "ms"),
    ]
    for peer in (name for name in _PEERS if name in measured):
        rows += [
            row("processor time of a request, c=16", "cpu_us_16", peer, "us"),
            row("processor time of a streamed chunk", "chunk_us", peer, "us"),
            row("time of a request, c=16", "wall_us_16", peer, "us"),
            row("median time, c=1", "p50_ms_1", peer, "ms"),
            row("99th percentile, c=16", "p99_ms_16", peer, "ms"),
        ]
    return rows


def _notes(measured: Mapping[str, list[dict[str, float]]], memory: list[float], requests: int) -> list[str]:
    notes = []
    for name in measured:
        if name == "direct":
            continue

        def middle(value: str, name: str = name) -> float:
            return statistics.median(values[value] for values in measured[name])

        def added(value: str, name: str = name) -> float:
            pairs = zip(measured[name], measured["direct"], strict=True)
            return statistics.median(one[value] - direct[value] for one, direct in pairs)

        rates = ", ".join(f"{1e6 / middle(f'wall_us_{c}'):,.0f} at c={c}" for c in _CONNECTIONS)
        cpu = "/".join(f"{middle(f'cpu_us_{c}'):.0f}" for c in _CONNECTIONS)
        notes.append(
            f"{name}: {cpu} us CPU a request (c=1/16/64), {1e6 / middle('cpu_us_16'):,.0f} requests a second and core; "
            f"requests a second beside the load generator: {rates}; added p50 {added('p50_ms_1'):.3f} ms (c=1), "
            f"p99 {added('p99_ms_16'):.2f} ms (c=16); {middle('chunk_us'):.1f} us CPU a chunk"
        )
    notes.append(
        f"memory of the worker: {memory[0]:.1f} MB after the start, {memory[-1]:.1f} MB {requests:,} requests later"
    )
    return [*notes, _AIMS]


@contextlib.contextmanager
def _mock(environment: Mapping[str, str]) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks._gateway_ends", "serve"]
    with _process(command, dict(environment), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def _worker(folder: Path, mock: int, environment: Mapping[str, str]) -> Iterator[_Target]:
    from posttrain.serving.gateway.config import WorkerConfig
    from posttrain.serving.records import Route, Snapshot, Target, Upstream

    config = WorkerConfig(name="bench", port=0, traffic_folder=str(folder / "log"))
    snapshot = Snapshot(
        epoch=1,
        at="2026-11-25T00:00:00Z",
        reason="benchmark",
        upstreams=(Upstream(name="mock", url=f"http://127.0.0.1:{mock}/v1"),),
        routes=(Route(model="bench", production=Target(name="v1", upstreams=("mock",), model="bench")),),
    )
    path = folder / "control.sock"
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(path))
        control.listen(1)
        command = [
            sys.executable,
            "-m",
            "posttrain.serving.gateway",
            "--control",
            str(path),
            "--worker",
            "bench",
        ]
        with _process(command, dict(environment)) as process:
            connection, _ = control.accept()
            with connection, connection.makefile("rb") as heard:
                start = {"op": "start", "config": config.to_json(), "snapshot": snapshot.to_json()}
                connection.sendall(json.dumps(start).encode() + b"\n")
                said = next(m for m in map(json.loads, heard) if m["op"] in ("ready", "failed"))
                if said["op"] == "failed":
                    raise SystemExit(f"the worker did not start: {said['error']}")
                # Somebody must go on listening: the worker tells its counts every second.
                threading.Thread(target=lambda: [None for _ in heard], daemon=True).start()
                yield _Target("ours", said["port"], process.pid)
                connection.sendall(b'{"op":"stop","grace_seconds":5}\n')
                process.wait(20)


@contextlib.contextmanager
def _router(name: str, python: str, module: str, mock: int) -> Iterator[_Target]:
    port, metrics = _free_port(), _free_port()
    command = [
        python, "-m", f"{module}.launch_router", "--worker-urls", f"http://127.0.0.1:{mock}", "--host", "127.0.0.1",
        "--port", str(port), "--prometheus-port", str(metrics), "--policy", "round_robin", "--log-level", "error",
    ]  # fmt: skip
    with _process(command, {**os.environ, "PYTHONPATH": ""}, stdout=subprocess.DEVNULL) as process:
        target = _Target(name, port, process.pid)
        until = time.monotonic() + 60
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{module} did not start: {' '.join(command)}")
            time.sleep(0.1)
        yield target


def _answers(port: int) -> bool:
    body = json.dumps({"model": "bench", "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _process(
    command: list[str], environment: dict[str, str], **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unlogged(ours: _Target, folder: Path, requests: int) -> list[str]:
    """Every request that was answered has its row."""
    from posttrain.serving.traffic.segments import list_segments, read_segment

    rows = sum(
        b'"kind":"end"' in row.payload[:40]
        for name in list_segments(folder / "log")
        for row in read_segment(folder / "log" / str(name))
    )
    # The warm-up is not counted in `requests`, so there are some more rows.
    return [f"{requests} requests and only {rows} rows"] if rows < requests else []
