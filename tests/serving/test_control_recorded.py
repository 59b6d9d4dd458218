"""A route on which people answer, and a candidate beside them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import DataError
from posttrain.engines.drivers.recorded_server import read_answers
from tests.serving.control_gateway_world import CONTRACT, gateway, make_decision, make_release
from tests.serving.gateway_world import Client, chat, run

pytestmark = pytest.mark.xdist_group("control")


def recorded(tmp_path: Path) -> dict[str, Any]:
    answers = tmp_path / "answers.jsonl"
    rows = [
        {"question": "When do you open?", "answer": "At nine."},
        {"question": "hello", "answer": "Good day."},
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"recorded": [{"name": "people", "answers": str(answers)}]}


def test_people_answer_where_no_model_serves_yet_and_a_candidate_is_compared_with_them(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with gateway(tmp_path, production={"upstream": "people"}, **recorded(tmp_path)) as place:
            name, model = make_release(place.home, "v1")
            asked = {
                "release": name,
                "contract": CONTRACT,
                "decision": make_decision(place.home, model),
                "stages": [
                    {"kind": "gated", "share": 0},
                    {"kind": "shadow", "share": 10_000, "minimum_requests": 3},
                    {"kind": "production", "share": 10_000},
                ],
                "auto_advance": False,
                "by": "test",
            }
            rollout = await place.call("POST", "/v1/rollouts", asked)
            await place.call("POST", f"/v1/rollouts/{rollout['id']}/advance", {"by": "test"})
            client = Client(*await asyncio.open_connection("127.0.0.1", place.control.port))
            said = [
                (await client.ask(chat(text, user=f"u{number}"))).json()["choices"][0]["message"]["content"]
                for number, text in enumerate(["When do you  open?", "HELLO", "when do you open?"])
            ]
            assert said == ["At nine.", "Good day.", "At nine."]
            unknown = await client.ask(chat("Who are you?", user="u9"))
            assert (unknown.status, unknown.code) == (404, "no_recorded_answer")
            streamed = await client.ask(chat("hello", user="u1", stream=True))
            assert streamed.events[-1] == "[DONE]"
            assert streamed.events[0]["choices"][0]["delta"]["content"] == "Good day."
            pairs = await place.until(lambda: len(place.rows("shadow")) >= 4 and place.rows("shadow"))
            assert {row["target"] for row in pairs} == {"v1"}
            ends = {row["id"]: row for row in place.rows("end")}
            assert {ends[row["of"]]["target"] for row in pairs} == {"people/m"}
            client.close()

    run(test, 90)


def test_a_file_that_holds_no_answers_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n{"question": "c"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_answers(file)
    file.write_text("\n")
    with pytest.raises(DataError, match="no answers"):
        read_answers(file)
