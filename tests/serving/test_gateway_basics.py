"""A worker from end to end: both endpoints, streams, rows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from posttrain.core.buckets import bucket
from posttrain.core.canonical import digest_json
from posttrain.routing.records import Canary
from posttrain.serving.gateway.compiled import is_compiled
from tests.serving.gateway_world import chat, run, target, world


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


def test_completions_whole_and_streamed(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            body = {"model": "m", "prompt": "once"}
            reply = await place.ask(body, "/v1/completions")
            assert reply.json()["choices"][0]["text"] == "a says v1@1"
            reply = await place.ask({**body, "stream": True}, "/v1/completions")
            assert "".join(e["choices"][0]["text"] for e in reply.events[:-1]) == "a says v1@1"
            first, second = place.rows("end")
            assert first["response"] == second["response"] == "a says v1@1"
            assert first["endpoint"] == "completions"
            assert [seen.path for seen in place.ups["a"].calls] == ["/v1/completions"] * 2

    run(test)


def test_tools_and_json_mode_pass_through_and_are_put_together(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
            whole = await place.ask(chat(tools=tools, tool_choice="auto"))
            streamed = await place.ask(chat(tools=tools, stream=True))
            assert place.ups["a"].calls[0].body["tools"] == tools
            assert whole.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "add"
            assert streamed.whole
            first, second = place.rows("end")
            assert first["response"] == second["response"]
            assert first["finish"] == second["finish"] == "tool_calls"
            reply = await place.ask(chat(response_format={"type": "json_object"}, logprobs=True, seed=3))
            assert reply.json()["choices"][0]["message"]["content"] == '{"answer": 3}'
            assert (
                place.ups["a"].calls[2].body["logprobs"] is True and place.ups["a"].calls[2].body["seed"] == 3
            )

    run(test)


def test_sampling_defaults_fill_what_is_open(tmp_path: Path) -> None:
    async def test() -> None:
        ready = target("v1", sampling={"temperature": 0.2, "max_tokens": 9, "top_k": 5})
        async with world(tmp_path, routing={"production": ready}) as place:
            await place.ask(chat(temperature=1, max_completion_tokens=3))
            await place.ask(chat())
            first, second = (seen.body for seen in place.ups["a"].calls)
            assert first["temperature"] == 1 and "max_tokens" not in first and first["top_k"] == 5
            assert (second["temperature"], second["max_tokens"]) == (0.2, 9)
            assert place.rows("end")[1]["sampling"] == digest_json(
                {"temperature": 0.2, "max_tokens": 9, "top_k": 5}
            )

    run(test)


def test_prices_and_digests_are_on_the_row(tmp_path: Path) -> None:
    async def test() -> None:
        digests = {name: digest_json(name) for name in ("release", "adapter", "template")}
        ready = target("v1", usd_per_1k_prompt_tokens=1.0, usd_per_1k_completion_tokens=2.0, **digests)
        async with world(tmp_path, routing={"production": ready, "rollout": "r-1"}) as place:
            await place.ask(chat())
            end = place.rows("end")[0]
            assert end["cost_usd"] == pytest.approx(0.017)
            assert {name: end[name] for name in digests} == digests
            assert (end["target"], end["rollout"], end["lane"]) == ("v1", "r-1", "production")

    run(test)


def test_the_unit_of_a_route_decides_who_stays(tmp_path: Path) -> None:
    async def test() -> None:
        canary = Canary(target=target("v2"), share=5000, salt="s")
        async with world(tmp_path, routing={"canary": canary, "unit": "conversation"}) as place:
            client = await place.client()
            for number in range(30):
                for user in ("ann", "bob"):
                    headers = {"x-posttrain-conversation": f"c{number}", "x-posttrain-user": user}
                    await client.ask(chat(), headers=headers)
            rows = place.rows("end")
            arms = {row["arm"] for row in rows}
            assert arms == {"control", "candidate"}
            by_conversation = {(row["conversation"], row["arm"]) for row in rows}
            assert len(by_conversation) == 30
            # The log alone is enough to draw everybody's bucket again.
            want = ["candidate" if bucket("s", row["conversation"]) < 5000 else "control" for row in rows]
            assert [row["arm"] for row in rows] == want
            assert all((row["lane"] == "canary") == (row["arm"] == "candidate") for row in rows)

    run(test)


def test_without_a_user_every_request_is_its_own_unit(tmp_path: Path) -> None:
    async def test() -> None:
        canary = Canary(target=target("v2"), share=5000, salt="s")
        async with world(tmp_path, routing={"canary": canary}) as place:
            client = await place.client()
            for _ in range(40):
                await client.ask(chat())
            for _ in range(5):
                await client.ask(chat(safety_identifier="ann", user="bob"))
            rows = place.rows("end")
            assert len({row["arm"] for row in rows[:40]}) == 2
            assert all((bucket("s", row["unit"]) < 5000) == (row["arm"] == "candidate") for row in rows[:40])
            assert len({(row["arm"], row["user"]) for row in rows[40:]}) == 1

    run(test)


def test_request_ids(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            given = {"x-request-id": "my-own-id-1"}
            assert (await place.ask(chat(), headers=given)).id == "my-own-id-1"
            assert place.ups["a"].calls[0].headers["x-request-id"] == "my-own-id-1"
            again = await place.ask(chat(), headers=given)
            assert again.id != "my-own-id-1", "two requests never share a row"
            assert (await place.ask(chat(), headers={"x-request-id": "a b\tc"})).id != "a b\tc"
            made = [(await place.ask(chat())).id for _ in range(5)]
            assert made == sorted(set(made))
            refused = await place.ask({"model": "nobody"}, headers={"x-request-id": "my-own-id-2"})
            assert refused.id == "my-own-id-2"
            assert len({row["id"] for row in place.rows("end")}) == 8

    run(test)


def test_pages(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            await place.ask(chat(user="u"))
            assert [item["id"] for item in (await place.get("/v1/models")).json()["data"]] == ["m"]
            assert (await place.get("/v1/models/m")).json()["object"] == "model"
            assert (await place.get("/v1/models/x")).code == "model_not_found"
            health = await place.get("/healthz?x=1")
            assert (health.status, health.json()["status"], health.json()["epoch"]) == (200, "serving", 1)
            text = (await place.get("/metrics")).body.decode()
            own = 'route="m",lane="production",arm="",target="v1"'
            assert f'posttrain_gateway_requests_total{{{own},status="200"}} 1' in text
            assert f'posttrain_gateway_latency_seconds_bucket{{{own},le="+Inf"}} 1' in text
            assert 'posttrain_gateway_breaker_state{upstream="a",lane="user"} 0' in text
            assert "posttrain_gateway_rss_bytes" in text
            assert f"posttrain_gateway_compiled {int(is_compiled())}\n" in text
            document = (await place.get("/openapi.json")).json()
            assert document["openapi"] == "3.1.0"
            client = await place.client()
            await client.send(b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200 OK" in await client.reader.readuntil(b"\r\n\r\n")
            assert (await client.ask(chat())).status == 200

    run(test)


def test_what_cannot_be_meant_is_refused_in_openais_form(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            cases = [
                (b"{no json", 400, "invalid_json"),
                (b"", 400, "invalid_json"),
                (b"[1]", 400, "invalid_json"),
                (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', 400, "invalid_json"),
                (
                    rb'{"model": "m", "messages": [{"role": "user", "content": "\ud800"}]}',
                    400,
                    "invalid_json",
                ),
                (b"[" * 100_000, 400, "invalid_json"),
                (chat(deep=nested(300)), 400, "invalid_json"),
                ({"messages": []}, 400, None),
                ({"model": 3, "messages": []}, 400, None),
                ({"model": "m"}, 400, None),
                ({"model": "m", "messages": "hi"}, 400, None),
                (chat(stream="yes"), 400, None),
                (chat(model="gpt-5"), 404, "model_not_found"),
            ]
            client = await place.client()
            for body, status, code in cases:
                reply = await client.ask(body)
                assert (reply.status, reply.code) == (status, code), (
                    body[:60] if isinstance(body, bytes) else body
                )
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
            assert (await client.ask({"model": "m"}, "/v1/completions")).status == 400
            assert (await client.ask(chat(), "/v1/nothing")).code == "unknown_url"
            assert (await client.ask(chat(), "/v1/models")).status == 405
            assert (await client.ask(None, method="GET")).status == 405
            assert (await client.ask(b"\x1f\x8b", headers={"content-encoding": "gzip"})).status == 415
            assert place.ups["a"].calls == []
            # What is deeper than can be written again was accepted before that was known: it has its row.
            assert [row["status"] for row in place.rows("end")] == [400]

    run(test)


def test_a_snapshot_is_swapped_under_load_without_a_failed_request(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "b") as place:
            drained: list[int] = []
            place.worker.on_drained = drained.append
            running = True
            counts = {"whole": 0}

            async def ask(number: int) -> None:
                client = await place.client()
                while running:
                    body = chat(stream=number % 2 == 0, mock={"delay": 0.003})
                    reply = await client.ask(body)
                    assert reply.status == 200 and reply.whole
                    counts["whole"] += 1

            tasks = [asyncio.create_task(ask(number)) for number in range(8)]
            for epoch in range(2, 22):
                ready = target(f"v{epoch}", "ab"[epoch % 2])
                place.worker.swap(place.snapshot(epoch, production=ready))
                await asyncio.sleep(0.02)
            running = False
            await asyncio.gather(*tasks)
            rows = place.rows("end")
            assert len(rows) == counts["whole"] == len(place.rows("begin"))
            for row in rows:
                wanted = "v1" if row["epoch"] == 1 else f"v{row['epoch']}"
                assert row["target"] == wanted and row["response"]["content"].endswith(f"says {wanted}@1")
            assert len({row["epoch"] for row in rows}) > 10
            assert drained == sorted(set(drained)) and drained[-1] == 21

    run(test)


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value
