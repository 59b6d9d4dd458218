"""Two tenants at one door: what one says, names, may ask for or knows never becomes the other's."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.cli import main
from posttrain.rollouts.observe import Observer
from posttrain.routing.records import Route, Snapshot
from posttrain.serving.access import Budgets, KeyFile
from posttrain.serving.access.keys import NewKey
from posttrain.serving.gateway.identity import Pseudonyms, RequestIds, read_asker
from posttrain.traffic.clock import MonotonicWallClock
from posttrain.traffic.index import TrafficIndex
from posttrain.traffic.indexer import index_once
from posttrain.traffic.pseudonym import pseudonym
from posttrain.traffic.query import Where, feedback_of, requests
from tests.rollouts.rollout_world import LAST, make_spec
from tests.serving.control_gateway_world import gateway
from tests.serving.gateway_world import (
    Client,
    Reply,
    World,
    chat,
    read_rows,
    request_bytes,
    run,
    target,
    world,
)

FEEDBACK = "/v1/feedback"


@dataclass
class Tenants:
    """A worker that asks for keys, and who has one."""

    place: World
    file: KeyFile
    keys: dict[str, NewKey]

    async def ask(
        self, who: str, body: Any = None, path: str = "/v1/chat/completions", **headers: str
    ) -> Reply:
        """With a tenant's key; a GET where there is no body."""
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        said["authorization"] = f"Bearer {self.keys[who].token}"
        return await self.place.ask(body, path, method="GET" if body is None else "POST", headers=said)

    def again(self) -> None:
        """The key file was changed."""
        self.place.worker.reload_access()


@asynccontextmanager
async def tenants(folder: Path, **options: Any) -> AsyncIterator[Tenants]:
    """``ann`` and ``bob``, with a key each."""
    file = KeyFile(folder / "keys.json")
    keys = {name: file.create_key(name, **options.pop(name, {})) for name in ("ann", "bob")}
    access: dict[str, Any] = {"access": str(file.path), "budgets": str(folder / "budgets")}
    async with world(folder / "log", **access, **options) as place:
        yield Tenants(place, file, keys)


def index_of(folder: Path) -> TrafficIndex:
    index = TrafficIndex.open(folder)
    index_once(folder, index)
    return index


# What is said of an answer


@pytest.mark.parametrize("seed", range(3))
def test_feedback_of_another_tenant_is_taken_and_is_nobodys(tmp_path: Path, seed: int) -> None:
    """Whatever comes first: the other tenant may know an id before its request is made."""
    draw = random.Random(seed)
    expected: dict[str, list[str]] = {}

    async def test() -> None:
        async with tenants(tmp_path) as at:
            first = {who: await at.ask(who, chat(), x_request_id="learn-the-form") for who in at.keys}
            steps: list[tuple[str, str, str]] = []
            for number in range(6):
                owner = draw.choice(("ann", "bob"))
                name = first[owner].id.replace("learn-the-form", f"request-{number:04}")
                expected[name] = []
                said = [(who, "say", name) for who in draw.choices(("ann", "bob"), k=3)]
                expected[name] += [who for who, _, _ in said if who == owner]
                steps += [(owner, "ask", f"request-{number:04}"), *said]
            draw.shuffle(steps)
            for number, (who, what, name) in enumerate(steps):
                if what == "ask":
                    assert (await at.ask(who, chat(), x_request_id=name)).id in expected
                else:
                    kind = draw.choice(("abandon", "incident"))
                    reply = await at.ask(
                        who, {"request_id": name, "type": kind, "id": f"n{number}"}, FEEDBACK
                    )
                    assert reply.status == 200 and reply.json()["request_id"] == name

    run(test)
    folder = tmp_path / "log"
    index = index_of(folder)
    rows = read_rows(folder)
    hashes = {row["id"]: row["tenant"] for row in rows if row["kind"] == "end"}
    for name, own in expected.items():
        found = feedback_of(index, name)
        assert {item.tenant for item in found} <= {hashes[name]}
        assert len(found) == len(own)
    spec = make_spec(route="m")
    observer = Observer(spec, ())
    observer.enter(1, LAST)
    observer.add(rows)
    seen = observer.observation()
    tally = seen.tally((LAST,), "candidate")
    good = [r for r in rows if r["kind"] == "feedback" and r["tenant"] == hashes[r["of"]]]
    assert tally.requests == len(expected) + 2
    assert tally.incidents == sum(row["type"] == "incident" for row in good)
    assert tally.abandons == len({row["of"] for row in good if row["type"] == "abandon"})
    assert seen.waiting == 0
    assert len(good) < sum(row["kind"] == "feedback" for row in rows), "nobody meddled"


