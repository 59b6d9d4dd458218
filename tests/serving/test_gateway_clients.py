"""Clients that people use, unchanged: the official openai package, curl, node."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serving.gateway_world import World, chat, threaded_world

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]
MESSAGES: Any = [{"role": "user", "content": "1 + 2?"}]


@pytest.fixture(scope="module")
def clients_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with threaded_world(tmp_path_factory.mktemp("clients")) as place:
        yield place


@pytest.fixture
def client(clients_place: World) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{clients_place.worker.port}/v1", api_key="any", max_retries=0
    ) as client:
        yield client


def test_openai_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=MESSAGES, temperature=0)
    assert (
        answer.choices[0].message.content == "a says v1@1"
        and answer.usage
        and answer.usage.prompt_tokens == 7
    )
    assert answer._request_id
    text = client.completions.create(model="m", prompt="once")
    assert text.choices[0].text == "a says v1@1"


def test_openai_streams(client: openai.OpenAI) -> None:
    parts = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "a says v1@1"
    assert all(part.usage is None for part in parts)
    parts = list(
        client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert parts[-1].usage and parts[-1].usage.completion_tokens == 5
    text = list(client.completions.create(model="m", prompt="once", stream=True))
    assert "".join(part.choices[0].text for part in text) == "a says v1@1"
    with client.chat.completions.stream(model="m", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content == "a says v1@1"


def test_openai_tools_and_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS)
    calls = answer.choices[0].message.tool_calls
    assert (
        calls and calls[0].type == "function" and json.loads(calls[0].function.arguments) == {"a": 1, "b": 2}
    )
    arguments = ""
    for part in client.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS, stream=True):
        for call in part.choices[0].delta.tool_calls or []:
            arguments += (call.function and call.function.arguments) or ""
    assert json.loads(arguments) == {"a": 1, "b": 2}
    answer = client.chat.completions.create(
        model="m", messages=MESSAGES, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content or "") == {"answer": 3}


def test_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert missing.value.code == "model_not_found" and missing.value.request_id
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages="hi")  # type: ignore[call-overload]
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="m", messages=MESSAGES, extra_body={"mock": {"status": 429}})
    with pytest.raises(openai.InternalServerError) as broken:
        client.chat.completions.create(model="m", messages=MESSAGES, extra_body={"mock": {"cut": "at once"}})
    assert broken.value.status_code == 502
    stream = client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, extra_body={"mock": {"cut": "in body"}}
    )
    with pytest.raises(openai.APIError):
        list(stream)


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "posttrain"


def test_openai_client_that_stops_reading(client: openai.OpenAI, clients_place: World) -> None:
    stream = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        stream=True,
        extra_body={"mock": {"chunks": 11, "gap": 0.2, "times": 5}},
        extra_headers={"x-request-id": "left-in-the-middle"},
    )
    next(iter(stream))
    stream.close()
    while not [row for row in clients_place.rows("end") if row["id"] == "left-in-the-middle"]:
        pass
    row = next(row for row in clients_place.rows("end") if row["id"] == "left-in-the-middle")
    assert row["finish"] == "cancelled"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(clients_place: World) -> None:
    url = f"http://127.0.0.1:{clients_place.worker.port}/v1"

    def curl(*arguments: str, stdin: bytes | None = None) -> str:
        done = subprocess.run(
            ["curl", "-sS", "--max-time", "20", *arguments], capture_output=True, check=True, input=stdin
        )
        return done.stdout.decode()

    body = json.dumps(chat())
    json_type = ("-H", "content-type: application/json")
    whole = curl(*json_type, "-d", body, f"{url}/chat/completions")
    assert json.loads(whole)["choices"][0]["message"]["content"] == "a says v1@1"
    streamed = curl("-N", *json_type, "-d", json.dumps(chat(stream=True)), f"{url}/chat/completions")
    assert streamed.endswith("data: [DONE]\n\n")
    # A large body: curl asks for 100-continue first.
    large = json.dumps(chat("x" * 2_000_000)).encode()
    answer = curl(
        *json_type,
        "-H",
        "expect: 100-continue",
        "--data-binary",
        "@-",
        f"{url}/chat/completions",
        stdin=large,
    )
    assert json.loads(answer)["choices"]
    chunked = ("-H", "transfer-encoding: chunked", "--data-binary", "@-")
    assert json.loads(curl(*json_type, *chunked, f"{url}/chat/completions", stdin=body.encode()))["choices"]
    assert json.loads(curl("--http2", f"{url}/models"))["data"]
    two = curl(f"{url}/models", f"{url}/models", "-w", "%{num_connects} ")
    assert two.count('"object":"list"') == 2 and two.rstrip().endswith("0"), (
        "the second used the first's connection"
    )
    assert "200" in curl("-I", f"{url}/models")


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_node_fetch(clients_place: World) -> None:
    script = """
    const url = process.argv[1];
    const post = (body) => fetch(url, {method: "POST", headers: {"content-type": "application/json"},
                                       body: JSON.stringify(body)});
    const chat = {model: "m", messages: [{role: "user", content: "hi"}]};
    const whole = await (await post(chat)).json();
    const streamed = await (await post({...chat, stream: true})).text();
    const error = await post({...chat, model: "nobody"});
    console.log(JSON.stringify([whole.choices[0].message.content, streamed.endsWith("data: [DONE]\\n\\n"),
                                error.status, (await error.json()).error.code]));
    """
    url = f"http://127.0.0.1:{clients_place.worker.port}/v1/chat/completions"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script, url], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == ["a says v1@1", True, 404, "model_not_found"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_tls_by_file(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with threaded_world(tmp_path / "log", tls_certificate=str(certificate), tls_key=str(key)) as place:
        trusting = ssl.create_default_context(cafile=str(certificate))
        for stream in (False, True):
            request = urllib.request.Request(
                f"https://127.0.0.1:{place.worker.port}/v1/chat/completions",
                json.dumps(chat(stream=stream)).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, context=trusting, timeout=20) as answer:
                assert (
                    b"a says v1@1" in answer.read() if not stream else answer.read().endswith(b"[DONE]\n\n")
                )
