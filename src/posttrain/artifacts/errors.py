"""Errors of this room beside those of ``core.errors``: only what a caller would catch by itself.

StoreError
├── ConflictError   a compare-and-set found another value than expected
└── ReleaseError    a piece of a release is changed, missing or unsigned
"""

from __future__ import annotations

from posttrain.core.errors import StoreError


class ConflictError(StoreError):
    """Somebody else changed a ref or a lane first; nothing was written."""


class ReleaseError(StoreError):
    """A release may not be used; the message names the piece and what is wrong with it."""
