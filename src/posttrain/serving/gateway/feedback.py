"""``POST /v1/feedback``: what a user or a business event says of an answer.

Here: reading it and making its row. Not here: joining it with the request (``traffic``), so it may come before the
request ended, and of a request that never was. The same feedback sent again has the same id and counts once: the id is
the client's ``id``, else the digest of what was said.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import orjson

from posttrain.serving.gateway.replies import ApiError, invalid

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
_MAX_DATA = 65_536
_FIELDS = frozenset({"id", "request_id", "type", "value", "text", "name", "data"})


class BadFeedback(Exception):
    """What is wrong, for the client."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error: ApiError = invalid(message, param=param)


def feedback_row(body: Any, tenant: str | None, at_ms: int) -> dict[str, Any]:
    """The row, ``tenant`` being a pseudonym. Raises BadFeedback."""
    if not isinstance(body, dict):
        raise BadFeedback("The body must be a JSON object.")
    if unknown := sorted(body.keys() - _FIELDS):
        raise BadFeedback(f"Unknown field: {unknown[0][:64]!r}.", unknown[0][:64])
    request = _token(body, "request_id", _ID)
    kind = body.get("type")
    check = _CHECKS.get(kind) if isinstance(kind, str) else None
    if check is None:
        raise BadFeedback(f"type must be one of {', '.join(_CHECKS)}.", "type")
    data = body.get("data")
    if data is not None and not (isinstance(data, dict) and len(_dumps(data)) <= _MAX_DATA):
        raise BadFeedback(f"data must be an object of at most {_MAX_DATA} bytes.", "data")
    said = {"of": request, "type": kind, **check(body)}
    if data:
        said["data"] = data
    row = {"v": 1, "kind": "feedback", "id": _id(body, said, tenant), "at_ms": at_ms, **said}
    if tenant is not None:
        row["tenant"] = tenant
    return row


def _id(body: dict[str, Any], said: dict[str, Any], tenant: str | None) -> str:
    if body.get("id") is not None:
        given = _token(body, "id", _ID)
        # Nobody's id may stand in for another tenant's.
        return given if tenant is None else f"{tenant[:16]}.{given}"
    text = orjson.dumps([tenant, said], option=orjson.OPT_SORT_KEYS)
    return "fb-" + hashlib.sha256(text).hexdigest()[:32]


def _token(body: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = body.get(name)
    if not (isinstance(value, str) and pattern.fullmatch(value)):
        raise BadFeedback(f"{name} must be a token of letters, digits and ._:-", name)
    return value


def _dumps(data: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError as error:
        raise BadFeedback("data is nested too deeply.", "data") from error


def _number(body: dict[str, Any]) -> float | None:
    value = body.get("value")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadFeedback("value must be a number.", "value")
    return float(value)


def _text(body: dict[str, Any], *, required: bool) -> dict[str, Any]:
    text = body.get("text")
    if text is None and not required:
        return {}
    if not isinstance(text, str) or (required and not text.strip()):
        raise BadFeedback("text must be a text that is not empty.", "text")
    return {"text": text}


def _thumbs(body: dict[str, Any]) -> dict[str, Any]:
    value = _number(body)
    if value not in (-1.0, 1.0):
        raise BadFeedback("value must be 1 or -1.", "value")
    return {"value": value, **_text(body, required=False)}


def _rating(body: dict[str, Any]) -> dict[str, Any]:
    value = _number(body)
    if value not in (1.0, 2.0, 3.0, 4.0, 5.0):
        raise BadFeedback("value must be a whole number from 1 to 5.", "value")
    return {"value": value, **_text(body, required=False)}


def _said(body: dict[str, Any]) -> dict[str, Any]:
    return _text(body, required=True)


def _noted(body: dict[str, Any]) -> dict[str, Any]:
    return _text(body, required=False)


def _event(body: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"name": _token(body, "name", _NAME), **_text(body, required=False)}
    value = _number(body)
    return said if value is None else {**said, "value": value}


_CHECKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "thumbs": _thumbs,
    "rating": _rating,
    "comment": _said,
    "better_answer": _said,
    "abandon": _noted,
    "incident": _noted,
    "event": _event,
}
