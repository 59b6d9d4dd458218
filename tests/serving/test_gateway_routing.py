"""Several targets behind one name: rules, a learned router, fallbacks, and what stays beside them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.artifacts.home import open_home
from posttrain.core.errors import ConfigError, DataError
from posttrain.core.settings import Settings
from posttrain.rollouts.fold import fold
from posttrain.rollouts.observe import Observer
from posttrain.rollouts.snapshots import snapshot_for
from posttrain.routing import RouterConfig, RouterModel
from posttrain.routing.assignment import assign
from posttrain.routing.files import keep_model, read_model
from posttrain.routing.records import Arm, Canary, Experiment, Route, Shadow, Snapshot
from posttrain.routing.rows import PairRow
from posttrain.routing.train import CostWeight, TrainConfig, train_router
from posttrain.serving.config import RouteConfig, ServeConfig
from posttrain.serving.control.control import Control
from posttrain.serving.control.rollback import back_to
from posttrain.serving.gateway.choosing import Chooser
from tests.rollouts.rollout_world import (
    EPOCHS,
    LAST,
    NEW,
    OLD,
    entries_of,
    history,
    make_row,
    make_snapshot,
    make_spec,
)
from tests.serving.control_gateway_world import make_release, serve_config
from tests.serving.gateway_world import Client, Reply, chat, run, target, world
from tests.serving.upstreams import Upstream as MockUpstream

GOLDEN = Path(__file__).parents[1] / "routing" / "golden"
RULES: list[dict[str, Any]] = [
    {"name": "gold", "target": "big", "match": [{"kind": "header", "name": "X-Tier", "value": "gold"}]},
    {"name": "sql", "target": "code", "match": [{"kind": "regex", "pattern": r"(?i)\bselect\b.+\bfrom\b"}]},
    {"name": "cards", "target": "big", "match": [{"kind": "keywords", "words": ["credit card"]}]},
    {"name": "team", "target": "code", "match": [{"kind": "slice", "slice": "team:dev"}]},
    {"name": "long", "target": "big", "match": [{"kind": "length", "min_characters": 300}]},
    {"name": "home", "target": "production", "match": [{"kind": "keywords", "words": ["stay here"]}]},
]


def routing(
    rules: Any = RULES, model: Any = None, fallback: str = "production", **more: Any
) -> dict[str, Any]:
    router = RouterConfig.model_validate(
        {"rules": rules, "fallback": fallback, "model": None if model is None else str(model)}
    )
    choices = (target("big", "b", usd_per_1k_prompt_tokens=1.0), target("code", "c"))
    return {"production": target("v1", "a"), "choices": choices, "router": router, **more}


def who(reply: Reply) -> str:
    """The upstream that answered."""
    if reply.headers["content-type"] == "application/json":
        choice = reply.json()["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    else:
        parts = [choice for event in reply.events[:-1] for choice in event["choices"]]
        text = "".join(
            part["delta"].get("content") or "" if "delta" in part else part["text"] for part in parts
        )
    return str(text).partition(" ")[0]


def test_rules_by_text_header_length_and_slice(tmp_path: Path) -> None:
    asked: list[tuple[str, dict[str, str], str, str]] = [
        ("hello", {}, "a", "fallback"),
        ("hello", {"x-tier": "gold"}, "b", "rule:gold"),
        ("hello", {"x-tier": "silver"}, "a", "fallback"),
        ("SELECT name FROM users", {"x-tier": "gold"}, "b", "rule:gold"),
        ("SELECT name FROM users", {}, "c", "rule:sql"),
        ("my Credit  CARD is gone", {}, "b", "rule:cards"),
        ("hello", {"x-posttrain-slices": "lang:en, team:dev"}, "c", "rule:team"),
        ("hello " * 60, {}, "b", "rule:long"),
        ("stay here", {}, "a", "rule:home"),
    ]

    async def test() -> None:
        async with world(tmp_path, "a", "b", "c", routing=routing()) as place:
            for text, headers, name, by in asked:
                for path, stream in (
                    ("chat/completions", False),
                    ("chat/completions", True),
                    ("completions", False),
                ):
                    body = {**chat(text, stream=stream), "prompt": text}
                    if path == "completions":
                        body["messages"] = [{"role": "user", "content": "SELECT a FROM b"}]
                    reply = await place.ask(body, f"/v1/{path}", headers=headers)
                    assert (reply.status, who(reply)) == (200, name), (text, path)
                    begin, end = place.rows()[-2:]
                    wanted = {"a": "v1", "b": "big", "c": "code"}[name]
                    assert (begin["target"], end["target"], end["lane"]) == (wanted, wanted, "production")
                    assert begin["slices"] == end["slices"] and end["slices"][-1] == f"router:{by}"
                    assert end.get("arm") is None and end["upstream"] == name
                    assert end["cost_usd"] == (0.007 if name == "b" else 0)
            page = (await place.get("/metrics")).body.decode()
            assert 'routed_total{route="m",by="rule:sql",target="code"} 3' in page
            assert 'routed_total{route="m",by="fallback",target="v1"} 6' in page
            assert (await place.get("/healthz")).json().get("routers") is None

    run(test)


def test_the_last_thing_that_the_user_said_counts(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, "a", "b", "c", routing=routing()) as place:
            sql = {"role": "user", "content": "select a from b"}
            messages = [
                {"role": "system", "content": "select"},
                sql,
                {"role": "assistant", "content": "done"},
            ]
            assert who(await place.ask({"model": "m", "messages": messages})) == "c"
            parts = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "thank you"}]
            said = [*messages, {"role": "user", "content": parts}]
            assert who(await place.ask({"model": "m", "messages": said})) == "a"
            for odd in ([], [7], [{"role": "user"}], [{"role": "user", "content": [None, {"text": None}]}]):
                assert (await place.ask({"model": "m", "messages": odd})).status == 200

    run(test)


def test_no_client_can_give_itself_our_tags(tmp_path: Path) -> None:
    async def test() -> None:
        rules = [{"name": "r", "target": "big", "match": [{"kind": "slice", "slice": "router:learned"}]}]
        async with world(tmp_path, "a", "b", "c", routing=routing(rules)) as place:
            tags = {"x-posttrain-slices": "router:learned,aggregate:vote,mine"}
            assert who(await place.ask(chat(), headers=tags)) == "a"
            assert place.rows("end")[0]["slices"] == ["mine", "router:fallback"]

    run(test)


# --- learned --------------------------------------------------------------------------------------------------------

_EASY = "say hello to my friend and tell them a nice short story about the sea please".split()  # noqa: SIM905
_HARD = "prove the theorem by induction and derive the integral of each matrix equation".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def routing_model() -> RouterModel:
    draw, rows = random.Random(0), []
    for number in range(500):
        hard = number % 2 == 0
        words = " ".join(draw.choices(_HARD if hard else _EASY, k=8))
        rows.append(PairRow(prompt=f"{words} {number}", outcome="big" if hard else "tie"))
    config = TrainConfig(small="production", big="big", buckets=1024, policy=CostWeight(weight=0.03))
    return train_router(config, rows)


def test_a_learned_router_and_what_it_has_never_seen(tmp_path: Path, routing_model: RouterModel) -> None:
    async def test() -> None:
        routing_model.write(tmp_path / "router.json")
        kept = keep_model(tmp_path / "router.json", tmp_path / "routers", {"production", "big"})
        options = routing(model=kept, fallback="code")
        async with world(tmp_path / "log", "a", "b", "c", routing=options) as place:
            asked = [
                ("prove the theorem by induction please", "b", "learned"),
                ("say hello and tell a nice story", "a", "learned"),
                ("mein Hund mag keine Katzen", "c", "unsure"),
                ("tell a nice story: select a from b", "c", "rule:sql"),
            ]
            for text, name, by in asked:
                assert who(await place.ask(chat(text))) == name, text
                assert place.rows("end")[-1]["slices"] == [f"router:{by}"]

    run(test)


def test_a_file_that_changed_is_not_used_and_that_is_said(tmp_path: Path, routing_model: RouterModel) -> None:
    async def test() -> None:
        routing_model.write(tmp_path / "router.json")
        kept = keep_model(tmp_path / "router.json", tmp_path / "routers", {"production", "big"})
        good = kept.read_bytes()
        kept.write_bytes(good.replace(b'"big"', b'"code"'))
        with pytest.raises(DataError, match="has been changed"):
            read_model(kept)
        hard, options = chat("prove the theorem by induction"), routing(model=kept, fallback="code")
        async with world(tmp_path / "log", "a", "b", "c", routing=options) as place:
            assert who(await place.ask(hard)) == "c"
            assert place.rows("end")[-1]["slices"] == ["router:failed"]
            assert who(await place.ask(chat("my credit card"))) == "b", "rules need no file"
            health = await place.get("/healthz")
            assert health.status == 200 and "has been changed" in health.json()["routers"]["m"]
            assert str(tmp_path) not in health.body.decode()
            assert b'router_failing{route="m"} 1' in (await place.get("/metrics")).body
            assert place.worker.stats()["routers_failing"] == ["m"]
            kept.write_bytes(good)
            place.worker.swap(place.snapshot(2, **options))
            assert who(await place.ask(hard)) == "b"
            assert "routers" not in (await place.get("/healthz")).json()
            kept.unlink()  # what works is not read again
            place.worker.swap(place.snapshot(3, **options))
            assert who(await place.ask(hard)) == "b"
            place.worker.swap(place.snapshot(4, **routing(model=tmp_path / "none.json", fallback="code")))
            assert who(await place.ask(hard)) == "c"
            named = routing(model=keep_model(tmp_path / "router.json", tmp_path, {"production", "big"}))
            without = {
                **named,
                "choices": (target("code", "c"),),
                "router": named["router"].model_copy(update={"rules": ()}),
            }
            place.worker.swap(place.snapshot(5, **without))
            assert who(await place.ask(hard)) == "a"
            assert "does not have" in (await place.get("/healthz")).json()["routers"]["m"]

    run(test)


def test_a_router_may_name_targets_of_the_route_only(tmp_path: Path, routing_model: RouterModel) -> None:
    routing_model.write(tmp_path / "router.json")
    with pytest.raises(ConfigError, match="chooses 'big'"):
        keep_model(tmp_path / "router.json", tmp_path, {"production", "other"})
    with pytest.raises(DataError, match="cannot read"):
        keep_model(tmp_path / "none.json", tmp_path, {"production"})
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError):
        keep_model(tmp_path / "bad.json", tmp_path, {"production"})


def test_a_router_that_raises_fails_no_request(tmp_path: Path) -> None:
    config = routing()["router"]
    assert Chooser(config, ["big", "code"]).choose("completions", {}, {}) == ("production", "failed", None)
    # A pattern that came past the configuration's check: the snapshot is served all the same.
    rule = config.rules[1]
    broken = rule.model_copy(update={"match": (rule.match[0].model_copy(update={"pattern": "("}),)})
    options = routing(fallback="big")
    options["router"] = options["router"].model_copy(update={"rules": (broken,)})

    async def test() -> None:
        async with world(tmp_path, "a", "b", "c", routing=routing()) as place:
            snapshot = place.snapshot(2, **routing(fallback="big"))
            route = snapshot.routes[0].model_copy(update={"router": options["router"]})
            place.worker.swap(snapshot.model_copy(update={"routes": (route,)}))
            assert who(await place.ask(chat("select a from b"))) == "b"
            assert place.rows("end")[-1]["slices"] == ["router:failed"]
            assert "cannot be used" in (await place.get("/healthz")).json()["routers"]["m"]

    run(test)


# --- beside a canary, an experiment, a shadow -------------------------------------------------------------------------


def test_canary_and_shadow_beside_a_router(tmp_path: Path) -> None:
    async def test() -> None:
        canary = Canary(target=target("v2", "d"), share=5000, salt="s")
        shadow = Shadow(target=target("v3", "s"), share=10_000, salt="t")
        options = routing(canary=canary, shadow=shadow)
        async with world(tmp_path, "a", "b", "c", "d", "s", routing=options) as place:
            for number in range(24):
                await place.ask(chat("my credit card" if number % 2 else "hello", user=f"user-{number}"))
            await place.until(lambda: len(place.rows("shadow")) == 24)
            lanes = set()
            for row in place.rows("end"):
                expected = assign(place.snapshot(1, **options).routes[0], row["user"])
                lanes.add(row["lane"])
                assert (row["lane"], row["arm"]) == (expected.lane, expected.arm)
                if row["lane"] == "canary":
                    assert row["target"] == "v2" and "slices" not in row
                else:
                    rich = "credit" in row["request"]["messages"][0]["content"]
                    assert row["target"] == ("big" if rich else "v1")
                    assert row["slices"] == ["router:rule:cards" if rich else "router:fallback"]
            assert lanes == {"canary", "production"}
            assert {row["target"] for row in place.rows("shadow")} == {"v3"}

    run(test)


def test_arms_of_an_experiment_go_first(tmp_path: Path) -> None:
    async def test() -> None:
        arms = (
            Arm(name="control", weight=1, target=target("v1", "a")),
            Arm(name="blue", weight=1, target=target("v2", "d")),
        )
        options = routing(experiment=Experiment(name="e", arms=arms))
        async with world(tmp_path, "a", "b", "c", "d", routing=options) as place:
            seen = {who(await place.ask(chat("my credit card", user=f"u{n}"))) for n in range(16)}
            assert seen == {"a", "d"}
            assert all("slices" not in row for row in place.rows("end"))

    run(test)


# --- records, rollouts, control ---------------------------------------------------------------------------------------


def test_golden_snapshots_are_read_for_ever() -> None:
    old = Snapshot.from_json((GOLDEN / "snapshot-v1.json").read_bytes())
    assert [route.model for route in old.routes] == ["chat", "other"]
    for route in old.routes:
        assert (route.choices, route.router, route.aggregate) == ((), None, None)
    written = (GOLDEN / "snapshot-v1-routing.json").read_bytes()
    new = Snapshot.from_json(written)
    assert new.to_bytes() == written.rstrip(b"\n")
    chat_route = new.routes[0]
    assert chat_route.model_copy(update={"choices": (), "router": None}) == old.routes[0]
    assert [target.name for target in chat_route.targets()] == ["v1.2", "v1.3", "big"]
    assert [route.aggregate.kind for route in new.routes[2:] if route.aggregate] == [
        "vote",
        "judge",
        "synthesise",
    ]


VOTE = {"kind": "vote", "targets": ["production", "big"]}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"router": {"fallback": "huge"}}, "'huge' is no choice of the route"),
        ({"router": {"fallback": "big", "rules": [{**RULES[1], "target": "v1"}]}}, "'v1' is no choice"),
        ({"aggregate": {**VOTE, "kind": "judge", "judge": "nobody"}}, "'nobody' is no choice"),
        ({"aggregate": {**VOTE, "targets": ["big", "big"]}}, "'big' is there twice"),
        ({"aggregate": VOTE, "router": {"fallback": "big"}}, "not both"),
        ({"router": {"fallback": "big", "rules": [{**RULES[0], "name": "with, comma"}]}}, "name"),
    ],
)
def test_names_that_routing_uses_must_be_there(given: dict[str, Any], says: str) -> None:
    route = {"model": "m", "production": target("v1"), "choices": [target("big")], **given}
    with pytest.raises(ValidationError, match=says):
        Route.model_validate(route)
    place = {"upstream": "a", "model": "x"}
    with pytest.raises(ValidationError, match=says):
        RouteConfig.model_validate({"model": "m", "production": place, "choices": {"big": place}, **given})


def test_choices_have_names_of_their_own() -> None:
    with pytest.raises(ValidationError, match="'production' is what production is called"):
        Route(model="m", production=target("v1"), choices=(target("production"),))
    with pytest.raises(ValidationError, match="'big' is there twice"):
        Route(model="m", production=target("v1"), choices=(target("big"), target("big")))
    with pytest.raises(ValidationError, match="nothing chooses among them"):
        RouteConfig.model_validate(
            {"model": "m", "production": {"upstream": "a"}, "choices": {"big": {"upstream": "a"}}}
        )


def test_a_rollout_keeps_how_a_route_chooses() -> None:
    before = make_snapshot()
    more = routing(choices=(target("big", "a"), target("code", "b")))
    more.pop("production")
    routed = before.route("chat").model_copy(update=more)
    snapshot = before.model_copy(update={"routes": (routed, *before.routes[1:])})
    spec = make_spec()
    for stage in range(LAST + 1):
        snapshot = snapshot_for(snapshot, spec, fold(spec, entries_of(history(spec, stage))), at="now")
        route = snapshot.route("chat")
        assert (route.choices, route.router) == (routed.choices, routed.router)
    assert route.production == spec.candidate and route.named("production") == spec.candidate


def test_an_answer_that_a_router_gave_is_not_taken_for_a_misplaced_one() -> None:
    def seen(row: dict[str, Any]) -> Any:
        observer = Observer(make_spec(), EPOCHS)
        observer.add([row])
        return observer.observation()

    other = make_row("p", "somebody", epoch=6, release=OLD)
    assert seen(other).misplaced == 1, "in its last stage production is the candidate"
    routed = seen({**other, "slices": ["router:rule:sql"]})
    assert routed.misplaced == 0 and not routed.tallies, "it says nothing of the candidate"
    mine = seen({**other, "release": NEW, "slices": ["router:fallback"]})
    assert mine.misplaced == 0 and mine.tallies


def test_a_rollback_keeps_how_a_route_chooses() -> None:
    canary = Canary(target=target("v2"), share=1, salt="s")
    before = Snapshot.model_validate(
        {
            "epoch": 1,
            "at": "now",
            "reason": "test",
            "upstreams": [{"name": name, "url": "http://127.0.0.1:1/v1"} for name in "abc"],
            "routes": [Route(model="m", rollout="r-1", unit="request", **routing(canary=canary))],
        }
    )
    (route,) = back_to("m", target("v0"), ())(before).routes
    assert route == Route(model="m", unit="request", **routing(production=target("v0")))


@pytest.mark.xdist_group("control")
def test_a_gateway_deploys_choices_and_takes_up_new_rules(tmp_path: Path, routing_model: RouterModel) -> None:
    routing_model.write(tmp_path / "router.json")
    rule = {"name": "cards", "target": "v9", "match": [{"kind": "keywords", "words": ["credit card"]}]}

    def config(old: MockUpstream, new: MockUpstream, **router: Any) -> ServeConfig:
        route = {
            "model": "m",
            "production": {"upstream": "old", "model": "small"},
            "engine": {"engine": "openai", "url": new.url},
            "choices": {"big": {"upstream": "old", "model": "giant"}, "v9": {"release": "v9"}},
            "router": {"fallback": "production", **router},
        }
        return serve_config(old, new, routes=[route], workers=1).with_paths_from(tmp_path)

    async def ask(control: Control, text: str) -> str:
        client = Client(*await asyncio.open_connection("127.0.0.1", control.port))
        reply = await client.ask(chat(text))
        client.close()
        return str(reply.json()["choices"][0]["message"]["content"])

    async def test() -> None:
        old, new = await MockUpstream("old").start(), await MockUpstream("new").start()
        home = open_home(Settings(home=tmp_path / "home"))
        make_release(home, "v9")
        learned = config(old, new, model="router.json", rules=[rule])
        async with Control(learned, home).running() as control:
            assert await ask(control, "prove the theorem by induction") == "old says giant"
            assert await ask(control, "say hello to my friend") == "old says small"
            assert await ask(control, "a credit card") == "new says new"
            (kept,) = (control.folder / "routers").iterdir()
            (route,) = control.swapper.current.routes
            assert route.router is not None and route.router.model == str(kept)
            assert [choice.name for choice in route.choices] == ["big", "v9"]
            assert route.choices[1].release is not None
        async with Control(learned, home).running() as control:
            assert control.swapper.current.epoch == 1, "nothing has changed"
            assert await ask(control, "a credit card") == "new says new"
        async with Control(config(old, new, rules=[{**rule, "target": "big"}]), home).running() as control:
            assert control.swapper.current.epoch == 2
            assert await ask(control, "a credit card") == "old says giant"
            assert await ask(control, "prove the theorem by induction") == "old says small"
        await old.stop()
        await new.stop()

    run(test)
