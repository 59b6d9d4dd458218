"""Judges and the endpoint engine against a real server on a free port that misbehaves by script."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from posttrain.core.errors import ConfigError, StageError
from posttrain.engines.endpoint import EndpointConfig, EndpointEngine, EndpointFailure
from posttrain.engines.judges import agreed, build_judge, letter, rating
from posttrain.engines.judging import (
    EndpointJudgeConfig,
    Judge,
    JudgeRequest,
    PairJudgement,
    PairRequest,
)
from posttrain.engines.records import Sampling

Answer = str | int | tuple[int, Mapping[str, str]] | float
"""A reply's text, a status, a status with headers, or seconds to stay silent."""


class Server:
    """Answers each question by a script: the n-th time it is asked, the n-th answer (the last one again and again)."""

    def __init__(self, script: Callable[[str], list[Answer]]) -> None:
        self.asked: dict[str, int] = {}
        self.bodies: list[dict[str, Any]] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                question = body["messages"][-1]["content"]
                with lock:
                    number = outer.asked[question] = outer.asked.get(question, 0) + 1
                    outer.bodies.append(body | {"authorization": self.headers.get("authorization")})
                answers = script(question)
                self.answer(answers[min(number, len(answers)) - 1])

            def answer(self, answer: Answer) -> None:
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = "too late"
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                data = b"<html>busy</html>"
                if isinstance(answer, str):
                    status = 200
                    choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
                    data = json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode()
                if answer == "GARBAGE":
                    data = b"{not json"
                try:
                    self.send_response(int(status) if not isinstance(status, str) else 200)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except BrokenPipeError:
                    pass  # the client did not wait

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Starter = Callable[[Callable[[str], list[Answer]]], Server]


@pytest.fixture
def start() -> Iterator[Starter]:
    servers: list[Server] = []

    def begin(script: Callable[[str], list[Answer]]) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def endpoint(server: Server, **changes: Any) -> EndpointConfig:
    settings = {"timeout_seconds": 5.0, "max_attempts": 3, "backoff_seconds": 0.01, "concurrency": 4}
    return EndpointConfig.model_validate({"base_url": server.url, "model": "m", **settings, **changes})


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_an_engine_on_a_server(start: Starter) -> None:
    server = start(lambda question: [f"You said {question}."])
    groups = EndpointEngine(endpoint(server)).generate(
        [ask("a"), ask("b")], Sampling(16, 0.7, samples=2, seed=5)
    )
    assert [[c.text for c in group] for group in groups] == [["You said a."] * 2, ["You said b."] * 2]
    assert groups[0][0].tokens == 3
    body = next(body for body in server.bodies if body["messages"][-1]["content"] == "a")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 16, 0.7)
    assert {body["seed"] for body in server.bodies} == {5, 6}


@pytest.mark.parametrize(
    "trouble",
    [[500, "fine"], [503, 500, "fine"], [(429, {"retry-after": "0.02"}), "fine"], ["GARBAGE", "fine"]],
)
def test_passing_trouble_is_waited_out(start: Starter, trouble: list[Answer]) -> None:
    server = start(lambda _: trouble)
    (group,) = EndpointEngine(endpoint(server)).generate([ask("q")], Sampling(8))
    assert group[0].text == "fine"
    assert server.asked["q"] == len(trouble)


def test_what_cannot_be_waited_out_is_said(start: Starter) -> None:
    scripts: dict[str, list[Answer]] = {"down": [500], "key": [401], "slow": [2.5], "good": ["yes"]}
    server = start(lambda question: scripts[question])
    engine = EndpointEngine(endpoint(server, timeout_seconds=1.0, max_attempts=2))
    answers = engine.complete_each([ask(name) for name in scripts], Sampling(8))
    failures = [answer for answer in answers if isinstance(answer, EndpointFailure)]
    assert [f.reason.split(":")[0] for f in failures] == ["HTTP 500", "HTTP 401", "ReadTimeout"]
    assert [f.final for f in failures] == [False, True, False]
    assert not isinstance(answers[3], EndpointFailure)
    assert server.asked == {"down": 2, "key": 1, "slow": 2, "good": 1}
    with pytest.raises(StageError, match="gave no answer: HTTP 500"):
        engine.generate([ask("down")], Sampling(8))


