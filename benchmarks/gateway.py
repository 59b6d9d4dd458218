"""One gateway worker with its durable log, beside no gateway at all and beside the routers of vLLM and SGLang.

Here: on loopback, a mock model server and a load generator that cost next to nothing (``_gateway_ends``), and between
them whatever is measured, one after the other within a round. What the worker does for a request: reads and checks it,
assigns it, calls the upstream, writes a ``begin`` and an ``end`` row with question and answer to disk, counts.
Each is measured twice over: with connections that ask again as soon as they are answered (how much fits, and what it
costs), and at fixed rates (``_gateway_pace``: how long one waits who does not ask for all that fits). Where
``posttrain compile`` has run, the worker is there twice, compiled and interpreted.

The routers pass on and log nothing. Their Pythons are named by ``POSTTRAIN_BENCH_VLLM_ROUTER`` and
``POSTTRAIN_BENCH_SGLANG_ROUTER`` (environments of their own with ``vllm-router``, ``sglang-router``); without them they
are left out. ``POSTTRAIN_BENCH_RATES`` are the rates, requests a second with commas between; default ``1000,4000``.
``POSTTRAIN_BENCH_REQUESTS`` asks for that many requests more at the end, to see whether memory grows.
Not here: rows and notes of the table (``_gateway_table``).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT, Outcome, Size, quiet_environment
from benchmarks import _gateway_table as table
from benchmarks._gateway_ends import CHUNKS
from benchmarks._gateway_table import CONNECTIONS, PACED_CONNECTIONS
from posttrain.serving.gateway.compiled import OFF, compiled_folder

_SECONDS = {"smallest": 0.15, "default": 2.0}
_RATES = "1000,4000"
_STREAMS = 32
_PEERS = {"vllm": ("VLLM_ROUTER", "vllm_router"), "sglang": ("SGLANG_ROUTER", "sglang_router")}


class _Target:
    """Something that answers, and the process whose time it costs."""

    def __init__(self, name: str, port: int, pid: int | None, log: Path | None = None) -> None:
        self.name = name
        self.port = port
        self.pid = pid
        self.log = log
        """Where it logs, if it is one of ours."""
        self.requests = 0
        """Answered since the warm-up."""
        self.memory: list[float] = []
        """In MB, after the warm-up and later."""

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
    rates = read_rates(os.environ.get("POSTTRAIN_BENCH_RATES") or _RATES)
    compiled = compiled_folder()
    faults: list[str] = []
    measured: dict[str, list[dict[str, float]]] = {}
    environment = {**quiet_environment(), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    environment.pop(OFF, None)
    with contextlib.ExitStack() as stack:
        targets = _targets(stack, compiled is not None, environment)
        workers = [target for target in targets if target.log is not None]
        for target in targets:
            measured[target.name] = []
            _load(target, 4, seconds / 4, stream=False, environment=environment)
            target.memory.append(target.rss_mb())
        if compiled is not None:
            faults += _mistaken(workers, compiled)
        for number in range(rounds):
            print(f"  round {number + 1} of {rounds}", file=sys.stderr)
            for target in targets if number % 2 == 0 else reversed(targets):
                values, requests, failed = _measure(target, seconds, rates, environment)
                measured[target.name].append(values)
                target.requests += requests
                if failed:
                    faults.append(f"{target.name}: {failed} requests were not answered with 200")
        for target in workers:
            target.memory.append(target.rss_mb())
        _load_more(workers[0], int(os.environ.get("POSTTRAIN_BENCH_REQUESTS", "0")), environment)
        for target in workers:
            faults += _unlogged(target)
    return _outcome(measured, rates, workers, faults)


def read_rates(text: str) -> list[int]:
    """Requests a second, from whole numbers with commas between."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SystemExit(f"POSTTRAIN_BENCH_RATES={text!r}: expected requests a second, such as {_RATES}")
    return [int(part) for part in parts]


def _outcome(
    measured: Mapping[str, list[dict[str, float]]],
    rates: Sequence[int],
    workers: Sequence[_Target],
    faults: Sequence[str],
) -> Outcome:
    paced = table.paced(measured, rates)
    ours, *others = workers
    notes = table.notes(measured) + table.paced_lines(paced)
    notes += [table.memory_line(measured, item.name, item.memory, item.requests) for item in workers]
    facts: dict[str, Any] = {
        "measured": measured,
        "rss_mb": ours.memory,
        "compiled": bool(others),
        "paced": [line.to_json() for line in paced],
        **{f"rss_mb_{item.name}": item.memory for item in others},
    }
    return Outcome(
        table.rows(measured, rates), [*notes, *table.last_lines(bool(others))], facts, list(faults)
    )


