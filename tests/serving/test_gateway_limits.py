"""Back-pressure, draining, a full disk, strict durability."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.serving.gateway.config import LimitsConfig, RetryConfig
from posttrain.traffic.config import TrafficConfig
from tests.serving.gateway_world import chat, read_rows, request_bytes, run, world


def test_above_the_limit_requests_are_shed(tmp_path: Path) -> None:
    async def test() -> None:
        limits = LimitsConfig(max_in_flight=2, policy="shed", retry_after_seconds=3)
        async with world(tmp_path, limits=limits) as place:
            clients = [await place.client() for _ in range(6)]
            replies = await asyncio.gather(*(c.ask(chat(mock={"delay": 0.2})) for c in clients))
            refused = [reply for reply in replies if reply.status == 429]
            assert sorted(reply.status for reply in replies) == [200] * 2 + [429] * 4
            assert refused[0].code == "overloaded" and refused[0].headers["retry-after"] == "3"
            assert len(place.ups["a"].calls) == 2
            shed = [row for row in place.rows("end") if row["finish"] == "shed"]
            assert len(shed) == 4 and all("request" not in row and row["status"] == 429 for row in shed)
            assert len(place.rows("begin")) == 2
            assert place.worker.stats()["targets"][0]["shed"] == 4
            assert (await clients[0].ask(chat())).status == 200

    run(test)


def test_above_the_limit_requests_wait_in_order_and_not_for_ever(tmp_path: Path) -> None:
    async def test() -> None:
        limits = LimitsConfig(max_in_flight=1, queue=3, queue_seconds=1.5)
        async with world(tmp_path, limits=limits) as place:
            clients = [await place.client() for _ in range(6)]
            tasks = []
            for number, client in enumerate(clients):
                delay = {0: 0.6, 2: 3.0}.get(number, 0.05)
                tasks.append(asyncio.create_task(client.ask(chat(str(number), mock={"delay": delay}))))
                if number == 0:
                    await place.until(lambda: place.ups["a"].calls)
                elif number <= 3:
                    await place.until(lambda waiting=number: place.worker.stats()["queue_depth"] == waiting)
            replies = await asyncio.gather(*tasks)
            # The first is answered, 1 and 2 after it; 3 waits too long behind 2; 4 and 5 found the queue full.
            assert [reply.status for reply in replies] == [200, 200, 200, 429, 429, 429]
            order = [seen.body["messages"][0]["content"] for seen in place.ups["a"].calls]
            assert order == ["0", "1", "2"]
            ends = {row["id"]: row for row in place.rows("end")}
            assert ends[replies[1].id]["queue_ms"] > 20
            assert ends[replies[3].id]["finish"] == "shed"
            assert len(ends) == 6 and len(place.rows("begin")) == 4

    run(test)


def test_a_client_that_leaves_the_queue_frees_its_place(tmp_path: Path) -> None:
    async def test() -> None:
        limits = LimitsConfig(max_in_flight=1, queue=1)
        async with world(tmp_path, limits=limits) as place:
            first, second, third = [await place.client() for _ in range(3)]
            slow = asyncio.create_task(first.ask(chat(mock={"delay": 0.3})))
            await place.until(lambda: place.ups["a"].calls)
            await second.send(request_bytes(chat()))
            await place.until(lambda: place.worker.stats()["queue_depth"] == 1)
            second.close()
            await place.until(lambda: place.worker.stats()["queue_depth"] == 0)
            assert (await third.ask(chat())).status == 200
            assert (await slow).status == 200
            assert [row["finish"] for row in place.rows("end")] == ["cancelled", "stop", "stop"]

    run(test)


def test_a_long_queue_that_fails_at_once_is_no_deep_recursion(tmp_path: Path) -> None:
    async def test() -> None:
        limits = LimitsConfig(max_in_flight=1, queue=600)
        async with world(tmp_path, limits=limits, retries=RetryConfig(tries=1)) as place:
            clients = [await place.client() for _ in range(500)]
            place.ups["a"].always = {"delay": 0.5, "cut": "at once"}
            tasks = [asyncio.create_task(client.ask(chat())) for client in clients]
            await place.until(lambda: place.worker.stats()["queue_depth"] == 499)
            for handle in place.worker.context.plan.handles.values():
                for _ in range(10):
                    handle.breaker.failed(1e12)
            replies = await asyncio.gather(*tasks)
            assert {reply.status for reply in replies} == {502, 503}
            assert len(place.rows("end")) == 500

    run(test)


def test_draining_ends_what_is_in_flight_and_takes_nothing_new(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            up = place.ups["a"]
            idle, whole, streamed = [await place.client() for _ in range(3)]
            assert (await idle.ask(chat())).headers.get("connection") is None
            first = asyncio.create_task(whole.ask(chat(mock={"delay": 0.3})))
            second = asyncio.create_task(streamed.ask(chat(stream=True, mock={"gap": 0.05})))
            await place.until(lambda: len(up.calls) == 3)
            stop = asyncio.create_task(place.worker.stop(5))
            assert await idle.at_end()
            with pytest.raises(OSError):
                await place.client()
            reply = await first
            assert reply.status == 200 and reply.headers["connection"] == "close"
            assert (await second).whole
            await stop
            assert await whole.at_end() and await streamed.at_end()
            assert [row["finish"] for row in place.rows("end")] == ["stop"] * 3

    run(test)


def test_what_outlasts_the_grace_is_cut_off_and_has_its_row(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            client = await place.client()
            task = asyncio.create_task(client.ask(chat(mock={"delay": 30})))
            await place.until(lambda: place.ups["a"].calls)
            await place.worker.stop(0.1)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await task
            assert [row["finish"] for row in place.rows("end")] == ["cancelled"]

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_strict_ends_an_answer_only_when_its_row_is_on_the_disk(tmp_path: Path, stream: bool) -> None:
    async def test() -> None:
        traffic = TrafficConfig(durability="strict")
        async with world(tmp_path, traffic=traffic) as place:
            log = place.worker.context.log
            client = await place.client()
            for _ in range(5):
                reply = await client.ask(chat(stream=stream))
                assert reply.status == 200
                # Nothing was appended since this answer's row, so all there is must be synced.
                assert log.backlog_bytes == 0
                assert place.rows("end")[-1]["id"] == reply.id
            reply = await client.ask({"request_id": reply.id, "type": "thumbs", "value": 1}, "/v1/feedback")
            assert reply.status == 200 and log.backlog_bytes == 0

    run(test)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that is full: no file of this process may grow beyond ``size``."""
    import signal

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("policy", ["refuse", "shed"])
def test_a_full_disk_is_handled_as_configured(tmp_path: Path, policy: Any) -> None:
    async def test() -> None:
        async with world(tmp_path, traffic=TrafficConfig(on_full=policy)) as place:
            client = await place.client()
            assert (await client.ask(chat())).status == 200
            await place.until(lambda: place.worker.context.log.backlog_bytes == 0)
            size = sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
            with file_size_limit(size + 10):
                reply = await client.ask(chat())
                health = await place.get("/healthz")
                if policy == "refuse":
                    assert (reply.status, reply.code) == (503, "log_unavailable")
                    assert len(place.ups["a"].calls) == 1
                    assert (health.status, health.json()["status"]) == (503, "refusing")
                else:
                    assert reply.status == 200
                    assert (health.status, health.json()["lost_rows"]) == (200, 2)
                assert "no space left" in health.json()["log"]
                feedback = {"request_id": "some-request", "type": "thumbs", "value": 1}
                status = (await client.ask(feedback, "/v1/feedback")).status
                assert status == (503 if policy == "refuse" else 200)
            assert (await client.ask(chat())).status == 200
            assert (await place.get("/healthz")).json()["log"] == "ok"
            assert len(place.rows("end")) == 2
            assert place.worker.stats()["in_flight"] == 0

    run(test)


