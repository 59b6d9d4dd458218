"""The engines that we start: base and adapters at once, by name, each giving exactly its own text."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from posttrain.core.errors import ModelError
from posttrain.engines.drivers.adapters import AdapterManager
from posttrain.engines.drivers.http_client import Answer, call
from posttrain.engines.drivers.llama_cpp import LlamaCppDriver
from posttrain.engines.drivers.records import LlamaCppConfig
from posttrain.engines.drivers.server_driver import ServerDriver
from posttrain.engines.errors import EngineError
from tests.engines.drivers_world import GREEDY, QUESTIONS, World, ask, ask_all, events, save_adapter

pytestmark = pytest.mark.xdist_group("drivers")


@pytest.fixture(params=["transformers", "llama"])
def engine(request: pytest.FixtureRequest) -> ServerDriver:
    """Each engine, running."""
    driver: ServerDriver = request.getfixturevalue(f"drivers_{request.param}")
    return driver


@pytest.fixture
def manager(engine: ServerDriver, drivers_world: World, tmp_path: Any) -> Iterator[AdapterManager]:
    """Adapters on the engine; taken off at the end."""
    manager = AdapterManager(engine, url=engine.start(), store=drivers_world.store, staging=tmp_path)
    yield manager
    for name in manager.loaded():
        manager.unroute(name)
        manager.unload(name)


def post(url: str, path: str, body: Any, key: str | None = None) -> Answer:
    return call("POST", url + path, seconds=60, body=body, key=key)


def said(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Texts without half a character at their end, which engines show or drop as they like."""
    return {name: {q: text.rstrip("\ufffd") for q, text in texts.items()} for name, texts in found.items()}


def test_the_base_and_two_adapters_answer_at_once_from_one_engine_each_in_its_own_words(
    engine: ServerDriver, manager: AdapterManager, drivers_world: World
) -> None:
    url = engine.start()
    names = {"base": engine.base} | {
        name: manager.load(drivers_world.adapters[name]) for name in ("red", "blue")
    }
    found = ask_all(url, names, rounds=3)
    assert said(found) == said({name: drivers_world.texts[name] for name in names})
    for question in QUESTIONS:
        assert len({found[name][question] for name in names}) == 3, "the adapters do not differ visibly"
    assert {model.name: model.adapter for model in engine.models()} == {
        names["base"]: False,
        names["red"]: True,
        names["blue"]: True,
    }
    assert engine.busy(list(names.values())) == dict.fromkeys(names.values(), 0)


def test_a_rank_stabilised_adapter_is_that_of_its_merged_weights(
    engine: ServerDriver, manager: AdapterManager, drivers_world: World
) -> None:
    name = manager.load(drivers_world.adapters["green"])
    found = ask_all(engine.start(), {"green": name})
    assert said(found) == said({"green": drivers_world.texts["green"]})


def test_an_adapter_goes_and_comes_and_the_base_stays_what_it_was(
    engine: ServerDriver, manager: AdapterManager, drivers_world: World
) -> None:
    url = engine.start()
    name = manager.load(drivers_world.adapters["red"])
    manager.unload(name)
    assert post(url, "/completions", {"model": name, "prompt": "Mia", **GREEDY}).status == 404
    assert said(ask_all(url, {"base": engine.base})) == said({"base": drivers_world.texts["base"]})
    assert manager.load(drivers_world.adapters["red"]) == name
    assert said(ask_all(url, {"red": name})) == said({"red": drivers_world.texts["red"]})


def test_adapters_are_loaded_under_load_and_no_request_fails_or_changes(
    engine: ServerDriver, manager: AdapterManager, drivers_world: World
) -> None:
    url = engine.start()
    red = manager.load(drivers_world.adapters["red"])
    over = threading.Event()

    def keep_asking(name: str, ours: str) -> int:
        count = 0
        while not over.is_set() or count < len(QUESTIONS):
            question = QUESTIONS[count % len(QUESTIONS)]
            text = ask(url, name, question)
            assert text.rstrip("\ufffd") == drivers_world.texts[ours][question].rstrip("\ufffd")
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, red, "red"), pool.submit(keep_asking, engine.base, "base")] * 2
        try:
            for _ in range(2):
                manager.unload(manager.load(drivers_world.adapters["blue"]))
        finally:
            over.set()
        assert all(task.result() >= len(QUESTIONS) for task in asking)


