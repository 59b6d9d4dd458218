"""The admin surface over real sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.errors import ServingError, UsageError
from posttrain.rollouts.errors import RolloutError
from posttrain.serving.control.admin import AdminClient, AdminServer


async def _echo(given: Mapping[str, Any]) -> Any:
    return dict(given)


async def _refuse(given: Mapping[str, Any]) -> Any:
    raise RolloutError("not now", hint="later")


async def _usage(given: Mapping[str, Any]) -> Any:
    raise UsageError(f"unknown {given['what']}")


HANDLERS = {
    "GET /v1/status": _echo,
    "POST /v1/things/*": _echo,
    "POST /v1/refuse": _refuse,
    "POST /v1/usage": _usage,
}


def serve(folder: Path, use: Any) -> Any:
    async def main() -> Any:
        server = AdminServer(HANDLERS, folder=folder, host="127.0.0.1", port=0)
        server.start()
        try:
            return await asyncio.to_thread(use, server)
        finally:
            server.stop()

    return asyncio.run(main())


def test_calls_reach_their_handler_with_query_body_and_rest(tmp_path: Path):
    def use(server: AdminServer) -> None:
        client = AdminClient(tmp_path)
        assert client.call("GET", "/v1/status?a=1") == {"a": "1", "rest": ""}
        assert client.call("POST", "/v1/things/r-1/advance", {"x": [1]}) == {"x": [1], "rest": "r-1/advance"}

    serve(tmp_path, use)


def test_refusals_carry_their_hint(tmp_path: Path):
    def use(server: AdminServer) -> None:
        client = AdminClient(tmp_path)
        with pytest.raises(ServingError, match="not now") as refused:
            client.call("POST", "/v1/refuse", {})
        assert refused.value.hint == "later"
        with pytest.raises(ServingError, match="unknown it"):
            client.call("POST", "/v1/usage", {"what": "it"})
        with pytest.raises(ServingError, match="there is no POST /v1/nothing"):
            client.call("POST", "/v1/nothing", {})
        with pytest.raises(ServingError, match="KeyError"):
            client.call("POST", "/v1/usage", {})

    serve(tmp_path, use)


def raw(server: AdminServer, headers: dict[str, str], body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    try:
        connection.request("POST", "/v1/things/x", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_nothing_is_done_without_the_token(tmp_path: Path):
    def use(server: AdminServer) -> None:
        token = json.loads((tmp_path / "admin.json").read_text())["token"]
        assert stat.S_IMODE((tmp_path / "admin.json").stat().st_mode) == 0o600
        assert raw(server, {})[0] == 401
        assert raw(server, {"Authorization": f"Bearer {token[:-1]}"})[0] == 401
        assert raw(server, {"Authorization": "Bearer \xff"})[0] == 401
        right = {"Authorization": f"Bearer {token}"}
        assert raw(server, right, b"{}")[0] == 200
        assert raw(server, right, b"[]")[0] == 400
        assert raw(server, right, b"\xff{")[0] == 400
        assert raw(server, {**right, "Content-Length": str(2 << 20)})[0] == 413
        assert raw(server, {**right, "Content-Length": "-1"})[0] == 413

    serve(tmp_path, use)


def test_a_folder_without_a_gateway_says_how_to_start_one(tmp_path: Path):
    with pytest.raises(ServingError, match="no gateway answers") as refused:
        AdminClient(tmp_path)
    assert "posttrain serve" in str(refused.value.hint)
    serve(tmp_path, lambda server: None)
    with pytest.raises(ServingError, match="no gateway answers"):
        AdminClient(tmp_path)
