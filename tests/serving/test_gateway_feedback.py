"""Feedback: its kinds, its identity, and when it comes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.serving.gateway_world import chat, run, world

PATH = "/v1/feedback"


@pytest.mark.parametrize(
    "said",
    [
        {"type": "thumbs", "value": 1},
        {"type": "thumbs", "value": -1, "text": "wrong"},
        {"type": "rating", "value": 5},
        {"type": "comment", "text": "fine"},
        {"type": "better_answer", "text": "4"},
        {"type": "abandon"},
        {"type": "incident", "text": "leaked"},
        {"type": "event", "name": "checkout", "value": 12.5, "data": {"currency": "EUR"}},
    ],
    ids=lambda said: said["type"],
)
def test_each_kind_is_a_row_that_names_the_request(tmp_path: Path, said: dict[str, Any]) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            asked = await place.ask(chat())
            reply = await place.ask({"request_id": asked.id, **said}, PATH)
            assert reply.status == 200
            row = place.rows("feedback")[0]
            assert row["of"] == asked.id and row["id"] == reply.json()["id"] and row["v"] == 1
            for name, value in said.items():
                assert row[name] == value

    run(test)


def test_the_same_feedback_again_is_the_same(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            body = {"request_id": "request-1", "type": "thumbs", "value": 1}
            first, again = [(await place.ask(body, PATH)).json()["id"] for _ in range(2)]
            assert first == again
            others = [{**body, "value": -1}, {**body, "request_id": "request-2"}, {**body, "text": "x"}]
            assert len({first, *[(await place.ask(other, PATH)).json()["id"] for other in others]}) == 4
            own = {**body, "id": "mine-1"}
            assert [(await place.ask(own, PATH)).json()["id"] for _ in range(2)] == ["mine-1"] * 2
            assert (await place.ask({**own, "value": -1}, PATH)).json()["id"] == "mine-1"

    run(test)


def test_it_may_come_before_the_answer_has_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            client = await place.client()
            asked = asyncio.create_task(
                client.ask(chat(mock={"delay": 0.2}), headers={"x-request-id": "early-request"})
            )
            await place.until(lambda: place.rows("begin"))
            reply = await place.ask({"request_id": "early-request", "type": "abandon"}, PATH)
            assert reply.status == 200 and (await asked).id == "early-request"
            assert [row["kind"] for row in place.rows()] == ["begin", "feedback", "end"]

    run(test)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"type": "thumbs", "value": 1},
        {"request_id": "r", "type": "nonsense"},
        {"request_id": "r", "type": ["thumbs"]},
        {"request_id": "r", "type": "thumbs"},
        {"request_id": "r", "type": "thumbs", "value": 2},
        {"request_id": "r", "type": "thumbs", "value": True},
        {"request_id": "r", "type": "rating", "value": 4.5},
        {"request_id": "r", "type": "rating", "value": 0},
        {"request_id": "r", "type": "comment"},
        {"request_id": "r", "type": "comment", "text": "  "},
        {"request_id": "r", "type": "event"},
        {"request_id": "r", "type": "event", "name": "a b"},
        {"request_id": "r", "type": "abandon", "data": "x"},
        {"request_id": "r", "type": "abandon", "data": {"x": "y" * 70_000}},
        {"request_id": "r", "type": "abandon", "more": 1},
        {"request_id": "r\n", "type": "abandon"},
        {"request_id": "r", "id": "", "type": "abandon"},
        b"{",
    ],
    ids=lambda body: str(body)[:60],
)
def test_what_is_no_feedback_is_refused(tmp_path: Path, body: Any) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            reply = await place.ask(body, PATH)
            assert reply.status == 400 and reply.json()["error"]["type"] == "invalid_request_error"
            assert place.rows() == []

    run(test)