def test_an_id_of_feedback_is_the_tenants_own(tmp_path: Path) -> None:
    async def test() -> None:
        async with tenants(tmp_path) as at:
            body = {"request_id": "request-1", "type": "thumbs", "value": 1, "id": "mine"}
            ids = {who: (await at.ask(who, body, FEEDBACK)).json()["id"] for who in at.keys}
            assert len(set(ids.values())) == 2
            assert (await at.ask("ann", {**body, "value": -1}, FEEDBACK)).json()["id"] == ids["ann"]

    run(test)


# Ids


def test_an_id_that_another_tenant_used_is_no_obstacle_and_tells_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with tenants(tmp_path) as at:
            ids = {who: (await at.ask(who, chat(who), x_request_id="shared-id-1")).id for who in at.keys}
            assert all(name.endswith(".shared-id-1") for name in ids.values()), ids
            assert ids["ann"] != ids["bob"]
            again = (await at.ask("ann", chat(), x_request_id="shared-id-1")).id
            assert "shared-id-1" not in again, "an id that was used just before is not used again"
            # What the other was told is just another id of one's own.
            stolen = (await at.ask("bob", chat(), x_request_id=ids["ann"])).id
            assert stolen == f"{ids['bob'].partition('.')[0]}.{ids['ann']}"
            # Who has no key has no say in ids either.
            refused = await at.place.ask(chat(), headers={"x-request-id": "shared-id-2"})
            assert refused.status == 401 and "shared-id-2" not in refused.id
            assert (await at.ask("ann", chat(), x_request_id="shared-id-2")).id.endswith("shared-id-2")

    run(test)
    index = index_of(tmp_path / "log")
    rows = {row.id: row for row in requests(index)}
    assert len(rows) == 5
    texts = {row.request["messages"][0]["content"] for name, row in rows.items() if "shared-id-1" in name}
    assert texts == {"ann", "bob", "hello"}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("a" * 32, "b" * 32, None)), st.binary(max_size=140)), max_size=20))
def test_no_two_tenants_have_one_id(asked: list[tuple[str | None, bytes]]) -> None:
    ids = RequestIds(MonotonicWallClock())
    given_out: dict[bytes, str | None] = {}
    for tenant, name in asked:
        for other in (tenant, "a" * 32, "b" * 32):
            chosen = ids.choose(name, other)
            assert chosen not in given_out
            assert 8 <= len(chosen) <= 128
            given_out[chosen] = other


# Models, keys, scopes, budgets


def two_models(at: Tenants) -> Snapshot:
    before = at.place.snapshot(2)
    route = before.routes[0]
    secret = Route(model="secret-model", production=target("s1", *at.place.ups))
    return before.model_copy(update={"routes": (route, secret)})


def test_models_outside_a_keys_allowance_are_not_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with tenants(tmp_path, bob={"models": ("m",)}) as at:
            at.place.worker.swap(two_models(at))
            listed = {
                who: [model["id"] for model in (await at.ask(who, path="/v1/models")).json()["data"]]
                for who in at.keys
            }
            assert listed == {"ann": ["m", "secret-model"], "bob": ["m"]}
            for body, path in (
                (None, "/v1/models/{}"),
                (chat(model="{}"), "/v1/chat/completions"),
                ({"model": "{}", "prompt": "x"}, "/v1/completions"),
            ):
                answers = []
                for name in ("secret-model", "nothing-such"):
                    said = None if body is None else {**body, "model": name}
                    reply = await at.ask("bob", said, path.format(name))
                    assert (reply.status, reply.code) == (404, "model_not_found")
                    answers.append(reply.body.replace(name.encode(), b"*"))
                assert answers[0] == answers[1], "what exists looks like what does not"
            assert (await at.ask("ann", chat(model="secret-model"))).status == 200
            assert len(at.place.rows("begin")) == 1

    run(test)


