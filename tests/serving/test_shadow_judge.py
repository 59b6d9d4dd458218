"""Pairs of a shadow answer and the user's, and what a judge says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ModelError
from posttrain.engines.judging import PairJudgement, PairRequest
from posttrain.serving.shadow.judge import Pairing, judge_pairs
from tests.serving.control_gateway_world import CONTRACT, STAGES, gateway, make_decision, make_release
from tests.serving.gateway_world import run
from tests.serving.upstreams import Upstream as MockUpstream


def end(name: str, text: Any = "old", **more: Any) -> dict[str, Any]:
    request = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q {name}"}]}
    return {
        "kind": "end",
        "id": name,
        "request": request,
        "response": {"role": "assistant", "content": text},
        **more,
    }


def shadow(name: str, text: Any = "new", **more: Any) -> dict[str, Any]:
    return {"kind": "shadow", "id": f"s-{name}", "of": name, "response": {"content": text}, **more}


@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=8), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_rows_make_the_same_pairs_in_whatever_order_they_come_and_however_often(
    order: list[int], again: list[int], batch: int
) -> None:
    rows = [end(str(number)) for number in range(6)] + [shadow(str(number)) for number in range(6)]
    sent = [rows[index] for index in [*order, *again]]
    pairing, found = Pairing(), []
    for first in range(0, len(sent), batch):
        found += pairing.add(sent[first : first + batch])
    assert sorted((pair.production["id"], pair.shadow["id"]) for pair in found) == [
        (str(number), f"s-{number}") for number in range(6)
    ]


def test_a_share_of_the_pairs_is_chosen_by_request_and_judged_pairs_are_not_judged_again() -> None:
    rows = [row for number in range(2000) for row in (end(str(number)), shadow(str(number)))]
    half = Pairing(sampling=0.5).add(rows)
    assert 880 < len(half) < 1120
    assert [pair.shadow["id"] for pair in Pairing(sampling=0.5).add(rows)] == [
        pair.shadow["id"] for pair in half
    ]
    known = Pairing()
    known.add([{"kind": "verdict", "shadow": "s-1", "of": "1", "id": "x"}])
    assert known.add([end("1"), shadow("1"), end("2"), shadow("2")])[0].shadow["id"] == "s-2"


class Longer:
    """The longer answer wins; it fails where it is asked to."""

    def __init__(self, fails: bool = False) -> None:
        self.asked: list[PairRequest] = []
        self.fails = fails

    def compare(self, requests: Sequence[PairRequest]) -> list[PairJudgement]:
        """See PairJudge."""
        if self.fails:
            raise ModelError("the judge is ill")
        self.asked += requests
        return [
            PairJudgement(0.5, False, "order")
            if len(request.first) == len(request.second)
            else PairJudgement(float(len(request.first) > len(request.second)), True)
            for request in requests
        ]


def test_verdicts_say_who_was_better_and_what_could_not_be_judged() -> None:
    rows = [end("a", "long answer"), end("b", "x"), end("c", "same"), end("d", None), end("e", request=None)]
    rows += [shadow(name, {"a": "s", "b": "longer", "c": "emas"}.get(name, "text")) for name in "abcde"]
    judge = Longer()
    verdicts = {row["of"]: row for row in judge_pairs(judge, "longer", Pairing().add(rows))}
    assert {name: (row["outcome"], row["flipped"]) for name, row in verdicts.items()} == {
        "a": ("production", False),
        "b": ("shadow", False),
        "c": ("tie", True),
        "d": ("unknown", False),
        "e": ("unknown", False),
    }
    assert verdicts["a"]["id"] == "s-a:longer"
    assert [message["role"] for message in judge.asked[0].messages] == ["system", "user"]


def test_a_judge_that_fails_loses_no_pair() -> None:
    verdicts = judge_pairs(Longer(fails=True), "ill", Pairing().add([end("a"), shadow("a")]))
    assert [(row["outcome"], row["detail"]["reason"]) for row in verdicts] == [
        ("unknown", "the judge is ill")
    ]


@pytest.mark.xdist_group("control")
def test_a_judge_behind_a_url_judges_the_shadow_of_a_whole_gateway(tmp_path: Path) -> None:
    async def test() -> None:
        judge = await MockUpstream("judge").start()
        judge.always = {"text": "A"}  # whoever stands first: both orders disagree, so every pair is a tie
        config = {
            "kind": "endpoint",
            "name": "first",
            "judge": {"kind": "endpoint", "endpoint": {"base_url": judge.url, "model": "judge"}},
        }
        async with gateway(tmp_path, judge=config) as place:
            name, model = make_release(place.home, "v2")
            asked = {
                "release": name,
                "contract": CONTRACT,
                "decision": make_decision(place.home, model),
                "stages": STAGES,
                "shadow": {"judge": "first", "minimum_pairs": 3},
                "by": "test",
            }
            rollout = await place.call("POST", "/v1/rollouts", asked)
            await place.call("POST", f"/v1/rollouts/{rollout['id']}/advance", {"by": "test"})
            async with place.load(clients=2):
                verdicts = await place.until(
                    lambda: len(place.rows("verdict")) >= 3 and place.rows("verdict")
                )

                async def enough() -> bool:
                    found = await place.call("GET", f"/v1/rollouts/{rollout['id']}")
                    return not any("judged pairs" in reason for reason in found["advance"])

                await place.until(enough)
            assert {(row["judge"], row["outcome"], row["flipped"]) for row in verdicts} == {
                ("first", "tie", True)
            }
            shadows = {row["id"]: row["of"] for row in place.rows("shadow")}
            assert all(shadows[row["shadow"]] == row["of"] for row in verdicts)
            await asyncio.sleep(0)
        await judge.stop()

    run(test, 120)
