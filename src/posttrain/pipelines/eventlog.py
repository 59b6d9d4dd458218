"""Events as lines of JSON: ``runs/<id>/events.jsonl``, and what ``posttrain run --json`` prints.

Here: writing and reading them. Not here: which events there are (``core.events``) or how a person sees them
(``cli``).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.core.clock import utc_now
from posttrain.core.events import Event

_LOG = "events.jsonl"


def event_line(event: Event, **more: Any) -> str:
    """One event as one line of strict JSON; numbers that JSON does not have (NaN) become null."""
    data = _strict({**more, "event": event.kind, "stage": event.stage, **event.data})
    return json.dumps(data, ensure_ascii=False, allow_nan=False, default=str)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


class EventLog:
    """Appends a run's events, each with the time.

    The log is for people: it is not synced, and an event that cannot be written (a full disk) is dropped.
    """

    def __init__(self, folder: Path) -> None:
        path = log_path(folder)
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self.stream = path.open("a", encoding="utf-8")
        if torn:  # a kill in the middle of a line
            self.stream.write("\n")

    def write(self, event: Event) -> None:
        """Append one event."""
        with contextlib.suppress(OSError):
            self.stream.write(event_line(event, time=utc_now()) + "\n")
            self.stream.flush()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self.stream.close()


def log_path(folder: Path) -> Path:
    """Where the events of the run with this folder are."""
    return folder / _LOG


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The events in a run's folder, oldest first; a line that a kill tore is left out."""
    if not log_path(folder).exists():
        return
    with log_path(folder).open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)
