"""One HTTP request with one deadline, by the standard library.

Here: what control asks engines with: health, models, adapters, probes. Not here: the traffic of users (the gateway has
its own connections). *Covered*: a server that does not answer, answers slowly or endlessly. *Not covered*: a server
that sends its headers byte by byte (each has the deadline of its own), proxies.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

_MOST_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def message(self) -> str:
        """What went wrong, as OpenAI-like servers say it, in one line."""
        found = self.json()
        if isinstance(found, dict):
            error = found.get("error", found)
            found = error.get("message", error) if isinstance(error, dict) else error
        text = found if isinstance(found, str) else self.body.decode(errors="replace")
        return f"HTTP {self.status}: {' '.join(text.split())[:300]}"


def call(
    method: str,
    url: str,
    *,
    seconds: float,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> Answer:
    """The answer to one request. Raises OSError (TimeoutError among them) where there is none in ``seconds``."""
    until = time.monotonic() + seconds
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Connection": "close"}
    payload = None
    if body is not None:
        payload = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    if key:
        headers["Authorization"] = f"Bearer {key}"
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    with closing(kind(parts.hostname or "", parts.port, timeout=_left(until))) as connection:
        try:
            connection.request(method, path, payload, headers)
            sock = connection.sock
            sock.settimeout(_left(until))
            response = connection.getresponse()
            pieces: list[bytes] = []
            size = 0
            while not response.isclosed():
                sock.settimeout(_left(until))
                if not (piece := response.read1(65_536)):
                    break
                pieces.append(piece)
                size += len(piece)
                if size > _MOST_BYTES:
                    raise OSError("the answer is too long")
        except http.client.HTTPException as error:
            raise OSError(f"not an HTTP answer: {error!r}") from error
        return Answer(response.status, b"".join(pieces))


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("no whole answer in time")
    return left
