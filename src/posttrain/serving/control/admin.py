"""The admin surface: a separate address, loopback unless said otherwise, behind a token that only this user can read.

Here: HTTP in front of control's functions, and the client that the command line uses. Not here: what they do
(``control``). It is used by hand and by the console, not by traffic, so the standard library's threads do; each call
runs on control's own event loop, one after another where they touch the same thing.

*Covered*: no call without the token, no body above a mebibyte, errors as JSON with their hint. *Not covered*: TLS; put
a proxy or an SSH tunnel in front to reach it from elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
import http.client
import json
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from posttrain.core.atomic import write_atomic
from posttrain.core.errors import PosttrainError, ServingError, UnknownReferenceError, UsageError

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Gets the query and the JSON body as one mapping, and ``rest``: what stands behind the route's path."""

_BODY_BYTES = 1 << 20
_CALL_SECONDS = 600.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class AdminServer:
    """Serves handlers by ``METHOD /path``; a route that ends in ``/*`` takes what is behind it as ``rest``."""

    def __init__(self, handlers: Mapping[str, Handler], *, folder: Path, host: str, port: int) -> None:
        """``folder`` takes ``admin.json``, the address and the token, readable by this user alone."""
        self._handlers = dict(handlers)
        self._folder = folder
        self._token = secrets.token_urlsafe(32)
        self._loop = asyncio.get_running_loop()
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), self._request_handler())
        except OSError as error:
            raise ServingError(
                f"the admin surface cannot listen on {host}:{port}: {error.strerror}", hint="set `admin`"
            ) from error
        self._thread: threading.Thread | None = None
        self.host, self.port = host, int(self._server.server_address[1])

    def start(self) -> None:
        """Listen, and say where."""
        where = {"host": self.host, "port": self.port, "token": self._token}
        write_atomic(self._folder / "admin.json", json.dumps(where).encode(), mode=0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, name="admin", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        if self._thread is not None:
            self._server.shutdown()
        self._server.server_close()
        (self._folder / "admin.json").unlink(missing_ok=True)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON value of one call."""
        parts = urlsplit(target)
        found = self._find(method, parts.path)
        if found is None:
            return 404, _error(f"there is no {method} {parts.path}", None)
        handler, rest = found
        try:
            given = json.loads(body) if body else {}
            if not isinstance(given, dict):
                raise UsageError("the body must be a JSON object")
            call = handler({**dict(parse_qsl(parts.query)), **given, "rest": rest})
            value = asyncio.run_coroutine_threadsafe(_awaited(call), self._loop).result(_CALL_SECONDS)
        except PosttrainError as error:
            status = (
                404
                if isinstance(error, UnknownReferenceError)
                else 400
                if isinstance(error, UsageError)
                else 409
            )
            return status, _error(str(error), error.hint)
        except (ValueError, KeyError, TypeError) as error:
            return 400, _error(f"not a call that can be meant: {error!r}", None)
        except TimeoutError:
            return 504, _error("it takes long and goes on", "`posttrain rollout status` says how it ended")
        except Exception as error:  # a boundary: the caller must not be told that nobody is there
            return 500, _error(f"it failed: {error!r}", "`posttrain rollout status` says where things are")
        return 200, value

    def allowed(self, authorization: str | None) -> bool:
        """Whether a call has the token."""
        return hmac.compare_digest((authorization or "").encode(), f"Bearer {self._token}".encode())

    def _find(self, method: str, path: str) -> tuple[Handler, str] | None:
        if (exact := self._handlers.get(f"{method} {path}")) is not None:
            return exact, ""
        for route, handler in self._handlers.items():
            if route.endswith("/*") and f"{method} {path}".startswith(route[:-1]):
                return handler, f"{method} {path}"[len(route) - 1 :]
        return None

    def _request_handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class _Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                del format, arguments  # control journals what was done; a token never gets near a log

            def _serve(self) -> None:
                length = self.headers.get("Content-Length", "0")
                if not length.isdecimal() or int(length) > _BODY_BYTES:
                    self._send(413, _error("the body is too large", None))
                elif not server.allowed(self.headers.get("Authorization")):
                    self._send(
                        401,
                        _error("the token is missing or wrong", "admin.json of the serving folder has it"),
                    )
                else:
                    self._send(*server.answer(self.command, self.path, self.rfile.read(int(length))))

            def _send(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status in (401, 413):  # its body was not read
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(data)

        return _Handler


class AdminClient:
    """Calls the admin surface of a serving folder."""

    def __init__(self, folder: Path, seconds: float = _CALL_SECONDS) -> None:
        """``seconds`` is how long an answer may take. Raises ServingError where no gateway runs there."""
        self._folder = folder
        self._seconds = seconds
        try:
            where = json.loads((folder / "admin.json").read_bytes())
            self._host, self._port, self._token = str(where["host"]), int(where["port"]), str(where["token"])
        except (OSError, ValueError, KeyError) as error:
            raise self._not_there() from error

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON value of the answer. Raises ServingError with the message and hint of an error."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            value = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._not_there() from error
        finally:
            connection.close()
        if response.status != 200:
            told = value.get("error", {}) if isinstance(value, dict) else {}
            raise ServingError(told.get("message", f"status {response.status}"), hint=told.get("hint"))
        return value

    def _not_there(self) -> ServingError:
        return ServingError(f"no gateway answers for {self._folder}", hint="start it: `posttrain serve`")


async def _awaited(call: Awaitable[Any]) -> Any:
    return await call


def _error(message: str, hint: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "hint": hint}}
