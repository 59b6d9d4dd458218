"""A small frozen world and engines that play it: real suites, real grading processes, no model."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.engines.chat import ChatReply, ChatRequest, Turn, WrittenCall
from posttrain.engines.conversation import ChatPlayer
from posttrain.engines.records import Sampling
from posttrain.environments.records import Case
from posttrain.environments.suites.build import build_from_slices
from posttrain.environments.suites.files import parse_suite
from posttrain.environments.suites.slice_records import SliceSpec, ToolSpec, call_key
from posttrain.environments.suites.suite import Suite, SuiteSettings
from posttrain.evaluation.suites.frozen_code import frozen_code
from posttrain.evaluation.suites.journal import Journal
from posttrain.evaluation.suites.rows import SuiteRow, dump_lines
from posttrain.evaluation.suites.runner import PlayPlan, play_suite

EXACT = {"kind": "exact", "name": "right", "expects": "answer"}


def small_suite(cases: int = 12, *, grader: dict[str, Any] | None = None, **settings: Any) -> Suite:
    """Sums to be answered, and versions to be looked up with a tool."""
    return parse_suite(small_files(cases, grader=grader, **settings))


def small_files(
    cases: int = 12, *, grader: dict[str, Any] | None = None, **settings: Any
) -> dict[str, bytes]:
    sums = tuple(
        Case(f"sum-{n:04d}", "sums", ({"role": "user", "content": f"{n} + 1?"},), {"answer": str(n + 1)})
        for n in range(cases)
    )
    looks = tuple(
        Case(
            f"look-{n:04d}",
            "looks",
            ({"role": "user", "content": f"sdk-{n}?"},),
            {"answer": f"v{n}"},
            ("lookup",),
        )
        for n in range(cases)
    )
    replies = {call_key({"name": f"sdk-{n}"}): f"v{n}" for n in range(cases)}
    tool = ToolSpec("lookup", "Looks a version up.", {"type": "object"}, replies)
    slices = [
        SliceSpec("sums", "adds", sums, (grader or EXACT,), ("right",)),
        SliceSpec("looks", "looks up", looks, (EXACT,), ("right",), (tool,)),
    ]
    return build_from_slices(
        SuiteSettings.model_validate({"name": "small", **settings}),
        slices,
        code=frozen_code(),
        prompts={"system": "Be brief."},
    )


class Clerk:
    """An engine that adds and looks up; what it gets wrong is a function of the request."""

    def __init__(self, *, batch_size: int = 4, wrong_of: int = 3, pause_seconds: float = 0.0) -> None:
        self.batch_size = batch_size
        self.wrong_of, self.pause_seconds = wrong_of, pause_seconds
        self.asked: list[ChatRequest] = []
        self.lock = threading.Lock()

    def chat(self, requests: Sequence[ChatRequest], sampling: Sampling) -> list[Turn]:
        time.sleep(self.pause_seconds)
        with self.lock:
            self.asked.extend(requests)
        return [self.turn(request) for request in requests]

    def turn(self, request: ChatRequest) -> Turn:
        last = request.messages[-1]
        question = next(m["content"] for m in request.messages if m["role"] == "user")
        if last["role"] == "tool":
            return ChatReply(last["content"], (), 20, 5, "stop", 0.25)
        if question.startswith("sdk"):
            arguments = json.dumps({"name": question.rstrip("?")})
            return ChatReply("Let me look.", (WrittenCall("lookup", arguments),), 10, 5, "stop", 0.25)
        digest = hashlib.sha256(f"{request.case}/{request.sample}".encode()).digest()
        return ChatReply(
            str(int(question.split()[0]) + 1 + (digest[0] % self.wrong_of == 0)), (), 10, 2, "stop", 0.5
        )


def play(
    suite: Suite, engine: Any, folder: Path, *, key: str = "k", stop: Any = None, **plan: Any
) -> list[SuiteRow]:
    """Every row, with a journal in ``folder``."""
    with Journal(folder / "journal.jsonl", key) as journal:
        return play_suite(
            suite, ChatPlayer(suite, engine), PlayPlan(**{"samples": 1, **plan}), journal=journal, stop=stop
        )


def by_case(rows: Sequence[SuiteRow]) -> dict[str, SuiteRow]:
    return {row.played.case: row for row in rows}


class Saying:
    """An engine that answers by a function of the request."""

    batch_size = 4

    def __init__(self, say: Callable[[ChatRequest], Turn]) -> None:
        self.say = say

    def chat(self, requests: Sequence[ChatRequest], sampling: Sampling) -> list[Turn]:
        return [self.say(request) for request in requests]


if (
    __name__ == "__main__"
):  # a process for a test to kill: plays slowly, with a journal in the folder that it is given
    ROWS = play(small_suite(20), Clerk(pause_seconds=0.1), Path(sys.argv[1]), samples=2, concurrency=2)
    (Path(sys.argv[1]) / "lines").write_bytes(dump_lines(ROWS))
