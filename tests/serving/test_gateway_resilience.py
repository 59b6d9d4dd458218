"""Upstreams that fail: tries, fallbacks, the budget, breakers."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.serving.gateway.breaker import Breaker, RetryBudget
from posttrain.serving.gateway.config import BreakerConfig, RetryConfig
from tests.serving.gateway_world import chat, run, target, world
from tests.serving.upstreams import Upstream

PATIENT = BreakerConfig(failures=1000, window=1000)

BROKEN = [
    ({"cut": "at once"}, 502),
    ({"cut": "in head"}, 502),
    ({"cut": "in body"}, 502),
    ({"garbage": "http"}, 502),
    ({"garbage": "json"}, 502),
    ({"garbage": "html"}, 502),
    ({"raw": "[1]"}, 502),
    ({"raw": '{"choices": [1]}'}, 502),
    ({"raw": '{"choices": [{"index": "x", "message": {}}]}'}, 502),
    ({"delay": 5}, 504),
    ({"status": 500}, 500),
    ({"status": 503}, 503),
    ({"status": 500, "garbage": "html"}, 502),
    ({"status": 302}, 502),
]


@pytest.mark.parametrize(("how", "status"), BROKEN, ids=str)
def test_a_broken_upstream_is_an_error_and_the_next_one_answers(
    tmp_path: Path, how: dict[str, Any], status: int
) -> None:
    async def test() -> None:
        retries = RetryConfig(tries=2, backoff_seconds=0.001)
        upstream = {"first_byte_seconds": 0.15}
        async with world(tmp_path, "a", "b", retries=retries, upstream=upstream, breaker=PATIENT) as place:
            place.ups["a"].always = how
            if how.get("status") != 302:  # what is no error is not worth another try
                reply = await place.ask(chat())
                assert reply.json()["choices"][0]["message"]["content"].startswith("b says")
                assert place.rows("end")[0]["tries"] == 2 and place.rows("end")[0]["upstream"] == "b"
            place.ups["b"].always = how
            reply = await place.ask(chat())
            assert reply.status == status and "message" in reply.json()["error"]
            end = place.rows("end")[-1]
            assert (end["status"], end["finish"]) == (status, "error") and end["error"]
            assert len(place.rows("begin")) == len(place.rows("end"))

    run(test)


@pytest.mark.parametrize(
    "how",
    [{"cut": "at once"}, {"cut": "in head"}, {"delay": 5}, {"status": 503}, {"garbage": "first event"}],
    ids=str,
)
def test_a_stream_falls_back_before_its_first_byte(tmp_path: Path, how: dict[str, Any]) -> None:
    async def test() -> None:
        upstream = {"first_byte_seconds": 0.15}
        async with world(tmp_path, "a", "b", upstream=upstream) as place:
            place.ups["a"].always = how
            reply = await place.ask(chat(stream=True))
            assert reply.whole and reply.events[-1] == "[DONE]"
            assert place.rows("end")[0]["response"]["content"].startswith("b says")

    run(test)


def test_an_error_of_the_request_is_passed_on_and_not_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "b") as place:
            raw = '{"error": {"message": "too long", "type": "invalid_request_error", "code": "context"}}'
            place.ups["a"].always = {"status": 400, "raw": raw}
            for stream in (False, True):
                reply = await place.ask(chat(stream=stream))
                assert (reply.status, reply.code) == (400, "context")
            assert not place.ups["b"].calls
            assert place.worker.stats()["targets"][0]["errors"] == 0
            place.ups["a"].always = place.ups["b"].always = {"status": 429, "headers": "retry-after: 7\r\n"}
            reply = await place.ask(chat())
            assert (reply.status, reply.headers["retry-after"]) == (429, "7")

    run(test)


def test_an_upstream_that_is_not_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "b") as place:
            await place.ups["a"].stop()
            assert (await place.ask(chat())).json()["choices"][0]["message"]["content"].startswith("b says")
            await place.ups["b"].stop()
            reply = await place.ask(chat())
            assert (reply.status, reply.code) == (502, "upstream_error")

    run(test)


def test_a_stale_connection_costs_no_try(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, retries=RetryConfig(tries=1)) as place:
            up = place.ups["a"]
            client = await place.client()
            for number in range(5):
                # Sent and cut at the same instant: the gateway cannot have seen the end of the connection.
                up.cut_all()
                reply = await client.ask(chat())
                assert reply.status == 200, number
            assert all(row["tries"] == 1 for row in place.rows("end"))
            assert up.connections > 1
            # A connection that is fresh and cut is the upstream's own failure.
            up.always = {"cut": "at once"}
            up.cut_all()
            await place.until(lambda: not up.open)
            assert (await client.ask(chat())).status == 502

    run(test)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_comes_after_an_answer_is_never_taken_for_another(tmp_path: Path, when: str) -> None:
    async def test() -> None:
        async with world(tmp_path, upstream={"max_connections": 1}) as place:
            clients = [await place.client() for _ in range(6)]
            replies = await asyncio.gather(
                *(client.ask(chat(mock={"junk": when, "text": f"t{n}"})) for n, client in enumerate(clients))
            )
            # Junk that comes late may meet a request that is already on the connection: that one is tried again, and
            # may fail in the end. What nobody ever gets is the answer to somebody else.
            for number, reply in enumerate(replies):
                if when == "at once" or reply.status == 200:
                    assert reply.json()["choices"][0]["message"]["content"] == f"t{number}"
                else:
                    assert reply.status in (502, 503)
            assert replies[0].status == 200
            assert place.ups["a"].connections > 1

    run(test)


def test_connections_are_limited_and_shared(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, upstream={"max_connections": 3}) as place:
            clients = [await place.client() for _ in range(12)]
            for _ in range(3):
                await asyncio.gather(*(client.ask(chat(mock={"delay": 0.01})) for client in clients))
            assert place.ups["a"].connections == 3
            assert len(place.rows("end")) == 36

    run(test)


def test_repeats_are_paid_from_the_budget(tmp_path: Path) -> None:
    async def test() -> None:
        retries = RetryConfig(tries=5, budget_ratio=0.1, budget_burst=3, backoff_seconds=0.001)
        async with world(tmp_path, retries=retries, breaker=PATIENT) as place:
            place.ups["a"].always = {"status": 500}
            client = await place.client()
            for _ in range(50):
                assert (await client.ask(chat())).status == 500
            assert 50 + 3 <= len(place.ups["a"].calls) <= 50 + 3 + 5
            assert place.worker.stats()["retries"] == len(place.ups["a"].calls) - 50

    run(test)


def test_a_breaker_opens_and_finds_out_that_all_is_well(tmp_path: Path) -> None:
    async def test() -> None:
        breaker = BreakerConfig(failures=3, open_seconds=0.2)
        async with world(tmp_path, "a", "b", breaker=breaker) as place:
            a, b = place.ups["a"], place.ups["b"]
            a.always = {"status": 503}
            client = await place.client()
            for _ in range(20):
                assert (await client.ask(chat())).status == 200
            assert len(a.calls) == 3, "after three failures it was left alone"
            assert place.worker.stats()["breakers"] == {"a": "open", "b": "closed"}
            a.always = {}
            await asyncio.sleep(0.25)
            assert (await client.ask(chat())).json()["choices"][0]["message"]["content"].startswith("a says")
            assert place.worker.stats()["breakers"]["a"] == "closed"
            a.always = b.always = {"status": 503}
            for _ in range(6):
                await client.ask(chat())
            calls = len(a.calls) + len(b.calls)
            reply = await client.ask(chat())
            assert (reply.status, reply.code) == (503, "model_unavailable") and "retry-after" in reply.headers
            assert len(a.calls) + len(b.calls) == calls
            assert place.rows("end")[-1]["tries"] == 0

    run(test)


def test_a_breaker_survives_a_swap_that_does_not_concern_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "b", breaker=BreakerConfig(failures=1, open_seconds=60)) as place:
            place.ups["a"].always = {"status": 503}
            await place.ask(chat())
            connections = place.ups["b"].connections
            place.worker.swap(place.snapshot(2, production=target("v2", "a", "b")))
            await place.ask(chat())
            assert len(place.ups["a"].calls) == 1
            assert place.ups["b"].connections == connections

    run(test)


steps = st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=200)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_a_breaker_lets_one_probe_through_at_a_time(history: list[tuple[float, bool]]) -> None:
    config = BreakerConfig(failures=3, open_seconds=2, max_open_seconds=8)
    breaker, now, row = Breaker(config), 0.0, 0
    probes: list[float] = []
    for passed, is_well in history:
        now += passed
        was = breaker.state
        if not breaker.allows(now):
            assert was != "closed"
            continue
        if was != "closed":
            assert not probes or now - probes[-1] >= config.open_seconds
            probes.append(now)
        if is_well:
            breaker.succeeded()
            row = 0
            assert breaker.state == "closed"
        else:
            breaker.failed(now)
            row += 1
            assert breaker.state != "closed" or row < config.failures
        if breaker.state == "closed":
            probes.clear()
    assert breaker.allows(now + config.max_open_seconds + 1), "never left alone for ever"


def test_a_breaker_opens_on_a_share() -> None:
    breaker = Breaker(BreakerConfig(failures=100, share=0.5, window=10))
    for number in range(9):
        breaker.succeeded() if number % 2 else breaker.failed(0.0)
        assert breaker.state == "closed"
    breaker.failed(0.0)
    assert breaker.state == "open" and not breaker.allows(0.1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=300), st.floats(0, 1), st.integers(0, 20))
def test_repeats_never_pass_the_budget(wants: list[bool], ratio: float, burst: int) -> None:
    budget = RetryBudget(RetryConfig(budget_ratio=ratio, budget_burst=burst))
    spent = 0
    for requests, want in enumerate(wants, 1):
        budget.earn()
        spent += want and budget.spend()
        assert spent <= burst + ratio * requests + 1e-6


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_an_upstream_behind_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    async def test(trusted: bool) -> None:
        up = await Upstream("a").start(ssl=tls)
        async with world(tmp_path / str(trusted)) as place:
            snapshot = place.snapshot(2)
            secure = snapshot.upstreams[0].model_copy(
                update={"url": f"https://127.0.0.1:{up.port}/v1", "key_variable": "MODEL_KEY"}
            )
            place.worker.swap(snapshot.model_copy(update={"upstreams": (secure,)}))
            reply = await place.ask(chat(stream=True))
            if trusted:
                assert reply.events[-1] == "[DONE]"
                assert up.calls[0].headers["authorization"] == "Bearer sesame"
                assert b"sesame" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.seg"))
            else:
                assert reply.status == 502 and not up.calls
        await up.stop()

    monkeypatch.setenv("MODEL_KEY", "sesame")
    run(lambda: test(False))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    run(lambda: test(True))
