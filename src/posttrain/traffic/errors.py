"""Errors of the traffic room, beside those of ``core.errors``: one boundary, the log's files and index."""

from __future__ import annotations

from posttrain.core.errors import ServingError


class TrafficLogError(ServingError, OSError):
    """The traffic log cannot be written or read."""

    # OSError.__new__ would map (message, hint) to errno and strerror; keep plain exception arguments.
    def __reduce__(self) -> tuple[type[TrafficLogError], tuple[str, str | None]]:
        return (type(self), (self.message, self.hint))