def test_the_key_comes_from_the_environment(start: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(lambda _: ["ok"])
    with pytest.raises(ConfigError, match="POSTTRAIN_TEST_KEY is not set"):
        EndpointEngine(endpoint(server, api_key_env="POSTTRAIN_TEST_KEY"))
    monkeypatch.setenv("POSTTRAIN_TEST_KEY", "secret")
    EndpointEngine(endpoint(server, api_key_env="POSTTRAIN_TEST_KEY")).generate([ask("q")], Sampling(8))
    assert server.bodies[0]["authorization"] == "Bearer secret"


def judge_of(server: Server, **changes: Any) -> Judge:
    style = {key: changes.pop(key) for key in ("style", "prompt") if key in changes}
    config = EndpointJudgeConfig.model_validate({"endpoint": endpoint(server, **changes), **style})
    return build_judge(config, lambda: pytest.fail("no model of the store is wanted"))


def request(name: str, response: str) -> JudgeRequest:
    return JudgeRequest(name, ({"role": "user", "content": "What colour is grass?"},), response)


def test_an_outage_midway_loses_no_sample_and_rejects_none(start: Starter) -> None:
    """500, a timeout and garbage in the middle: every request has its judgement, in order, and failures are None."""

    def script(question: str) -> list[Answer]:
        found = re.search(r"case-(\w+)", question)
        assert found
        return {
            "good": ["Yes"],
            "bad": ["No."],
            "late": [500, "Yes"],
            "down": [500],
            "slow": [2.5],
            "odd": ["Perhaps", "hard to say"],
            "twice": ["Perhaps", "No"],
        }[found[1]]  # type: ignore[return-value]

    names = ["good", "bad", "late", "down", "slow", "odd", "twice", "good"]
    judge = judge_of(start(script), timeout_seconds=1.0, max_attempts=2)
    found = judge.judge([request(name, f"case-{name}") for name in names])
    assert [j.value for j in found] == [1.0, 0.0, 1.0, None, None, None, 0.0, 1.0]
    assert [j.reason for j in found[3:6]] == [
        "judge failed: HTTP 500",
        "judge failed: ReadTimeout",
        "unreadable verdict",
    ]


def test_a_generative_judge_is_read_by_its_last_line(start: Starter) -> None:
    server = start(lambda _: ["Clear and right.\nRating: 2\nOn reflection it is better.\nRating: 10"])
    (found,) = judge_of(server, style="generative").judge([request("a", "Grass is green.")])
    assert found.value == 1.0
    assert "On reflection" in found.reason


def test_pairs_are_asked_in_both_orders(start: Starter) -> None:
    def script(question: str) -> list[Answer]:
        first = question.split("[Reply A]\n")[1].split("\n", maxsplit=1)[0]
        if "biased" in question:
            return ["A"]
        return ["A" if "green" in first else "B"]

    judge = judge_of(start(script))
    asked = ({"role": "user", "content": "What colour is grass?"},)
    pairs = [
        PairRequest("1", asked, "green", "blue"),
        PairRequest("2", asked, "blue", "green"),
        PairRequest("3", asked, "biased one", "biased two"),
    ]
    assert judge.compare(pairs) == [
        PairJudgement(1.0, True),
        PairJudgement(0.0, True),
        PairJudgement(0.5, False),
    ]


def test_a_reply_cannot_fill_places_of_the_prompt(start: Starter) -> None:
    server = start(lambda _: ["Yes"])
    judge_of(server, prompt="Q {question} R {response}").judge([request("a", "{question} {0} {response}")])
    assert (
        server.bodies[0]["messages"][-1]["content"] == "Q What colour is grass? R {question} {0} {response}"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Rating: 1", 0.0),
        ("**Rating: 10**", 1.0),
        ("rating - 4", 1 / 3),
        ("Rating: 11", None),
        ("10", None),
        ("", None),
    ],
)
def test_ratings(text: str, value: float | None) -> None:
    assert rating(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "value"), [("A", 1.0), (" b.", 0.0), ("Reply A is better", 1.0), ("Both", None), ("An A", None)]
)
def test_letters(text: str, value: float | None) -> None:
    assert letter(text) == value


def test_a_failed_order_is_no_verdict() -> None:
    assert agreed((None, "judge failed: HTTP 500"), (1.0, "")).first_wins is None
    assert agreed((1.0, ""), (1.0, "")) == PairJudgement(0.5, False)