def test_keys_that_are_no_longer_good(tmp_path: Path) -> None:
    async def test() -> None:
        async with tenants(tmp_path) as at:
            old, file = dict(at.keys), at.file
            for who in at.keys:
                assert (await at.ask(who, chat())).status == 200
            at.keys["ann"] = file.rotate(old["ann"].record.id, keep_seconds=3600)
            at.keys["kept"], at.keys["past"] = old["ann"], old["bob"]
            at.keys["bob"] = file.rotate(old["bob"].record.id)
            at.keys["over"] = file.create_key("ann", expires_at=time.time() - 1)
            at.keys["gone"] = file.create_key("ann")
            file.revoke(at.keys["gone"].record.id)
            at.again()
            told = {}
            for who in at.keys:
                reply = await at.ask(who, chat())
                told[who] = reply.status if reply.status == 200 else (reply.status, reply.code)
            assert told == {
                "ann": 200,
                "kept": 200,
                "bob": 200,
                "past": (401, "invalid_api_key"),
                "over": (401, "expired_api_key"),
                "gone": (401, "revoked_api_key"),
            }
            # Somebody who knows an id and not its secret learns nothing of the key.
            for who in ("ann", "gone", "over"):
                token = at.keys[who].token[:17] + "x" * 43
                reply = await at.place.ask(chat(), headers={"authorization": f"Bearer {token}"})
                assert (reply.status, reply.code) == (401, "invalid_api_key")

    run(test)


@pytest.mark.parametrize("scope", ["chat", "completions", "feedback", "models", "metrics"])
def test_a_key_is_good_for_its_scope_alone(tmp_path: Path, scope: str) -> None:
    async def test() -> None:
        async with tenants(tmp_path, ann={"scopes": (scope,)}) as at:
            routes: dict[str, tuple[Any, str]] = {
                "chat": (chat(), "/v1/chat/completions"),
                "completions": ({"model": "m", "prompt": "x"}, "/v1/completions"),
                "feedback": ({"request_id": "r-1", "type": "abandon"}, FEEDBACK),
                "models": (None, "/v1/models"),
                "metrics": (None, "/metrics"),
            }
            for name, (body, path) in routes.items():
                reply = await at.ask("ann", body, path)
                if name == scope:
                    assert reply.status == 200
                else:
                    assert (reply.status, reply.code) == (403, "insufficient_scope"), name

    run(test)


def test_ones_budget_is_not_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with tenants(tmp_path, ann={"budgets": Budgets(requests_per_minute=3)}) as at:
            statuses = [(await at.ask("ann", chat())).status for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]
            reply = await at.ask("ann", chat())
            assert reply.code == "rate_limit_exceeded" and 1 <= int(reply.headers["retry-after"]) <= 65
            assert [(await at.ask("bob", chat())).status for _ in range(5)] == [200] * 5
            # A new secret is the same key, with what it has used.
            at.keys["ann"] = at.file.rotate(at.keys["ann"].record.id)
            at.again()
            assert (await at.ask("ann", chat())).status == 429

    run(test)


# People


