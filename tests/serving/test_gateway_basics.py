"""A worker from end to end: both endpoints, streams, rows."""

from __future__ import annotations

import time
from pathlib import Path

from tests.serving.gateway_world import chat, run, world


def test_a_chat_is_answered_and_logged(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            before = int(time.time() * 1000)
            reply = await place.ask(
                chat("2+2?", temperature=0.5, user="ann", custom={"x": [1, None]}),
                headers={"x-posttrain-slices": "math, easy,b@d", "x-posttrain-conversation": "c1"},
            )
            assert reply.status == 200
            assert reply.json()["choices"][0]["message"]["content"] == "a says v1@1"
            (seen,) = place.ups["a"].calls
            assert seen.path == "/v1/chat/completions"
            assert seen.body["custom"] == {"x": [1, None]} and seen.body["model"] == "v1@1"
            begin, end = place.rows()
            assert begin["kind"] == "begin" and end["kind"] == "end"
            shared = (
                "id",
                "at_ms",
                "worker",
                "epoch",
                "model",
                "lane",
                "endpoint",
                "user",
                "conversation",
                "slices",
            )
            assert {name: begin[name] for name in shared} == {name: end[name] for name in shared}
            assert end["id"] == reply.id
            assert before <= end["at_ms"] <= int(time.time() * 1000)
            assert (end["status"], end["finish"], end["upstream"], end["tries"]) == (200, "stop", "a", 1)
            assert (end["prompt_tokens"], end["completion_tokens"], end["cached_tokens"]) == (7, 5, 2)
            assert end["slices"] == ["math", "easy"]
            assert end["request"]["messages"][0]["content"] == "2+2?" and end["request"]["model"] == "m"
            assert end["response"] == {"role": "assistant", "content": "a says v1@1"}
            assert "ann" not in str(begin) and end["user"] != end["conversation"]
            assert 0 < end["first_ms"] <= end["latency_ms"]

    run(test)


def test_a_stream_is_passed_on_and_its_usage_withheld(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            reply = await place.ask(chat(stream=True))
            assert reply.headers["content-type"].startswith("text/event-stream") and reply.whole
            assert reply.events[-1] == "[DONE]"
            assert not any(event.get("usage") for event in reply.events[:-1])
            text = "".join(
                choice["delta"].get("content") or ""
                for event in reply.events[:-1]
                for choice in event["choices"]
            )
            assert text == "a says v1@1"
            assert place.ups["a"].calls[0].body["stream_options"] == {"include_usage": True}
            end = place.rows("end")[0]
            assert end["response"]["content"] == text and end["stream"] is True
            assert (end["prompt_tokens"], end["finish"]) == (7, "stop")

            reply = await place.ask(chat(stream=True, stream_options={"include_usage": True}))
            assert reply.events[-2]["usage"]["prompt_tokens"] == 7

    run(test)