def test_a_disk_that_fills_while_it_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            whole, streamed = await place.client(), await place.client()
            one = asyncio.create_task(whole.ask(chat(mock={"delay": 0.3})))
            two = asyncio.create_task(streamed.ask(chat(stream=True, mock={"gap": 0.1})))
            await place.until(lambda: len(place.rows("begin")) == 2)
            size = sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
            with file_size_limit(size + 10):
                assert (await one).status == 503
                reply = await two
                assert not reply.whole and reply.events[-1]["error"]["code"] == "log_unavailable"
            assert place.rows("end") == []

    run(test)


@pytest.mark.parametrize(
    ("traffic", "kept"),
    [
        (TrafficConfig(content="off"), 0),
        (TrafficConfig(content="sampled", content_share=5000), None),
    ],
    ids=["off", "sampled"],
)
def test_content_is_kept_as_configured(tmp_path: Path, traffic: TrafficConfig, kept: int | None) -> None:
    async def test() -> None:
        async with world(tmp_path, traffic=traffic) as place:
            client = await place.client()
            for number in range(40):
                for _ in range(2):
                    await client.ask(chat("secret words", user=f"u{number}"))
            rows = place.rows("end")
            full = [row for row in rows if row["content"] == "full"]
            assert len(full) == (kept if kept is not None else len(full))
            if kept is None:
                assert 10 < len(full) < 70
                assert len({(row["user"], row["content"]) for row in rows}) == 40, "a user is in or out"
            for row in rows:
                assert ("request" in row) == ("response" in row) == (row["content"] == "full")
            if not full:
                assert b"secret words" not in b"".join(path.read_bytes() for path in tmp_path.glob("*.seg"))

    run(test)


def test_a_clean_stop_loses_no_row(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            clients = [await place.client() for _ in range(8)]
            answered: list[str] = []

            async def ask(client: Any) -> None:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    while True:
                        answered.append((await client.ask(chat(stream=len(answered) % 2 == 0))).id)

            tasks = [asyncio.create_task(ask(client)) for client in clients]
            await asyncio.sleep(0.3)
            await place.worker.stop(5)
            await asyncio.gather(*tasks)
            rows = read_rows(tmp_path)
            ends = [row["id"] for row in rows if row["kind"] == "end"]
            begins = [row["id"] for row in rows if row["kind"] == "begin"]
            assert sorted(ends) == sorted(begins) == sorted(answered) and len(ends) > 20

    run(test)
