"""core: identity, time, errors, settings and progress events. Imports no other room."""

from posttrain.core.canonical import canonical_json, digest_bytes, digest_file, digest_json, is_digest, short
from posttrain.core.clock import utc_now
from posttrain.core.events import Event, EventSink, ignore_events
from posttrain.core.settings import Settings

__all__ = [
    "Event",
    "EventSink",
    "Settings",
    "canonical_json",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "ignore_events",
    "is_digest",
    "short",
    "utc_now",
]
