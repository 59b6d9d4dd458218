"""How fast a suite is played with an instant engine, beside Inspect's mock model.

Here: simple sums, one answer each, graded by exact match in a grading process, journalled, reported. Peer: the same
questions as an ``inspect_ai`` task with its mock model and its exact scorer, where ``inspect_ai`` can be imported by
the Python that ``POSTTRAIN_BENCH_INSPECT`` names or by this one; else there is no peer and a note says so, and the row
stands beside the promise of 2,000 samples a second. Not here: a real model; there it decides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import Outcome, Pairs, Row, Size, Values, measure, pair, quiet_environment

PROMISED_PER_SECOND = 2000
_SAMPLES = {"smallest": 200, "default": 10000}
_INSPECT_SAMPLES = {"smallest": 20, "default": 400}
_PEER = """
import json, sys, time
import tiktoken
# Inspect counts tokens with a vocabulary that it downloads; bytes count as fast, and need no network.
ranks = {bytes([n]): n for n in range(256)}
counter = tiktoken.Encoding("bytes", pat_str="(?s:.)", mergeable_ranks=ranks, special_tokens={})
tiktoken.get_encoding = tiktoken.encoding_for_model = lambda name: counter
from inspect_ai import Task, eval as run
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import get_model, ModelOutput
from inspect_ai.scorer import exact
count, folder = int(sys.argv[1]), sys.argv[2]
samples = [Sample(input=f"{n} + 1?", target=str(n + 1), id=n) for n in range(count)]
answers = [ModelOutput.from_content("mockllm/model", str(n + 1)) for n in range(count)]
task = Task(dataset=MemoryDataset(samples), scorer=exact())
started, used = time.perf_counter(), time.process_time()
logs = run(task, model=get_model("mockllm/model", custom_outputs=answers), display="none", log_dir=folder)
seconds, used = time.perf_counter() - started, time.process_time() - used
print(json.dumps({"seconds": seconds, "cpu": used, "status": logs[0].status, "samples": len(logs[0].samples or [])}))
"""


def run(size: Size, rounds: int) -> Outcome:
    """Play the same sums on both sides."""
    environment = quiet_environment()
    count, theirs = _SAMPLES[size], _INSPECT_SAMPLES[size]
    suite = _suite(count)
    _ours(suite)  # imports, byte code
    notes = [f"per sample, the processes' start included; ours plays {count} samples"]
    faults: list[str] = []
    python = _inspect_python(environment)
    if python is None:
        peer, promised = "promise", dict.fromkeys(("wall", "cpu"), 1 / PROMISED_PER_SECOND)
        pairs = pair(rounds, lambda _: _ours(suite), lambda _: promised)
        notes.append("inspect_ai is not installed; POSTTRAIN_BENCH_INSPECT names a Python that has it")
    else:
        peer = "Inspect mock model"
        pairs = pair(rounds, lambda _: _ours(suite), lambda _: _peers(python, environment, theirs, faults))
        notes.append(
            f"Inspect plays {theirs} samples, since it takes long; its time a sample hardly depends on that"
        )
    return Outcome(_rows(pairs, peer), notes, {"samples_per_second": _rates(pairs)}, faults)


def _rows(pairs: Pairs, peer: str) -> list[Row]:
    whats = {"wall": "play a sample", "cpu": "processor time of a sample"}
    return [pairs.row(what, name, peer, scale=1000.0, unit="ms") for name, what in whats.items()]


def _rates(pairs: Pairs) -> dict[str, Sequence[float]]:
    sides = {"ours": pairs.ours, "theirs": pairs.theirs}
    return {name: [round(1 / values["wall"], 1) for values in side] for name, side in sides.items()}


def _suite(count: int) -> Any:
    from posttrain.environments.records import Case
    from posttrain.environments.suites.build import build_from_slices
    from posttrain.environments.suites.files import parse_suite
    from posttrain.environments.suites.slice_records import SliceSpec
    from posttrain.environments.suites.suite import SuiteSettings

    cases = tuple(
        Case(f"sum-{n:06d}", "sums", ({"role": "user", "content": f"{n} + 1?"},), {"answer": str(n + 1)})
        for n in range(count)
    )
    spec = SliceSpec(
        "sums", "adds", cases, ({"kind": "exact", "name": "right", "expects": "answer"},), ("right",)
    )
    return parse_suite(build_from_slices(SuiteSettings(name="bench"), [spec], code={}))


class _Instant:
    """Answers without thinking."""

    batch_size = 32

    def chat(self, requests: Sequence[Any], sampling: Any) -> list[Any]:
        from posttrain.engines.chat import ChatReply

        return [ChatReply(str(int(request.case[4:]) + 1), (), 10, 3, "stop", 0.0) for request in requests]


def _ours(suite: Any) -> Values:
    from posttrain.engines.conversation import ChatPlayer
    from posttrain.evaluation.suites.grading import grader_columns
    from posttrain.evaluation.suites.journal import Journal
    from posttrain.evaluation.suites.report import Subject, make_report
    from posttrain.evaluation.suites.runner import PlayPlan, play_suite

    reports: list[Any] = []

    def work() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            Journal(Path(folder) / "journal.jsonl", "bench") as journal,
        ):
            plan = PlayPlan(samples=1, concurrency=2, graders=1)
            rows = play_suite(suite, ChatPlayer(suite, _Instant()), plan, journal=journal)
        subject = Subject("instant", "live-frozen", 1, {})
        reports.append(make_report(suite, subject, rows, grader_columns(suite.slices[0])))

    used = measure(work)
    rows = reports[0].rows
    assert all(row.graded.success for row in rows), "an instant engine that is always right was graded wrong"
    return {name: seconds / len(rows) for name, seconds in used.items()}


def _inspect_python(environment: dict[str, str]) -> str | None:
    for python in filter(None, (os.environ.get("POSTTRAIN_BENCH_INSPECT"), sys.executable)):
        found = subprocess.run(
            [python, "-c", "import inspect_ai"], capture_output=True, env=environment, check=False
        )
        if found.returncode == 0:
            return python
    return None


def _peers(python: str, environment: dict[str, str], count: int, faults: list[str]) -> Values:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-c", _PEER, str(count), folder],
            capture_output=True,
            text=True,
            env={**environment, "PYTHONPATH": ""},
            check=False,
        )
    if done.returncode != 0:
        faults.append(f"Inspect failed: {done.stderr.strip()[-300:]}")
        return {"wall": float("inf"), "cpu": float("inf")}
    found = json.loads(done.stdout.splitlines()[-1])
    if found["status"] != "success" or found["samples"] != count:
        faults.append(f"Inspect played {found['samples']} of {count} samples: {found['status']}")
    return {"wall": found["seconds"] / count, "cpu": found["cpu"] / count}
