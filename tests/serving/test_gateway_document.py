"""``/openapi.json`` says what the gateway does: every route, status and body; and nothing that comes breaks it.

The second half is schemathesis, where that is installed (``pip install schemathesis``): it makes requests from the
document, right and wrong ones, and holds the answers against it.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from posttrain.guardrails import GuardrailConfig
from posttrain.serving.access import Budgets, KeyFile
from posttrain.serving.gateway.config import LimitsConfig
from tests.serving.gateway_world import Reply, chat, request_bytes, run, threaded_world, world

SCOPES = ("chat", "completions", "feedback", "models", "metrics")
EXAMPLES = int(os.environ.get("POSTTRAIN_TEST_EXAMPLES", "15"))
ERRORS_OF_UPSTREAMS = {502, 503, 504}
"""What the gateway says where a model server fails; 500 is a fault of its own, and never right."""


def conforms(document: dict[str, Any], path: str, method: str, reply: Reply) -> str:
    """Hold an answer against the document; the key of the response that it is."""
    import jsonschema

    responses = document["paths"][path][method]["responses"]
    key = str(reply.status) if str(reply.status) in responses else "default"
    assert key in responses, f"{method} {path}: {reply.status} is not in the document"
    response = responses[key]
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
    kind = reply.headers["content-type"].partition(";")[0]
    if (content := response.get("content")) is not None:
        assert kind in content, f"{method} {path}: {reply.status} is {kind}"
        if kind == "application/json" and reply.body:
            schema = {**document, **content[kind]["schema"]}
            jsonschema.Draft202012Validator(schema).validate(reply.json())
    assert reply.headers["x-request-id"]
    return key


def test_every_route_is_in_the_document_and_the_other_way_about(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as place:
            document = (await place.get("/openapi.json")).json()
            routes = place.worker._routes  # the table itself: a route that is not named there does not exist
            table = {path.decode(): route for path, route in routes._routes.items()}
            table["/v1/models/{model}"] = routes._one_model
            assert set(document["paths"]) == set(table)
            for path, route in table.items():
                methods = {name.decode().lower() for name in route.methods} - {"head"}
                assert set(document["paths"][path]) == methods
                wrong = await place.ask(None, path.replace("{model}", "m"), method="DELETE")
                assert (wrong.status, wrong.code) == (405, "method_not_allowed")
                assert wrong.headers["allow"] == ", ".join(name.decode() for name in route.methods)
                operation = document["paths"][path][next(iter(methods))]
                assert (operation.get("security") == []) is (not route.scope), path

    run(test)


def test_every_status_that_it_gives_is_in_the_document(tmp_path: Path) -> None:
    """Each answer is provoked on a real worker, with keys, and held against the document."""
    keys = KeyFile(tmp_path / "keys.json")
    good = keys.create_key("ann", scopes=SCOPES)
    narrow = keys.create_key("bob", scopes=("chat",))
    poor = {
        scope: keys.create_key("eve", scopes=(scope,), budgets=Budgets(requests_per_minute=1))
        for scope in SCOPES
    }
    feedback = {"request_id": "r-1", "type": "abandon"}
    paths = {
        "/v1/chat/completions": ("post", chat(), "chat"),
        "/v1/completions": ("post", {"model": "m", "prompt": "x"}, "completions"),
        "/v1/feedback": ("post", feedback, "feedback"),
        "/v1/models": ("get", None, "models"),
        "/v1/models/{model}": ("get", None, "models"),
        "/metrics": ("get", None, "metrics"),
        "/healthz": ("get", None, ""),
        "/openapi.json": ("get", None, ""),
    }  # fmt: skip
    seen: dict[str, set[str]] = {}

    async def test() -> None:
        limits = LimitsConfig(
            max_body_bytes=1024, max_header_bytes=2048, body_seconds=0.1, max_in_flight=1, policy="shed"
        )
        access: dict[str, Any] = {"access": str(keys.path), "budgets": str(tmp_path / "budgets")}
        async with world(tmp_path / "log", limits=limits, **access) as place:
            document = (await place.get("/openapi.json")).json()

            async def tried(path: str, method: str, data: bytes) -> Reply:
                client = await place.client()
                await client.send(data)
                reply = await client.reply()
                client.close()
                seen.setdefault(path, set()).add(conforms(document, path, method, reply))
                return reply

            for path, (method, body, scope) in paths.items():
                url, verb = path.replace("{model}", "m"), method.upper()
                given = {"authorization": f"Bearer {good.token}"}

                async def ask(
                    expected: int,
                    said: Any = body,
                    headers: dict[str, str] = given,
                    *,
                    path: str = path,
                    url: str = url,
                    method: str = method,
                    **more: str,
                ) -> None:
                    data = request_bytes(said, url, method=method.upper(), headers={**headers, **more})
                    reply = await tried(path, method, data)
                    assert reply.status == expected, (path, reply.body)
                    if expected == 429:
                        assert int(reply.headers["retry-after"]) >= 1
                    if expected == 401:
                        assert reply.headers["www-authenticate"] == "Bearer"

                await ask(200)
                await ask(400, **{"transfer-encoding": "nonsense"})
                await ask(413, b"x" * 2000)
                await ask(417, expect="something")
                await ask(431, **{"x-much": "y" * 4000})
                head = request_bytes(None, url, method=verb, headers={**given, "content-length": "10"})
                assert (await tried(path, method, head)).status == 408
                if scope:
                    await ask(401, headers={})
                    mine = {"authorization": f"Bearer {poor[scope].token}"}
                    if scope != "chat":
                        await ask(403, headers={"authorization": f"Bearer {narrow.token}"})
                    else:
                        await ask(403, headers={"authorization": f"Bearer {poor['models'].token}"})
                    for _ in range(2):
                        await tried(path, method, request_bytes(body, url, method=verb, headers=mine))
                    await ask(429, headers=mine)
                if method == "post":
                    await ask(400, b"{")
                    await ask(415, b"\x1f\x8b", **{"content-encoding": "gzip"})
                if path.endswith("completions"):
                    await ask(200, {**body, "stream": True})
                    await ask(404, {**body, "model": "nobody"})
                    await ask(418, {**body, "mock": {"status": 418}})
                    await ask(502, {**body, "mock": {"cut": "at once"}})
            missing = request_bytes(None, "/v1/models/nobody", method="GET", headers=given)
            assert (await tried("/v1/models/{model}", "get", missing)).status == 404

    run(test, 120)
    for path, (_, _, scope) in paths.items():
        expected = {"200", "400", "408", "413", "417", "431"} | ({"401", "403", "429"} if scope else set())
        assert expected <= seen[path], path


# schemathesis


@pytest.fixture(
    scope="module",
    params=[
        "keys and guardrails",
        pytest.param("keys", marks=pytest.mark.slow),
        pytest.param("nothing", marks=pytest.mark.slow),
    ],
)
def documented(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A worker, its address, what a client of it sends with each request, and its document as schemathesis has it."""
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    folder = tmp_path_factory.mktemp("document")
    options: dict[str, Any] = {}
    headers = {}
    if "keys" in request.param:
        keys = KeyFile(folder / "keys.json")
        headers = {"Authorization": f"Bearer {keys.create_key('ann', scopes=SCOPES).token}"}
        options["access"] = str(keys.path)
    if "guardrails" in request.param:
        rules = [
            {"kind": "personal_data", "where": "both"},
            {"kind": "blocked_terms", "where": "both", "terms": ["a", "forbidden"]},
            {"kind": "prompt_injection"},
            {"kind": "json_schema", "action": "block"},
        ]
        options["guardrails"] = GuardrailConfig.model_validate({"rules": rules})
    with threaded_world(folder / "log", **options) as place:
        base = f"http://127.0.0.1:{place.worker.port}"
        with urllib.request.urlopen(f"{base}/openapi.json", timeout=20) as answer:
            document = json.load(answer)
        yield place, base, headers, schemathesis.openapi.from_dict(document)


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        ("/v1/chat/completions", "POST", "positive"),
        ("/v1/chat/completions", "POST", "negative"),
        ("/v1/completions", "POST", "positive"),
        ("/v1/completions", "POST", "negative"),
        ("/v1/feedback", "POST", "positive"),
        ("/v1/feedback", "POST", "negative"),
        ("/v1/models", "GET", "positive"),
        ("/v1/models/{model}", "GET", "positive"),
        ("/healthz", "GET", "positive"),
        ("/metrics", "GET", "positive"),
        ("/openapi.json", "GET", "positive"),
    ],
)
def test_made_up_requests_get_documented_answers(documented: Any, path: str, method: str, mode: str) -> None:
    import schemathesis
    from schemathesis.specs.openapi import checks

    place, base, headers, schema = documented
    kinds = [
        checks.status_code_conformance, checks.content_type_conformance, checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]  # fmt: skip
    strategy = schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    statuses: set[int] = set()

    def ask(case: Any) -> None:
        response = case.call(base_url=base, headers=headers, timeout=20)
        case.validate_response(response, checks=kinds)
        assert response.status_code < 500 or response.status_code in ERRORS_OF_UPSTREAMS, response.text
        statuses.add(response.status_code)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=strategy)
    def ask_all(case: Any) -> None:
        ask(case)
        if path.endswith("completions") and isinstance(case.body, dict):
            case.body["model"] = "m"  # a name that is made up is nobody's, and goes no further
            ask(case)

    ask_all()
    assert place.worker.context.admission.in_flight == 0
    if mode == "negative":
        assert 400 in statuses
    elif path != "/v1/models/{model}":
        assert 200 in statuses or path == "/v1/feedback"
