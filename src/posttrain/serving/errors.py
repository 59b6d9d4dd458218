"""What can go wrong in the gateway, at its boundaries.

PosttrainError
└── ServingError (RuntimeError)        exit 1
    ├── ReleaseRefused                 a piece of a release is changed, missing or unsigned: nothing is served
    ├── EngineError                    an engine did not start, load, answer its probe, or stop
    ├── RolloutError                   a step that the rollout's state or its contract does not allow
    └── TrafficLogError (OSError)      the traffic log cannot be written or read
"""

from __future__ import annotations

from posttrain.core.errors import PosttrainError


class ServingError(PosttrainError, RuntimeError):
    """The gateway, or what stands behind it, failed."""


class ReleaseRefused(ServingError):
    """A release may not be served; the message names the piece and why."""


class EngineError(ServingError):
    """An engine failed."""


class RolloutError(ServingError):
    """A step that is not allowed now."""


class TrafficLogError(ServingError, OSError):
    """The traffic log failed."""

    # OSError.__new__ would map (message, hint) to errno and strerror; keep plain exception arguments.
    def __reduce__(self) -> tuple[type[TrafficLogError], tuple[str, str | None]]:
        return (type(self), (self.message, self.hint))
