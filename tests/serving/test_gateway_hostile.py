"""What no honest client sends: never a crash, never a hang, never two answers for one request."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.guardrails import read_guardrails
from posttrain.serving.gateway.config import BreakerConfig, LimitsConfig, RetryConfig
from tests.serving.gateway_world import World, chat, request_bytes, threaded_world

LIMITS = LimitsConfig(
    max_header_bytes=2048,
    max_headers=20,
    max_body_bytes=4096,
    max_connections=400,
)
SHORT = LIMITS.model_copy(update={"header_seconds": 0.3, "body_seconds": 0.3, "keep_alive_seconds": 0.3})


@pytest.fixture(scope="module")
def hostile_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    breaker = BreakerConfig(failures=10**6, window=10**6)
    with threaded_world(tmp_path_factory.mktemp("hostile"), limits=LIMITS, breaker=breaker) as place:
        yield place


@pytest.fixture(scope="module")
def impatient_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with threaded_world(tmp_path_factory.mktemp("hostile"), limits=SHORT) as place:
        yield place


def exchange(place: World, *parts: bytes, end: bool = True, gap: float = 0.0) -> bytes:
    """Send parts; everything that comes back until the gateway closes, or is silent after the end of ours."""
    with socket.create_connection(("127.0.0.1", place.worker.port)) as connection:
        connection.settimeout(10)
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(gap)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    got = b""
    try:
        while part := connection.recv(65536):
            got += part
    except ConnectionError:
        pass
    return got


def statuses(data: bytes) -> list[int]:
    return [int(item) for item in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


def is_well(place: World) -> None:
    """It still answers, and every request that was accepted has ended."""
    closing = request_bytes(chat(), headers={"connection": "close"})
    assert statuses(exchange(place, closing, end=False)) == [200]


HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
BODY = json.dumps(chat()).encode()

CASES = {
    "both framings": (
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HEALTH,
        [400],
    ),
    "both framings, the other way": (
        POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + HEALTH,
        [400],
    ),
    "two lengths": (POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!", [400]),
    "a length twice": (POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello", [400]),
    "negative length": (POST + b"content-length: -1\r\n\r\n", [400]),
    "length with a sign": (POST + b"content-length: +5\r\n\r\nhello", [400]),
    "endless length": (POST + b"content-length: 99999999999999999999999\r\n\r\n", [400]),
    "other coding": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", [400]),
    "hidden coding": (POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", [400]),
    "coding with a space": (POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n", [400]),
    "coding with a tab": (POST + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n", [400]),
    "two codings": (POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n", [400]),
    "bad chunk size": (POST + b"transfer-encoding: chunked\r\n\r\nxyz\r\n\r\n", [400]),
    "endless chunk size": (POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n", [400]),
    "folded header": (POST + b"x-a: b\r\n c\r\n\r\n", [400]),
    "bare line feeds": (b"GET /healthz HTTP/1.1\nhost: x\n\n", [400]),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", [400]),
    "two hosts": (b"GET /healthz HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", [400]),
    "two keys": (POST + b"authorization: a\r\nauthorization: b\r\ncontent-length: 0\r\n\r\n", [400]),
    "null in a name": (b"GET /healthz HTTP/1.1\r\nho\x00st: x\r\n\r\n", [400]),
    "null in a value": (b"GET /healthz HTTP/1.1\r\nhost: x\x00\r\n\r\n", [400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "HTTP/3.7": (b"GET / HTTP/3.7\r\nhost: x\r\n\r\n", [400]),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", [505]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, [400]),
    "unknown method": (b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", [400]),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", [400]),
    "path out of the tree": (b"GET /v1/models/../../etc/passwd" + LAST, [404]),
    "path with bytes": (b"GET /v1/models/\xff\xfe" + LAST, None),
    "absolute path": (b"GET http://elsewhere/healthz" + LAST, [404]),
    "long path": (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", [431]),
    "long header": (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 10_000 + b"\r\n\r\n", [431]),
    "long name": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"a" * 10_000 + b": x\r\n\r\n", [431]),
    "header without end": (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000, [431]),
    "many headers": (
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"".join(b"a%d: b\r\n" % n for n in range(30)) + b"\r\n",
        [431],
    ),
    "long body": (POST + b"content-length: 100000\r\n\r\n" + b"x" * 100_000, [413]),
    "long chunks": (
        POST + b"transfer-encoding: chunked\r\n\r\n1000\r\n" + b"x" * 4096 + b"\r\n1\r\nx\r\n0\r\n\r\n",
        [413],
    ),
    "expects too much": (POST + b"expect: 100-continue\r\ncontent-length: 100000\r\n\r\n", [413]),
    "expects something else": (POST + b"expect: tea\r\ncontent-length: 2\r\n\r\n{}", [417]),
    "wants HTTP/2": (
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"http2-settings: AAA\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        [200, 200],
    ),
    "wants a websocket": (
        POST + b"connection: upgrade, close\r\nupgrade: websocket\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY,
        [200],
    ),
    "data after the last": (
        POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY + b"GET /healthz HTTP/1.1\r\n",
        [200],
    ),
    "response splitting": (b"GET /healthz HTTP/1.1\r\nx-request-id: aaaaaaaa\x0dset-cookie: a\r\n\r\n", [400]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_is_answered_once_and_closed(hostile_place: World, name: str) -> None:
    data, wanted = CASES[name]
    # Both at once and byte by byte, since a parser sees other things at the edges.
    cut = [data[at : at + 1] for at in range(min(len(data), 300))] + [data[300:]]
    for parts in ([data], cut):
        got = exchange(hostile_place, *parts, end=False)
        assert wanted is None or statuses(got) == wanted, got
        assert b"set-cookie" not in got
    is_well(hostile_place)


def test_a_good_request_before_a_bad_one_is_answered_first(hostile_place: World) -> None:
    good = request_bytes(chat(mock={"delay": 0.05}))
    got = exchange(hostile_place, good + b"GARBAGE\r\n\r\n" + good, end=False)
    assert statuses(got) == [200, 400]


def test_pipelined_requests_are_answered_in_order(hostile_place: World) -> None:
    texts = [f"t{number}" for number in range(40)]
    data = b"".join(
        request_bytes(
            chat(mock={"text": text, "delay": 0.01 if number % 3 == 0 else 0}, stream=number % 2 == 1)
        )
        for number, text in enumerate(texts)
    )
    with socket.create_connection(("127.0.0.1", hostile_place.worker.port)) as connection:
        connection.settimeout(10)
        connection.sendall(data)
        got = b""
        while got.count(b"HTTP/1.1 200 OK") < 40 or not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(65536)
    parts = got.split(b"HTTP/1.1 200 OK")[1:]
    for text, part in zip(texts, parts, strict=True):
        joined = "".join(re.findall(r'"content": ?"([^"]*)"', part.decode()))
        assert joined == text
    # Thousands at once, each answered on the spot: a loop, not a tower of calls.
    many = b"GET /v1/models/x HTTP/1.1\r\nhost: x\r\n\r\n" * 3000
    assert (
        len(statuses(exchange(hostile_place, many + POST + b"connection: close\r\n\r\n", end=False))) == 3001
    )


def test_a_request_hidden_in_a_body_is_a_body(hostile_place: World) -> None:
    hidden = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    before = len(hostile_place.rows("end"))
    got = exchange(hostile_place, request_bytes(hidden, headers={"connection": "close"}), end=False)
    assert statuses(got) == [400]
    assert len(hostile_place.rows("end")) == before


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"G"], 408),
        ([b"GET /healthz HTTP/1.1\r\n", b"host: x\r\n", b"x-a: b\r\n", b"x-b: c\r\n"], 408),
        ([POST + b"content-length: 100\r\n\r\n{", b'"a', b'": ', b"1"], 408),
        ([POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n", b"a\r\n"], 408),
        ([b""], None),
    ],
    ids=["one byte", "drops of a header", "drops of a body", "drops of chunks", "nothing"],
)
def test_slow_clients_are_sent_away(impatient_place: World, parts: list[bytes], status: int | None) -> None:
    got = exchange(impatient_place, *parts, end=False, gap=0.12)
    assert statuses(got) == ([] if status is None else [status])


def test_idle_connections_are_closed(impatient_place: World) -> None:
    got = exchange(impatient_place, request_bytes(chat()), end=False)
    assert statuses(got) == [200]


def test_too_many_connections(hostile_place: World) -> None:
    held = [socket.create_connection(("127.0.0.1", hostile_place.worker.port)) for _ in range(420)]
    closed: set[int] = set()
    until = time.monotonic() + 10
    while len(closed) < 20 and time.monotonic() < until:
        for connection in held:
            connection.setblocking(False)
            try:
                if connection.recv(1) == b"":
                    closed.add(connection.fileno())
            except BlockingIOError:
                pass
            except ConnectionError:
                closed.add(connection.fileno())
    for connection in held:
        connection.close()
    assert len(closed) >= 20
    until = time.monotonic() + 10
    while len(hostile_place.worker._door.connections) > 100 and time.monotonic() < until:
        time.sleep(0.01)
    is_well(hostile_place)


def test_a_refused_body_is_read_so_that_the_answer_arrives(hostile_place: World) -> None:
    body = b"x" * 5_000_000
    for _ in range(5):
        got = exchange(hostile_place, POST + b"content-length: %d\r\n\r\n" % len(body), body, end=False)
        assert statuses(got) == [413]


def test_continue_is_said_when_the_body_is_wanted(hostile_place: World) -> None:
    with socket.create_connection(("127.0.0.1", hostile_place.worker.port)) as connection:
        connection.settimeout(10)
        first = request_bytes(chat(mock={"delay": 0.1}))
        connection.sendall(first + POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        got = b""
        while b"100 Continue" not in got:
            got += connection.recv(65536)
        assert statuses(got) == [200, 100], "not before the answer that is due first"
        connection.sendall(BODY)
        while len(statuses(got)) < 3:
            got += connection.recv(65536)
        assert statuses(got)[2] == 200


fuzz = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
pieces = st.sampled_from(
    [
        b"POST /v1/chat/completions HTTP/1.1\r\n", HEALTH, b"GET /healthz HTTP/1.1\r\n", b"host: x\r\n", b"\r\n",
        b"content-length: 10\r\n", b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n", b"upgrade: h2c\r\n",
        b"connection: close\r\n", b"connection: keep-alive\r\n", b"expect: 100-continue\r\n", b"0\r\n\r\n",
        b"5\r\nhello\r\n", b"{}", BODY, b"content-length: %d\r\n\r\n" % len(BODY), b"\x00", b"\xff\xfe", b" ",
        b"HTTP/1.0\r\n", b"\r\n\r\n",
    ]
)  # fmt: skip


@fuzz
@given(st.lists(st.one_of(pieces, st.binary(max_size=40)), max_size=25), st.booleans())
def test_random_bytes(hostile_place: World, parts: list[bytes], apart: bool) -> None:
    data = parts if apart else [b"".join(parts)]
    for status in statuses(exchange(hostile_place, *data)):
        assert status < 500 or status == 505
    is_well(hostile_place)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)
fields = st.dictionaries(
    st.sampled_from(
        ["model", "messages", "stream", "stream_options", "user", "safety_identifier", "temperature", "max_tokens",
         "stop", "logit_bias", "tools", "prompt", "n", "seed"]
    ),
    json_values,
)  # fmt: skip


@fuzz
@given(fields, st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/feedback"]), st.booleans())
def test_random_fields(hostile_place: World, said: dict[str, object], path: str, valid: bool) -> None:
    if valid:
        said = {
            **said,
            "model": "m",
            "messages": [],
            "prompt": "",
            "tools": None,
            "stream": bool(said.get("stream")),
        }
    body = json.dumps(said).encode("utf-8", "surrogatepass")
    got = exchange(hostile_place, request_bytes(body, path, headers={"connection": "close"}), end=False)
    assert len(statuses(got)) == 1
    assert statuses(got)[0] in ((200, 400, 413) if valid else (200, 400, 404, 413)), got


members = st.sampled_from(
    ["choices", "usage", "error", "index", "message", "delta", "text", "content", "role", "finish_reason",
     "tool_calls", "function", "arguments", "name", "id", "logprobs", "prompt_tokens", "prompt_tokens_details",
     "reasoning_content"]
)  # fmt: skip
answers = st.dictionaries(
    members,
    st.recursive(
        json_values,
        lambda inner: st.dictionaries(members, inner, max_size=4) | st.lists(inner, max_size=2),
        max_leaves=10,
    ),
    max_size=5,
)


def is_json(value: object) -> bool:
    """Whether it can be written as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def guarded_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    guardrails = read_guardrails({"rules": [{"kind": "personal_data"}]})
    with threaded_world(
        tmp_path_factory.mktemp("guarded"), limits=LIMITS, guardrails=guardrails, retries=RetryConfig(tries=1),
        breaker=BreakerConfig(failures=10**6, window=10**6),
    ) as place:  # fmt: skip
        yield place