def _targets(stack: contextlib.ExitStack, is_compiled: bool, environment: Mapping[str, str]) -> list[_Target]:
    """All that is measured, started; ours come right after the bare upstream."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posttrain-bench-")))
    mock = stack.enter_context(_mock(environment))
    targets = [_Target("direct", mock, None)]
    targets.append(stack.enter_context(_worker("ours", folder / "ours", mock, environment)))
    if is_compiled:
        interpreted = {**environment, OFF: "1"}
        targets.append(stack.enter_context(_worker("interpreted", folder / "interpreted", mock, interpreted)))
    for name, (variable, module) in _PEERS.items():
        python = os.environ.get(f"POSTTRAIN_BENCH_{variable}")
        if python:
            targets.append(stack.enter_context(_router(name, python, module, mock)))
    return targets


def _mistaken(workers: Sequence[_Target], compiled: Path) -> list[str]:
    """The name of a target must be true: the first has compiled modules in memory, the other has none."""
    import psutil

    faults = []
    for target, wanted in zip(workers, (True, False), strict=True):
        files = (Path(mapped.path) for mapped in psutil.Process(target.pid).memory_maps())
        if any(file.is_relative_to(compiled.resolve()) for file in files) is not wanted:
            faults.append(f"{target.name}: {'no' if wanted else 'a'} module of {compiled} is loaded")
    return faults


def _measure(
    target: _Target, seconds: float, rates: Sequence[int], environment: Mapping[str, str]
) -> tuple[dict[str, float], int, int]:
    values: dict[str, float] = {}
    requests = failed = 0
    for connections in CONNECTIONS:
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
    requests += int(found["requests"])
    failed += int(found["failed"])
    for rate in rates:
        command = ["_gateway_pace", str(target.port), str(PACED_CONNECTIONS), str(rate), str(seconds)]
        found = _end(target, command, environment)
        for name in ("kept", "p50_ms", "p99_ms", "late_p99_ms", "waited"):
            values[f"paced_{name}_{rate}"] = found[name]
        values[f"paced_cpu_us_{rate}"] = found["cpu"] / max(1, found["requests"]) * 1e6
        requests += int(found["requests"])
        failed += int(found["failed"])
    return values, requests, failed


def _load(
    target: _Target, connections: int, seconds: float, *, stream: bool, environment: Mapping[str, str]
) -> dict[str, float]:
    command = ["_gateway_ends", "load", str(target.port), str(connections), str(seconds), str(int(stream))]
    return _end(target, command, environment)


def _end(target: _Target, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Run a load generator; what it says, and the processor time that the target spent meanwhile."""
    module, *options = command
    before = target.cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *options],
        capture_output=True,
        text=True,
        env=dict(environment),
        check=True,
    )
    return {**json.loads(done.stdout), "cpu": target.cpu_seconds() - before}


def _load_more(target: _Target, requests: int, environment: Mapping[str, str]) -> None:
    while requests > 0:
        found = _load(target, 16, 20.0, stream=False, environment=environment)
        requests -= int(found["requests"])
        target.requests += int(found["requests"])
        target.memory.append(target.rss_mb())
        print(f"  {requests} more, {target.memory[-1]:.1f} MB", file=sys.stderr)


@contextlib.contextmanager
def _mock(environment: Mapping[str, str]) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks._gateway_ends", "serve"]
    with _process(command, dict(environment), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def _worker(name: str, folder: Path, mock: int, environment: Mapping[str, str]) -> Iterator[_Target]:
    from posttrain.routing.records import Route, Snapshot, Target, Upstream
    from posttrain.serving.gateway.config import WorkerConfig

    config = WorkerConfig(name="bench", port=0, traffic_folder=str(folder / "log"))
    snapshot = Snapshot(
        epoch=1,
        at="2026-11-25T00:00:00Z",
        reason="benchmark",
        upstreams=(Upstream(name="mock", url=f"http://127.0.0.1:{mock}/v1"),),
        routes=(Route(model="bench", production=Target(name="v1", upstreams=("mock",), model="bench")),),
    )
    folder.mkdir()
    path = folder / "control.sock"
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(path))
        control.listen(1)
        control.settimeout(60)
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
                yield _Target(name, said["port"], process.pid, folder / "log")
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


def _unlogged(target: _Target) -> list[str]:
    """Every request that was answered has its row."""
    from posttrain.traffic.segments import list_segments, read_segment

    assert target.log is not None
    rows = sum(
        b'"kind":"end"' in row.payload[:40]
        for name in list_segments(target.log)
        for row in read_segment(target.log / str(name))
    )
    # The warm-up is not counted in `requests`, so there are some more rows.
    requests = target.requests
    return [f"{target.name}: {requests} requests and only {rows} rows"] if rows < requests else []
