"""Errors of this room beside those of ``core.errors``: only what a caller would catch by itself.

StoreError
└── ConflictError   a compare-and-set found another value than expected
"""

from __future__ import annotations

from posttrain.core.errors import StoreError


class ConflictError(StoreError):
    """Somebody else changed a ref or a lane first; nothing was written."""