def test_one_name_is_one_user_and_forgetting_it_finds_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    folder = tmp_path / "serving" / "default" / "traffic"
    file = KeyFile(tmp_path / "keys.json")
    long = "ü" * 400

    async def test() -> None:
        keys = {who: file.create_key(who) for who in ("ann", "bob")}
        async with world(folder, access=str(file.path)) as place:
            at = Tenants(place, file, keys)
            for who in keys:
                for name in ("alice", long):
                    await at.ask(who, chat(f"{who} asks", user=name))
                await at.ask(who, chat(f"{who} asks"), x_posttrain_user="alice")
                await at.ask(who, chat(f"{who} and carol ask", user="carol"))
                await at.ask(who, chat(f"{who} asks"), x_posttrain_user=long)

    run(test)
    index = index_of(folder)
    rows = list(requests(index))
    users = {row.user for row in rows}
    assert len(rows) == 10 and len(users) == 3, "a name is one user, by whatever way it came"
    assert len({(row.user, row.tenant) for row in rows}) == 6
    for name in ("alice", long):
        assert main(["log", "forget", name, "--yes"]) == 0
    left = list(requests(index, Where()))
    assert [row.request["user"] for row in left] == ["carol", "carol"]
    raw = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"carol ask" in raw and b"asks" not in raw and b"alice" not in raw
    capsys.readouterr()


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=600))
def test_the_name_that_forget_is_given_is_the_name_that_was_logged(name: str) -> None:
    secret = b"s" * 32
    known = pseudonym(secret, "user", name)
    assert read_asker({}, {"user": name}, None, Pseudonyms(secret)).user == known
    header = {b"x-posttrain-user": name.encode()}
    assert read_asker(header, {}, None, Pseudonyms(secret)).user == known


# Secrets


def test_no_secret_is_written_down_or_told(tmp_path: Path) -> None:
    """A whole gateway with real processes: logs, rows, counters, errors and what control knows.

    Its key file is older than its store: making a key may be the first thing that is done in a home.
    """
    told: list[bytes] = []
    tokens: list[str] = []
    folders: list[Path] = []

    async def test() -> None:
        home = tmp_path / "home"
        file = KeyFile(home / "serving" / "default" / "keys.json")
        keys = {who: file.create_key(who) for who in ("tenant-ann", "tenant-bob")}
        operator = file.create_key("ops", scopes=("metrics",))
        revoked = file.create_key("tenant-ann")
        file.revoke(revoked.record.id)
        async with gateway(tmp_path) as place:
            assert place.control.folder == file.path.parent, "the key file lies elsewhere"
            tokens.extend(key.token for key in (*keys.values(), operator, revoked))
            wrong = "ptk_" + "0" * 12 + "_" + "wrong-secret-" * 3
            tokens.append(wrong)
            for token in tokens:
                for method, path, body in (
                    ("POST", "/v1/chat/completions", chat(user="alice")),
                    ("POST", "/v1/chat/completions", chat(model="nobody")),
                    ("POST", "/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
                    ("POST", FEEDBACK, {"request_id": "r-1", "type": "incident"}),
                    ("GET", "/v1/models", None),
                    ("GET", "/metrics", None),
                    ("POST", "/v1/nothing", b"{"),
                    ("POST", "/v1/chat/completions", b"{"),
                ):
                    client = Client(*await asyncio.open_connection("127.0.0.1", place.control.port))
                    headers = {"authorization": f"Bearer {token}", "connection": "close"}
                    await client.send(request_bytes(body, path, method=method, headers=headers))
                    told.append(await client.reader.read())
                    client.close()
            told.append(str(await place.call("GET", "/v1/status")).encode())
            folders.append(place.control.folder)
        place.control.reconcile()

    run(test, 120)
    secrets = [token.partition("_")[2].partition("_")[2].encode() for token in tokens]
    assert any(b"200 OK" in answer for answer in told) and any(b" 401 " in answer for answer in told)
    written = {path: path.read_bytes() for path in folders[0].rglob("*") if path.is_file()}
    assert any(path.suffix == ".seg" for path in written) and any(path.suffix == ".log" for path in written)
    for where, data in [*written.items(), *((f"answer {at}", answer) for at, answer in enumerate(told))]:
        for secret in secrets:
            assert secret not in data, where
        # Tenants and users are hashes wherever traffic is written; the key file says whose key is whose.
        if isinstance(where, Path) and where.name.startswith("keys.json"):
            continue
        assert b"tenant-ann" not in data and b"tenant-bob" not in data, where
