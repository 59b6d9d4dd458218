"""Errors of the engines room, beside those of ``core.errors``.

ServingError
├── ReleaseRefused    a piece of a release is changed, missing or unsigned: nothing is served
└── EngineError       an engine did not start, load, answer its probe, or stop
"""

from __future__ import annotations

from posttrain.core.errors import ServingError


class ReleaseRefused(ServingError):
    """A release may not be served; the message names the piece and why."""


class EngineError(ServingError):
    """An engine failed."""
