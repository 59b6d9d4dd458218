"""Shadow copies: seen by nobody, in nobody's way."""

from __future__ import annotations

import asyncio
from pathlib import Path

from posttrain.routing.records import Shadow
from posttrain.serving.gateway.config import ShadowConfig
from tests.serving.gateway_world import chat, run, target, world

SHADOW = {"production": target("v1", "a"), "shadow": Shadow(target=target("v2", "s"), share=10_000, salt="x")}


def test_both_see_the_same_request_and_the_copy_has_its_row(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "s", routing=SHADOW) as place:
            body = chat(stream=True, temperature=0.3, tools=None, user="ann")
            reply = await place.ask(body, headers={"x-posttrain-slices": "math"})
            assert "s says" not in reply.body.decode()
            row = (await place.until(lambda: place.rows("shadow")))[0]
            end = place.rows("end")[0]
            assert row["of"] == reply.id and row["id"] != reply.id
            assert (row["lane"], row["target"], row["epoch"], row["upstream"]) == ("shadow", "v2", 1, "s")
            assert row["response"]["content"] == "s says v2@1" and row["finish"] == "stop"
            assert row["prompt_tokens"] == 7 and row["user"] == end["user"] and row["slices"] == ["math"]
            assert end["lane"] == "production"
            copy = place.ups["s"].calls[0].body
            assert "stream" not in copy and "stream_options" not in copy
            assert copy["messages"] == body["messages"] and copy["temperature"] == 0.3
            assert place.worker.stats()["shadow"]["queued"] == 1

    run(test)


def test_a_slow_or_broken_shadow_never_delays_anybody(tmp_path: Path) -> None:
    async def test() -> None:
        shadow = ShadowConfig(queue=4, concurrency=2, seconds=0.4)
        async with world(tmp_path, "a", "s", routing=SHADOW, shadow=shadow) as place:
            place.ups["s"].always = {"delay": 60}
            client = await place.client()
            # Each answer would wait for a minute if it waited for a copy at all: the test would not end in time.
            for _ in range(20):
                assert (await client.ask(chat())).status == 200
            counts = place.worker.stats()["shadow"]
            assert (counts["queued"], counts["dropped"]) == (6, 14)
            await place.until(lambda: place.worker.stats()["shadow"]["failed"] == 6)
            rows = place.rows("shadow")
            assert len(rows) == 6 and all(row["finish"] == "error" and row["error"] for row in rows)
            place.ups["s"].always = {"cut": "at once"}
            assert (await client.ask(chat())).status == 200
            place.ups["s"].always = {"garbage": "json"}
            assert (await client.ask(chat())).status == 200
            await place.until(lambda: len(place.rows("shadow")) == 8)
            assert place.worker.stats()["breakers"] == {"a": "closed", "s": "closed"}, "a breaker of its own"
            assert all(row["finish"] == "stop" for row in place.rows("end"))

    run(test)


def test_a_dead_shadow_with_a_long_queue(tmp_path: Path) -> None:
    async def test() -> None:
        shadow = ShadowConfig(queue=2000, concurrency=1)
        async with world(tmp_path, "a", "s", routing=SHADOW, shadow=shadow) as place:
            place.ups["s"].always = {"delay": 0.5, "status": 500}
            clients = [await place.client() for _ in range(20)]
            for _ in range(30):
                await asyncio.gather(*(client.ask(chat()) for client in clients))
            for handle in place.worker.context.plan.shadow_handles.values():
                for _ in range(10):
                    handle.breaker.failed(1e12)
            await place.until(lambda: len(place.rows("shadow")) == 600)

    run(test)


def test_what_failed_is_not_copied(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "s", routing=SHADOW) as place:
            place.ups["a"].always = {"status": 400}
            await place.ask(chat())
            assert place.worker.stats()["shadow"]["queued"] == 0

    run(test)


def test_a_swap_drops_copies_of_a_shadow_that_is_gone_and_waits_for_those_under_way(tmp_path: Path) -> None:
    async def test() -> None:
        shadow = ShadowConfig(concurrency=1)
        async with world(tmp_path, "a", "s", routing=SHADOW, shadow=shadow) as place:
            drained: list[int] = []
            place.worker.on_drained = drained.append
            place.ups["s"].always = {"delay": 0.3}
            client = await place.client()
            for _ in range(4):
                await client.ask(chat())
            place.worker.swap(place.snapshot(2, production=target("v1", "a")))
            assert place.worker.stats()["shadow"]["dropped"] == 3
            assert drained == [], "a copy under the old epoch is under way"
            await place.until(lambda: drained == [2])
            assert [row["epoch"] for row in place.rows("shadow")] == [1]

    run(test)
