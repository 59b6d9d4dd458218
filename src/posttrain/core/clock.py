"""The wall clock, in one place: RFC 3339 UTC text. Wall-clock time never enters an artifact, only run records."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """Now, as ``2026-11-23T15:04:05.123456Z``."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