def test_a_stream_says_what_the_whole_answer_says(engine: ServerDriver, drivers_world: World) -> None:
    url = engine.start()
    body = {
        "model": engine.base,
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
        **GREEDY,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = post(url, "/chat/completions", body)
    chunks = events(answer.body)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text.rstrip("\ufffd") == drivers_world.texts["base"][QUESTIONS[0]].rstrip("\ufffd")
    assert choices[-1]["finish_reason"] == "length"
    assert len(choices) > 5, "it came in pieces"
    whole = post(url, "/chat/completions", {**body, "stream": False, "stream_options": None}).json()
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == whole["usage"][name]
    assert whole["usage"]["completion_tokens"] == GREEDY["max_tokens"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_plain_completions_go_on_with_the_text(engine: ServerDriver) -> None:
    url = engine.start()
    body = {"model": engine.base, "prompt": "Mia has", **GREEDY}
    whole = post(url, "/completions", body).json()["choices"][0]
    chunks = events(post(url, "/completions", {**body, "stream": True}).body)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    assert text.rstrip("\ufffd") == whole["text"].rstrip("\ufffd") != ""
    assert whole["finish_reason"] == "length"


def test_a_seed_stands_for_its_text_whatever_is_asked_beside_it(engine: ServerDriver) -> None:
    url = engine.start()

    def draw(seed: int) -> str:
        return ask(url, engine.base, QUESTIONS[0], temperature=1.5, seed=seed)

    alone = [draw(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, [0, 1, 2, 3] * 2)) == alone * 2


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(engine: ServerDriver) -> None:
    url = engine.start()
    text = ask(url, engine.base, QUESTIONS[0])
    stop = text[9:12]
    assert "\ufffd" not in stop
    assert ask(url, engine.base, QUESTIONS[0], stop=[stop, "never written"]) == text[: text.index(stop)]
    body = {"model": engine.base, "messages": [{"role": "user", "content": QUESTIONS[0]}], **GREEDY}
    chunks = events(post(url, "/chat/completions", {**body, "stop": stop, "stream": True}).body)
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    streamed = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert streamed == text[: text.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "change", "status"),
    [
        ("/chat/completions", {"model": "nobody"}, 404),
        ("/chat/completions", {"model": None}, {400, 404}),
        ("/chat/completions", {"messages": "Hello?"}, {400, 500}),
        ("/chat/completions", {"messages": [{"role": "user", "content": "many " * 400}]}, 400),
        ("/completions", {"prompt": "many " * 400}, 400),
        ("/nowhere", {}, 404),
        ("/../slots", {}, 404),
        ("/../lora-adapters", {}, 404),
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc"}, 401),
        ("/unload_lora_adapter", {"lora_name": "x"}, 401),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_engine_goes_on(
    engine: ServerDriver, path: str, change: dict[str, Any], status: int | set[int]
) -> None:
    url = engine.start()
    body = {"model": engine.base, "messages": [{"role": "user", "content": "Hello?"}], **GREEDY, **change}
    answer = post(url, path, body, key="not the key")
    assert answer.status in ({status} if isinstance(status, int) else status), answer.message()
    assert answer.json()["error"]["message"]
    assert engine.health().ok
    assert ask(url, engine.base, QUESTIONS[0])


@pytest.mark.parametrize(
    "raw", [b"\0\1\2\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n\r\n"]
)
def test_bytes_that_are_no_request_get_an_error_or_nothing(engine: ServerDriver, raw: bytes) -> None:
    port = int(engine.start().split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert engine.health().ok


def test_requests_on_one_connection_are_answered_in_order(engine: ServerDriver) -> None:
    port = int(engine.start().split(":")[2].split("/")[0])
    one = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(one + one + last)
        answer = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.endswith(b'{"status": "ok"}')
    assert answer.count(engine.base.encode()) == 2


def test_what_the_transformers_engine_has_not_is_refused_not_ignored(
    drivers_transformers: ServerDriver,
) -> None:
    url = drivers_transformers.start()
    body = {
        "model": drivers_transformers.base,
        "messages": [{"role": "user", "content": "Hello?"}],
        **GREEDY,
    }
    for change in (
        {"n": 2},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"temperature": -1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"messages": []},
    ):
        answer = post(url, "/chat/completions", {**body, **change})
        assert answer.status == 400, (change, answer.message())
    assert call("GET", f"{url}/chat/completions", seconds=10).status == 405


def test_a_client_cannot_reach_an_adapter_by_its_number(
    drivers_llama: ServerDriver, drivers_world: World, tmp_path: Any
) -> None:
    url = drivers_llama.start()
    manager = AdapterManager(drivers_llama, url=url, store=drivers_world.store, staging=tmp_path)
    name = manager.load(drivers_world.adapters["red"])
    plain = ask(url, drivers_llama.base, QUESTIONS[0])
    assert ask(url, drivers_llama.base, QUESTIONS[0], lora=[{"id": 0, "scale": 1.0}], id_slot=0) == plain
    manager.unload(name)


def test_llama_cpp_gives_an_adapter_the_log_probabilities_of_its_merged_weights(
    drivers_llama: ServerDriver, drivers_world: World, tmp_path: Any
) -> None:
    import torch

    from posttrain.engines.model_folder import load_model, load_tokenizer

    model = load_model(drivers_world.model.folder)
    merged = save_adapter(model, tmp_path / "same as red", seed=0)
    tokenizer = load_tokenizer(drivers_world.model.folder)
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        wanted = merged(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    url = drivers_llama.start()
    staging = tmp_path / "staging"
    manager = AdapterManager(drivers_llama, url=url, store=drivers_world.store, staging=staging)
    name = manager.load(drivers_world.adapters["red"])
    body = {"model": name, "messages": chat, **GREEDY, "max_tokens": 1, "logprobs": True, "top_logprobs": 8}
    found = post(url, "/chat/completions", body).json()["choices"][0]["logprobs"]["content"][0]
    for row in found["top_logprobs"]:
        assert math.isclose(row["logprob"], wanted[row["id"]].item(), abs_tol=2e-3)
    assert {row["id"] for row in found["top_logprobs"]} == set(wanted.topk(8).indices.tolist())
    manager.unload(name)


def test_a_client_that_goes_away_is_not_computed_for(engine: ServerDriver) -> None:
    def made() -> float:
        found = engine.metrics()
        return found.get("posttrain_engine_tokens_total", found.get("llamacpp:tokens_predicted_total", -1))

    port = int(engine.start().split(":")[2].split("/")[0])
    body = json.dumps(
        {"model": engine.base, "prompt": "Mia has", "temperature": 0, "max_tokens": 200, "stream": True}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    before = made()
    assert before >= 0
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    for sock in sockets:
        sock.sendall(head + body)
    for sock in sockets:
        sock.close()
    until = time.monotonic() + 30
    while engine.busy([engine.base])[engine.base]:
        assert time.monotonic() < until
        time.sleep(0.02)
    ask(engine.start(), engine.base, QUESTIONS[0])  # what was cancelled is over when this one's turn has come
    assert made() - before < 30 * 200 / 2


@pytest.mark.parametrize("kind", ["transformers", "llama"])
def test_an_adapter_for_another_model_is_refused_and_leaves_the_engine_as_it_was(
    kind: str, request: pytest.FixtureRequest, drivers_world: World, tmp_path: Any
) -> None:
    from safetensors.numpy import load_file, save_file

    driver: ServerDriver = request.getfixturevalue(f"drivers_{kind}")
    source = drivers_world.adapters["red"].folder
    (tmp_path / "wrong").mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    # The first layers fit: a loader that changes the model as it reads would leave them on it.
    last = max(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[last] = tensors[last][:-1]
    save_file(tensors, tmp_path / "wrong" / "adapter_model.safetensors")
    (tmp_path / "wrong" / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    with pytest.raises((EngineError, ModelError)):
        driver.load_adapter("wrong@1", tmp_path / "wrong")
    assert said(ask_all(driver.start(), {"base": driver.base})) == said({"base": drivers_world.texts["base"]})
    assert [model.name for model in driver.models()] == [driver.base]


def test_llama_cpp_with_cached_prefixes_and_shared_batches_mixes_up_nobody(
    drivers_llama: ServerDriver, drivers_world: World, tmp_path: Any
) -> None:
    """Four at once, prompts cached: all are asked alike, so a cache that forgot adapters would show."""
    drivers_llama.start()  # has made the GGUF
    config = LlamaCppConfig(
        model="tiny", context_tokens=256, threads=1, dtype="float32", cache_dtype="float32", max_adapters=2
    )
    cache = drivers_llama.log.parent / "cache"
    driver = LlamaCppDriver(config, drivers_world.model, workdir=tmp_path / "work", cache=cache)
    url = driver.start()
    try:
        manager = AdapterManager(driver, url=url, store=drivers_world.store, staging=tmp_path / "staging")
        names = {"base": driver.base} | {
            name: manager.load(drivers_world.adapters[name]) for name in ("red", "blue")
        }
        for _ in range(2):
            found = ask_all(url, names, rounds=4)
            assert said(found) == said({name: drivers_world.texts[name] for name in names})
        assert not driver.determinism().batch_invariant
    finally:
        driver.stop()


def test_an_engine_that_cannot_start_says_why(drivers_world: World, tmp_path: Any) -> None:
    pytest.importorskip("xllamacpp")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF, but not really")
    model = drivers_world.model.model_copy(update={"folder": folder})
    config = LlamaCppConfig(model="broken")
    driver = LlamaCppDriver(config, model, workdir=tmp_path / "work", cache=tmp_path / "cache")
    with pytest.raises(EngineError, match="ended with status 1") as caught:
        driver.start()
    assert "llama.cpp cannot load" in str(caught.value)
    assert str(driver.log) in (caught.value.hint or "")
    assert not driver.health().ok


def test_a_model_without_a_gguf_form_is_an_error_of_one_line(drivers_world: World, tmp_path: Any) -> None:
    pytest.importorskip("xllamacpp")
    model = drivers_world.model.model_copy(update={"folder": tmp_path})
    driver = LlamaCppDriver(LlamaCppConfig(model="x"), model, workdir=tmp_path / "w", cache=tmp_path / "c")
    with pytest.raises(EngineError, match=r"cannot be made a GGUF: .*config.json is missing"):
        driver.start()


def test_an_engine_that_dies_is_known_to_be_dead_and_starts_again(
    drivers_llama: ServerDriver, drivers_world: World, tmp_path: Any
) -> None:
    drivers_llama.start()
    config = LlamaCppConfig(
        model="tiny", context_tokens=256, threads=1, dtype="float32", cache_dtype="float32"
    )
    cache = drivers_llama.log.parent / "cache"
    driver = LlamaCppDriver(config, drivers_world.model, workdir=tmp_path / "work", cache=cache)
    url = driver.start()
    try:
        manager = AdapterManager(driver, url=url, store=drivers_world.store, staging=tmp_path / "staging")
        name = manager.load(drivers_world.adapters["red"])
        pid = driver.health().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 30
        while driver.health().ok:
            assert time.monotonic() < until
        assert "it ended with status" in driver.health().detail
        again = driver.start()
        assert [model.name for model in driver.models()] == [driver.base]
        manager.move(again)
        assert manager.reconcile() == [name]
        assert manager.reconcile() == []
        assert said(ask_all(again, {"red": name})) == said({"red": drivers_world.texts["red"]})
    finally:
        driver.stop()


def test_a_temperature_and_no_more_samples_from_the_whole_distribution(engine: ServerDriver) -> None:
    """llama.cpp alone would choose among 40 tokens at most, so one release would mean two things on two engines."""
    url = engine.start()

    def first_token(seed: int) -> str:
        return ask(url, engine.base, QUESTIONS[0], max_tokens=1, temperature=50.0, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(first_token, range(150)))
    assert len(found) > 45
