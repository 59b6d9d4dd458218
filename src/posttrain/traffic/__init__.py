"""The traffic log: what was asked and answered, kept so that nothing acknowledged is lost."""

from __future__ import annotations

from posttrain.core.lazy import lazy_names

__all__ = [
    "MAX_NAME",
    "Follower",
    "MonotonicWallClock",
    "OwnerCount",
    "SegmentWriter",
    "TrafficConfig",
    "TrafficIndex",
    "TrafficLogError",
    "Where",
    "counts",
    "dumps",
    "export_requests",
    "feedback_of",
    "forget",
    "index_once",
    "known_sink",
    "load_or_make_secret",
    "pseudonym",
    "reconcile",
    "request",
    "requests",
    "retain",
    "shadows_of",
    "verdicts_of",
    "verify_log",
]

_HOMES = {
    "": ("pseudonym",),
    "audit": ("OwnerCount", "reconcile", "verify_log"),
    "clock": ("MonotonicWallClock",),
    "codec": ("dumps",),
    "config": ("TrafficConfig",),
    "erasure": ("forget",),
    "errors": ("TrafficLogError",),
    "export": ("export_requests",),
    "follow": ("Follower",),
    "index": ("TrafficIndex", "known_sink"),
    "indexer": ("index_once",),
    "pseudonym": ("MAX_NAME", "load_or_make_secret"),
    "query": ("Where", "counts", "feedback_of", "request", "requests", "shadows_of", "verdicts_of"),
    "retention": ("retain",),
    "segments": ("SegmentWriter",),
}


__getattr__ = lazy_names(__name__, _HOMES)
