"""The bytes of HTTP answers, and errors in OpenAI's form.

Here: status lines, heads, the error vocabulary that clients see. Not here: when each is sent (``server``,
``exchange``). To add an error: a function here that returns an ``ApiError``, so that every message, type and code of
the door is in one place; messages name no upstream and no content.
"""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import ClassVar, Final, NamedTuple

import orjson

_time: Final = time.time

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream; charset=utf-8"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class ApiError(NamedTuple):
    """What a client is told when it gets no answer."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    """Seconds after which it is worth asking again."""
    allow: str | None = None
    """Methods that would do."""

    def body(self) -> bytes:
        """OpenAI's error JSON."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def headers(self) -> bytes:
        """Header lines of its own."""
        lines = b"" if self.retry_after is None else b"retry-after: %d\r\n" % self.retry_after
        if self.allow is not None:
            lines += b"allow: %b\r\n" % self.allow.encode()
        return lines + b"www-authenticate: Bearer\r\n" if self.status == 401 else lines


class _Date:
    second: ClassVar[int] = 0
    line: ClassVar[bytes] = b""


def _date_line() -> bytes:
    # Made once a second: formatting a date costs as much as parsing a request.
    second = int(_time())
    if second != _Date.second:
        _Date.second, _Date.line = second, f"date: {formatdate(second, usegmt=True)}\r\n".encode()
    return _Date.line


def head(status: int, content_type: bytes, request_id: bytes, extra: bytes = b"") -> bytes:
    """Everything of an answer's head but its framing and the empty line."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
    return b"%b%bcontent-type: %b\r\nx-request-id: %b\r\n%b" % (
        line,
        _date_line(),
        content_type,
        request_id,
        extra,
    )


def invalid(
    message: str, *, param: str | None = None, code: str | None = None, status: int = 400
) -> ApiError:
    """The request cannot be meant."""
    return ApiError(status, message, "invalid_request_error", code, param)


def bad_request_line(why: str) -> ApiError:
    """What came is not HTTP as we read it."""
    return invalid(f"Malformed HTTP request: {why}.", code="malformed_request")


def too_large(limit: int) -> ApiError:
    """413."""
    return invalid(f"The request body is larger than {limit} bytes.", code="request_too_large", status=413)


def headers_too_large() -> ApiError:
    """431."""
    return invalid("The request's headers are too large or too many.", code="headers_too_large", status=431)


def too_slow() -> ApiError:
    """408."""
    return invalid("The request did not arrive in time.", code="request_timeout", status=408)


def refused(status: int, code: str, message: str, retry_after: float | None) -> ApiError:
    """What access says."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    wait = None if retry_after is None else math.ceil(retry_after)
    return ApiError(status, message, kinds.get(status, "invalid_request_error"), code, None, wait)


def filtered() -> ApiError:
    """400: a guardrail blocks what was asked."""
    return invalid("The request was blocked by a guardrail.", code="content_filter")


def unknown_path(method: str, path: str) -> ApiError:
    """404 for a path."""
    return invalid(f"Unknown request URL: {method} {path[:200]}.", code="unknown_url", status=404)


def wrong_method(*allowed: str) -> ApiError:
    """405."""
    error = invalid(f"Only {' or '.join(allowed)} is allowed here.", code="method_not_allowed", status=405)
    return error._replace(allow=", ".join(allowed))


def unknown_model(model: str) -> ApiError:
    """404 for a model."""
    return invalid(
        f"The model `{model[:200]}` does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
        status=404,
    )


def shed(retry_after: int) -> ApiError:
    """429: there is no room."""
    return ApiError(
        429,
        "The gateway is at its limit; try again later.",
        "rate_limit_error",
        "overloaded",
        None,
        retry_after,
    )


def draining() -> ApiError:
    """503 on a connection that outlived the door."""
    return ApiError(503, "The gateway is shutting down.", "server_error", "shutting_down", None, 1)


def log_full() -> ApiError:
    """503: what cannot be logged is not served."""
    return ApiError(503, "The traffic log cannot be written.", "server_error", "log_unavailable", None, 5)


def no_upstream() -> ApiError:
    """503: all upstreams of the target are down."""
    return ApiError(
        503, "The model is not available right now.", "server_error", "model_unavailable", None, 1
    )


def bad_upstream(why: str) -> ApiError:
    """502: the upstream could not be reached, or what it said was no answer."""
    return ApiError(502, f"The model server failed: {why}.", "server_error", "upstream_error")


def slow_upstream() -> ApiError:
    """504."""
    return ApiError(504, "The model server did not answer in time.", "server_error", "upstream_timeout")


def internal() -> ApiError:
    """500: a fault of ours."""
    return ApiError(500, "The gateway failed.", "server_error", "internal_error")
