"""Streams however an upstream cuts them, and clients that leave or do not read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from posttrain.serving.gateway.config import LimitsConfig
from tests.serving.gateway_world import chat, request_bytes, run, world


@pytest.mark.parametrize(
    "how",
    [
        {"pieces": 1},
        {"pieces": 7},
        {"crlf": True},
        {"crlf": True, "pieces": 3},
        {"framing": "close"},
        {"chunks": 40},
        {"done": False},
        {"usage": False},
    ],
    ids=str,
)
def test_a_stream_is_the_same_however_it_comes(tmp_path: Path, how: dict[str, Any]) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            text = "The quick brown fox 跳过 the lazy dog \\n \r\n\n [DONE] data: x"
            reply = await place.ask(chat(stream=True, mock={"text": text, **how}))
            assert reply.whole and reply.status == 200
            events = [event for event in reply.events if event != "[DONE]"]
            got = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
            assert got == text
            assert (reply.events[-1] == "[DONE]") == how.get("done", True)
            assert all(event["choices"] for event in events)
            end = place.rows("end")[0]
            assert end["response"]["content"] == text and end["finish"] == "stop"
            assert end.get("prompt_tokens") == (None if how.get("usage") is False else 7)

    run(test)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("pieces", [None, 1])
def test_whole_answers_of_any_framing(tmp_path: Path, framing: str, pieces: int | None) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            client = await place.client()
            for _ in range(3):
                reply = await client.ask(chat(mock={"framing": framing, "pieces": pieces}))
                assert reply.json()["choices"][0]["message"]["content"] == "a says v1@1"
            assert place.ups["a"].connections == (3 if framing == "close" else 1)

    run(test)


def test_old_clients_get_a_stream_that_ends_with_the_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            client = await place.client()
            await client.send(request_bytes(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
            reply = await client.reply()
            assert "transfer-encoding" not in reply.headers and reply.events[-1] == "[DONE]"

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_the_upstream(tmp_path: Path, stream: bool) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            up = place.ups["a"]
            client = await place.client()
            await client.send(
                request_bytes(chat(stream=stream, mock={"delay": 0.05, "chunks": 11, "times": 9, "gap": 0.3}))
            )
            await place.until(lambda: up.calls)
            if stream:
                await client.reader.readuntil(b"a sa")
            client.close()
            end = (await place.until(lambda: place.rows("end")))[0]
            assert end["finish"] == "cancelled" and end["status"] == (200 if stream else 0)
            assert ("response" in end) and (not stream or end["response"]["content"])
            await place.until(lambda: not up.open)
            assert not up.calls[0].finished
            assert place.worker.stats()["in_flight"] == 0
            assert place.worker.stats()["targets"][0]["cancelled"] == 1
            assert place.worker.stats()["breakers"] == {"a": "closed"}

    run(test)


def test_a_client_that_does_not_read_holds_the_upstream_back_and_is_cut_off(tmp_path: Path) -> None:
    async def test() -> None:
        limits = LimitsConfig(write_seconds=0.5)
        async with world(tmp_path, limits=limits, upstream={"idle_seconds": 0.2}) as place:
            up = place.ups["a"]
            client = await place.client()
            client.writer.transport.pause_reading()
            await client.send(request_bytes(chat(stream=True, mock={"times": 5_000_000, "chunks": 600})))
            end = (await place.until(lambda: place.rows("end")))[0]
            assert end["finish"] == "cancelled"
            assert not up.calls[0].finished, "the upstream was not read to its end"
            assert len(end["response"]["content"]) < 55_000_000

    run(test)


def test_a_slow_reader_gets_everything(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, upstream={"idle_seconds": 0.2}) as place:
            client = await place.client()
            client.writer.transport.pause_reading()
            how = {"text": "x", "times": 20_000_000, "chunks": 200}
            await client.send(request_bytes(chat(stream=True, mock=how)))
            await asyncio.sleep(0.6)
            client.writer.transport.resume_reading()
            reply = await client.reply()
            assert reply.whole and len(reply.body) > 20_000_000
            assert place.rows("end")[0]["finish"] == "stop"

    run(test)


@pytest.mark.parametrize(
    "how", [{"cut": "in body"}, {"garbage": "event"}, {"gap": 5, "chunks": 2}, {"error event": True}], ids=str
)
def test_a_stream_that_breaks_says_so_and_has_its_row(tmp_path: Path, how: dict[str, Any]) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "b", upstream={"idle_seconds": 0.15}) as place:
            reply = await place.ask(chat(stream=True, mock=how))
            end = place.rows("end")[0]
            assert end["finish"] == "error" and end["error"] and end["status"] == 200
            assert end["tries"] == 1 and not place.ups["b"].calls, "no second try after the first byte"
            assert any("error" in event for event in reply.events if event != "[DONE]")
            if "error event" not in how:
                assert not reply.whole and "[DONE]" not in reply.events
            assert place.worker.stats()["targets"][0]["errors"] == 1

    run(test)
