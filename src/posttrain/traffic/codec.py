"""JSON in and out: orjson where it is installed, the standard library where it is not or refuses.

orjson refuses lone surrogates, which clients do send; the standard library reads and writes them.
"""

from __future__ import annotations

import json
from typing import Any

try:
    import orjson
except ImportError:  # the gateway needs it, a reader of its log does not
    orjson = None  # type: ignore[assignment]


def loads(data: bytes | str) -> Any:
    """Any JSON value. Raises ValueError."""
    if orjson is not None:
        try:
            return orjson.loads(data)
        except ValueError:
            pass
    try:
        return json.loads(data, parse_constant=lambda _: None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def loads_row(data: bytes) -> tuple[Any, bool]:
    """A row, and whether its text is plain: no NUL and no half characters in it. Raises ValueError."""
    if orjson is not None:
        try:
            return orjson.loads(data), b"\\u0000" not in data
        except ValueError:
            pass
    return loads(data), False


def dumps(value: Any) -> str:
    """Compact JSON text, which reads back as the same value."""
    if orjson is not None:
        try:
            return orjson.dumps(value).decode()
        except (TypeError, ValueError):
            pass
    return json.dumps(value, separators=(",", ":"))
