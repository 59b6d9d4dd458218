"""Buckets: the equal parts that traffic is cut into.

A bucket is ``sha256(salt | unit)`` modulo 10,000: sticky, uniform, independent between salts, and monotone in the
share, so that raising a share only adds units. 64 bits modulo 10,000 favour no bucket by more than 6e-16.
"""

from __future__ import annotations

import hashlib

BUCKETS = 10_000
"""How many equal parts traffic is cut into; shares are whole numbers of them, so 100 is one percent."""


def bucket(salt: str, unit: str) -> int:
    """The bucket of a unit, 0 to 9,999."""
    digest = hashlib.sha256(f"{salt}|{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS
