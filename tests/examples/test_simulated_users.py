"""Simulated users: what they ask, how they take an answer, that a seed is the same people again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from posttrain.artifacts.home import open_home
from posttrain.core.errors import UnknownReferenceError
from posttrain.core.settings import Settings
from posttrain.data.prompts import PromptRow
from posttrain.examples.canary import CONTRACT, STAGES, find_models, serve_config
from posttrain.examples.users import Crowd
from posttrain.promotion.grammar import parse_contract
from posttrain.rollouts.records import Stage
from tests.serving.control_gateway_world import gateway
from tests.serving.gateway_world import run

RIGHT = "<think> 2 + 3 = 5 </think> <answer> 5 </answer>"
QUESTIONS = [PromptRow(id="q", question="What is 2 + 3?", answer="5")]


async def visited(place: Any, text: str, count: int) -> Crowd:
    place.old.always = {"text": text}
    crowd = Crowd(f"http://127.0.0.1:{place.control.port}/v1", "m", QUESTIONS, users=20)
    stop = asyncio.Event()
    task = asyncio.create_task(crowd.visit(stop, at_once=4))
    await place.until(lambda: crowd.visits.answered >= count)
    stop.set()
    await task
    return crowd


@pytest.mark.xdist_group("control")
def test_users_leave_when_an_answer_is_wrong_and_stay_when_it_is_right(tmp_path: Path) -> None:
    async def test() -> None:
        async with gateway(tmp_path) as place:
            happy = await visited(place, RIGHT, 60)
            assert happy.visits.failed == 0
            assert happy.visits.right == happy.visits.answered
            assert happy.visits.left <= 3
            sad = await visited(place, RIGHT.replace("5 </answer>", "6 </answer>"), 60)
            assert sad.visits.right == 0
            assert sad.visits.left > 30
            said = place.rows("feedback")
            assert (
                len([row for row in said if row["type"] == "abandon"]) == happy.visits.left + sad.visits.left
            )
            asked = {row["id"]: row["user"] for row in place.rows("end")}
            assert {row["of"] for row in said} <= asked.keys()
            assert 15 < len(set(asked.values())) <= 20

    run(test, 90)


def test_the_story_is_one_that_can_be_told() -> None:
    contract = parse_contract(CONTRACT)
    assert contract.rules[0].text == "canary.abandon_rate.point <= 0.05"
    stages = [Stage.model_validate(stage) for stage in STAGES]
    # The canary stages together are the window that the contract asks for, or it would wait for ever.
    assert sum(s.minimum_requests for s in stages if s.kind == "canary") >= contract.options.canary_min_n
    assert serve_config("RUN", "example-v1", 2).routes[0].engine_for("x").engine == "llama_cpp"


def test_without_a_run_it_says_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(UnknownReferenceError, match="no finished run of r1-tiny") as refused:
        find_models(open_home(Settings(home=tmp_path)))
    assert "posttrain run r1-tiny" in str(refused.value.hint)