@settings(fuzz, max_examples=30)
@given(answers, st.lists(answers, max_size=3), st.booleans(), st.booleans())
def test_random_answers_of_upstreams(
    guarded_place: World, hostile_place: World, answer: object, events: object, stream: bool, guarded: bool
) -> None:
    place = guarded_place if guarded else hostile_place
    # Infinities are no JSON: an answer may hold them, this test's own request may not.
    how = {"raw": json.dumps(answer), "events": events if is_json(events) else []}
    body = json.dumps(chat(mock=how, stream=stream)).encode()
    client = socket.create_connection(("127.0.0.1", place.worker.port))
    with client:
        client.settimeout(10)
        client.sendall(request_bytes(body, headers={"connection": "close"}))
        got = read_all(client)
    too_long = len(body) > LIMITS.max_body_bytes
    assert statuses(got)[:1] in ([[413]] if too_long else [[200], [502], [503]]), got


@fuzz
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_random_header_values(hostile_place: World, user: bytes, slices: bytes) -> None:
    user, slices = (bytes(b for b in value if b not in (0, 10, 13)) for value in (user, slices))
    head = b"x-posttrain-user: %b\r\nx-posttrain-slices: %b\r\nx-request-id: %b\r\n" % (user, slices, user)
    data = POST + head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
    got = exchange(hostile_place, data, end=False)
    assert statuses(got) in ([200], [400])


def test_after_all_that_every_accepted_request_has_ended(hostile_place: World) -> None:
    is_well(hostile_place)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        begins = {row["id"] for row in hostile_place.rows("begin")}
        ends = [row["id"] for row in hostile_place.rows("end")]
        if begins <= set(ends):
            break
        time.sleep(0.05)
    assert begins and begins <= set(ends) and len(ends) == len(set(ends))
    assert hostile_place.worker.stats()["in_flight"] == 0


def test_a_page_of_an_earlier_snapshot_is_no_file(tmp_path: Path) -> None:
    with threaded_world(tmp_path, limits=LIMITS) as place:
        for path in (b"/%2e%2e/", b"/..", b"/v1/models/%00", b"//healthz", b"/healthz/", b"*"):
            got = exchange(
                place, b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", end=False
            )
            assert statuses(got) in ([404], [400])
