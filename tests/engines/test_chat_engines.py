"""Turns with tools from a real server on a free port and from a real tiny model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from posttrain.engines.chat import ChatFailure, ChatReply, ChatRequest, WrittenCall
from posttrain.engines.chat_engines import EndpointChat, TransformersChat
from posttrain.engines.endpoint import EndpointConfig
from posttrain.engines.model_folder import load_model, load_tokenizer
from posttrain.engines.records import Sampling
from tests.engines.conftest import ADD_TOOL

Answer = Callable[[dict[str, Any]], Any]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], tuple[EndpointChat, list[dict[str, Any]]]]]:
    """A server that answers each body by a function, an engine on it, and the bodies that it was sent."""
    closing: list[Callable[[], None]] = []

    def start(answer: Answer) -> tuple[EndpointChat, list[dict[str, Any]]]:
        bodies: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                bodies.append(body)
                found = answer(body)
                data = json.dumps(found).encode()
                self.send_response(found if isinstance(found, int) else 200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        engine = EndpointChat(
            EndpointConfig(base_url=url, model="m", timeout_seconds=5, max_attempts=2, backoff_seconds=0.01)
        )
        closing.extend([engine.close, server.shutdown, server.server_close])
        return engine, bodies

    yield start
    for close in closing:
        close()


def choice(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    return {
        "choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}],
        "usage": usage,
    }


def request(*messages: dict[str, Any], seed: int = 7, tools: tuple[Any, ...] = (ADD_TOOL,)) -> ChatRequest:
    return ChatRequest("case", 0, messages or ({"role": "user", "content": "2 + 3?"},), tools, seed)


def test_a_server_is_sent_tools_and_its_calls_are_read(serve: Any) -> None:
    calls = [
        {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}},
        {"id": "y", "type": "function", "function": {"name": "add", "arguments": None}},
    ]
    engine, bodies = serve(lambda _: choice({"content": None, "tool_calls": calls}, "tool_calls"))
    (reply,) = engine.chat([request()], Sampling(16, 0.5, 0.9))
    assert isinstance(reply, ChatReply)
    assert reply.calls == (WrittenCall("add", '{"a": 2, "b": 3}'), WrittenCall("add", "{}"))
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.finish) == ("", 11, 3, "stop")
    assert reply.seconds is not None and reply.seconds > 0
    body = bodies[0]
    assert body["tools"] == [ADD_TOOL]
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0.5, 0.9, 7, 16)


def test_a_server_without_tools_gets_none_and_trouble_is_a_failure(serve: Any) -> None:
    engine, bodies = serve(
        lambda body: {"5": choice({"content": "cut"}, "length"), "6": 500, "7": {}}[str(body["seed"])]
    )
    cut, down, strange = engine.chat([request(seed=seed, tools=()) for seed in (5, 6, 7)], Sampling(4))
    assert isinstance(cut, ChatReply) and (cut.text, cut.finish) == ("cut", "length")
    assert down == ChatFailure("HTTP 500")
    assert strange == ChatFailure("the answer is not a chat completion")
    assert all("tools" not in body for body in bodies)


def test_a_real_model_takes_turns_with_tools(folder: Path) -> None:
    engine = TransformersChat(load_model(folder), load_tokenizer(folder), batch_size=3)
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
    history = request(
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    )
    requests = [request(), history, request(tools=())]
    first = engine.chat(requests, Sampling(12, temperature=0))
    assert first[0].prompt_tokens > first[2].prompt_tokens  # type: ignore[union-attr]
    assert [turn.text for turn in first] == [  # type: ignore[union-attr]
        turn.text  # type: ignore[union-attr]
        for turn in engine.chat(requests, Sampling(12, temperature=0))
    ]
    drawn = [engine.chat([request(seed=seed)], Sampling(12))[0].text for seed in (1, 1, 2, 3, 4)]  # type: ignore[union-attr]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_arguments_are_objects_in_the_models_prompt(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    engine = TransformersChat(load_model(folder), tokenizer)
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
    turns = request(
        {"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}
    )
    text = tokenizer.decode(engine._encode(turns))
    assert '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>' in text
