"""The official JavaScript client, unchanged, fetched with npm into ``POSTTRAIN_TEST_NPM`` or a new folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.serving.access import Budgets, KeyFile
from tests.serving.gateway_world import World, threaded_world

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``node_modules`` lies in, with the version that ``package.json`` names."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node or no npm here")
    kept = os.environ.get("POSTTRAIN_TEST_NPM")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("npm")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", folder)
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund"],
        cwd=folder, capture_output=True, check=False, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm cannot install the client here: {done.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str, str]]:
    folder = tmp_path_factory.mktemp("javascript")
    access = {"access": str(folder / "keys.json"), "budgets": str(folder / "budgets")}
    keys = KeyFile(folder / "keys.json")
    good = keys.create_key("ann").token
    poor = keys.create_key("bob", budgets=Budgets(requests_per_minute=1)).token
    with threaded_world(folder / "log", **access) as place:
        yield place, good, poor


@pytest.fixture(scope="module")
def answers(packages: Path, gateway: tuple[World, str, str]) -> Any:
    """What the client got."""
    place, good, poor = gateway
    options = {
        "url": f"http://127.0.0.1:{place.worker.port}/v1",
        "key": good,
        "poor": poor,
        "packages": str(packages),
    }
    # The first request of the minute is allowed; the second is the script's.
    body = b'{"model":"m","messages":[]}'
    first = urllib.request.Request(
        f"{options['url']}/chat/completions", body, {"authorization": f"Bearer {poor}"}
    )
    urllib.request.urlopen(first, timeout=20).close()
    done = subprocess.run(
        ["node", str(HERE / "openai_client.mjs"), json.dumps(options)],
        capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_answers(answers: Any) -> None:
    assert answers["whole"] == {"text": "a says v1@1", "usage": 12, "id": True}
    assert answers["text"] == answers["stream"] == answers["helper"] == "a says v1@1"
    assert answers["usage"] == 5
    assert answers["tools"] == {"name": "add", "whole": {"a": 1, "b": 2}, "streamed": {"a": 1, "b": 2}}
    assert answers["json"] == {"answer": 3}
    assert answers["models"] == {"names": ["m"], "owner": "posttrain"}


@pytest.mark.parametrize(
    ("call", "kind", "status", "code"),
    [
        ("missing", "NotFoundError", 404, "model_not_found"),
        ("bad", "BadRequestError", 400, None),
        ("wrong", "AuthenticationError", 401, "invalid_api_key"),
        ("poor", "RateLimitError", 429, "rate_limit_exceeded"),
        ("limited", "RateLimitError", 429, "mock"),
        ("broken", "InternalServerError", 502, "upstream_error"),
        ("cut", "APIError", None, "upstream_error"),
    ],
)
def test_errors_are_of_the_clients_own_kinds(
    answers: Any, call: str, kind: str, status: int | None, code: str | None
) -> None:
    told = answers[call]
    assert (told["kind"], told["status"], told["code"]) == (kind, status, code)
    if status is not None:
        assert told["id"], "without an id nobody can ask about it"
    if call == "poor":
        assert int(told["retry"]) >= 1


@pytest.mark.parametrize("name", ["left-in-the-middle", "left-while-waiting"])
def test_who_leaves_is_seen_to_leave(answers: Any, gateway: tuple[World, str, str], name: str) -> None:
    assert answers["abort"].endswith("left-in-the-middle") and answers["signal"] == "APIUserAbortError"
    place = gateway[0]

    def rows() -> list[dict[str, Any]]:
        return [row for row in place.rows("end") if row["id"].endswith(name)]

    while not rows():
        time.sleep(0.01)
    assert [row["finish"] for row in rows()] == ["cancelled"]
