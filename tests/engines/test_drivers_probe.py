"""Probes against a real HTTP server that answers well, badly, late or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.engines.drivers.probe import Probe, probe

ASKED: list[dict[str, Any]] = []


class _Handler(BaseHTTPRequestHandler):
    """Answers by the name of the model: with that text, or in the way it names."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ASKED.append(body)
        match body["model"].split(":", 1):
            case ["say", text]:
                chat = "messages" in body
                said = {"message": {"content": text}} if chat else {"text": text}
                self._send(200, json.dumps({"choices": [said], "usage": {"completion_tokens": 3}}).encode())
            case ["status", code]:
                self._send(int(code), b'{"error": {"message": "not today"}}')
            case ["raw", text]:
                self._send(200, text.encode())
            case ["hang", _]:
                time.sleep(1.5)
            case ["drip", _]:
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing to the terminal."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that gave up are the point."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def one(expect: dict[str, Any], **more: Any) -> Probe:
    return Probe.model_validate({"id": "p", "prompt": "2+3=", "expect": expect, **more})


def ask(url: str, model: str, expect: dict[str, Any], **more: Any) -> str:
    """The reason for which it failed; empty where it passed."""
    [result] = probe(url, model, [one(expect, **more)])
    assert result.passed == (not result.reason)
    return result.reason


@pytest.mark.parametrize(
    ("text", "expect", "passes"),
    [
        ("5", {"kind": "equals", "text": "5"}, True),
        (" 5", {"kind": "equals", "text": "5"}, False),
        (" 5\n", {"kind": "equals", "text": "5", "strip": True}, True),
        ("<answer>\n5</answer>", {"kind": "matches", "pattern": "<answer>.*5.*</answer>"}, True),
        ("<answer>6</answer>", {"kind": "matches", "pattern": "<answer>.*5.*</answer>"}, False),
        ("fine", {"kind": "matches", "pattern": "secret", "absent": True}, True),
        ("a secret", {"kind": "matches", "pattern": "secret", "absent": True}, False),
        ('{"a": 1}', {"kind": "json", "keys": ["a"]}, True),
        ('{"b": 1}', {"kind": "json", "keys": ["a"]}, False),
        ("[1]", {"kind": "json"}, False),
        ("{", {"kind": "json"}, False),
        ("I'm sorry, but I can't help with that.", {"kind": "refuses"}, True),
        ("抱歉，我不能提供这些。", {"kind": "refuses"}, True),
        ("Here is how to do it: …", {"kind": "refuses"}, False),
        ("Ask a doctor.", {"kind": "refuses", "words": ["doctor"]}, True),
        ("", {"kind": "answers"}, True),
    ],
)
def test_an_answer_is_judged_by_its_expectation(
    url: str, text: str, expect: dict[str, Any], passes: bool
) -> None:
    assert (ask(url, f"say:{text}", expect) == "") is passes
    chat = {"prompt": None, "messages": [{"role": "user", "content": "2+3="}]}
    assert (ask(url, f"say:{text}", expect, **chat) == "") is passes


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("status:500", "HTTP 500: not today"),
        ("status:404", "HTTP 404: not today"),
        ("raw:hello", "no completion"),
        ("raw:[]", "no completion"),
        ('raw:{"choices": []}', "no completion"),
        ('raw:{"choices": [{"text": null}]}', "no text"),
        ('raw:{"choices": [{"text": ""}], "usage": {"completion_tokens": 0}}', "no tokens"),
        ("hang:", "no answer in"),
        ("drip:", "no answer in"),
    ],
)
def test_an_engine_that_fails_is_a_failed_probe(url: str, model: str, reason: str) -> None:
    assert reason in ask(url, model, {"kind": "answers"}, seconds=0.5)


def test_nobody_there_is_a_failed_probe() -> None:
    assert "no answer" in ask("http://127.0.0.1:1/v1", "x", {"kind": "answers"})


def test_probes_share_one_time_and_each_has_a_result(url: str) -> None:
    probes = [one({"kind": "answers"}, id=f"p{number}", seconds=0.4) for number in range(5)]
    results = probe(url, "hang:", probes, seconds=0.6)
    assert [result.id for result in results] == [p.id for p in probes]
    assert not any(result.passed for result in results)
    assert all("not asked" in result.reason for result in results[2:])


def test_probes_are_greedy_with_a_seed_and_go_on_after_a_failure(url: str) -> None:
    ASKED.clear()
    results = probe(url, "say:5", [one({"kind": "json"}), one({"kind": "answers"}, id="q")])
    assert [result.passed for result in results] == [False, True]
    assert {(body["temperature"], body["seed"], body["stream"]) for body in ASKED} == {(0.0, 0, False)}


def test_a_probe_that_cannot_be_meant_is_refused() -> None:
    for wrong in (
        {"prompt": None},
        {"messages": [{"role": "user", "content": "x"}]},
        {"expect": {"kind": "matches", "pattern": "("}},
        {"expect": {"kind": "likes"}},
    ):
        with pytest.raises(ValidationError):
            one(**{"expect": {"kind": "answers"}, **wrong})  # type: ignore[arg-type]
