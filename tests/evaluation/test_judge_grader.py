"""The ``llm_judge`` grader against a real server: yes, no, an answer that cannot be read, an outage."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from posttrain.environments import Answer, Case
from posttrain.evaluation.graders import build_grader


class Judge(BaseHTTPRequestHandler):
    """Says what the reply asks it to say; ``500`` is an outage."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = body["messages"][-1]["content"].split("SAY ")[1].split("\n")[0]
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}).encode()
        self.send_response(500 if said == "500" else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("style", "said", "passed", "value"),
    [
        ("pointwise", "Yes", True, 1.0),
        ("pointwise", "No.", False, 0.0),
        ("pointwise", "Well, it depends", None, None),
        ("pointwise", "500", None, None),
        ("generative", "Rating: 10", True, 1.0),
        ("generative", "Rating: 1", False, 0.0),
        ("generative", "no rating", None, None),
    ],
)
def test_a_judge_by_endpoint(
    url: str, style: str, said: str, passed: bool | None, value: float | None
) -> None:
    endpoint = {"base_url": url, "model": "m", "max_attempts": 2, "backoff_seconds": 0.01}
    grader = build_grader(
        {"kind": "llm_judge", "judge": {"kind": "endpoint", "style": style, "endpoint": endpoint}}
    )
    case = Case("c", "alone", ({"role": "user", "content": "Is it right?"},))
    grade = grader.grade(case, Answer(f"SAY {said}"))
    assert grade.passed is passed, grade
    assert grade.metrics == {"llm_judge_pass": passed, "llm_judge_value": value}
    assert grade.passed is not None or grade.reason
