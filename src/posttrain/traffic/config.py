"""How the traffic log is kept.

Here: one frozen record. Not here: what acts on it (``segments``, ``indexer``, ``history``, ``retention``; the gateway
decides by ``content`` and ``on_full``). To add a key: a default that means what the log did before it.
"""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from posttrain.core.buckets import BUCKETS
from posttrain.core.documents import Record

Durability: TypeAlias = Literal["group", "strict"]
Content: TypeAlias = Literal["full", "sampled", "off"]
OnFull: TypeAlias = Literal["refuse", "shed"]


class TrafficConfig(Record):
    """The traffic log of one gateway."""

    durability: Durability = "group"
    """``group``: rows are in the kernel before an answer ends, so a killed process loses none, and on the disk within
    ``sync_seconds`` and a sync. ``strict``: an answer ends only after its row is on the disk."""
    sync_seconds: float = Field(0.02, gt=0, le=10)
    """How long written rows may wait for the disk; ``strict`` does not wait between syncs."""
    segment_bytes: int = Field(64 << 20, ge=1 << 12, le=1 << 30)
    """A segment that reaches this size is finished and the next begun."""
    segment_seconds: float = Field(3600.0, gt=0)
    """A segment with rows that reaches this age is finished, too."""
    backlog_bytes: int = Field(64 << 20, ge=1 << 12)
    """Rows that may wait for the disk; with more, the log counts as full."""
    content: Content = "full"
    """Whose questions and answers are kept: all, a share of units, or none. Counts and times always are."""
    content_share: int = Field(BUCKETS, ge=0, le=BUCKETS)
    """With ``sampled``, of how many in ten thousand units."""
    on_full: OnFull = "refuse"
    """When the log cannot be written: ``refuse`` new requests, or answer them and ``shed`` their rows, counted."""
    sink: str | None = None
    """Database of the index: ``sqlite:///PATH`` or ``postgresql://…``; default ``index.sqlite`` beside the segments."""
    history_after_seconds: float | None = Field(86_400.0, ge=0)
    """Indexed segments older than this become Parquet, where pyarrow is installed; None: they stay as they are."""
    retention_days: float | None = Field(None, gt=0)
    """What is older is removed everywhere; None: nothing is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.content != "sampled" and self.content_share != BUCKETS:
            raise ValueError(f"content_share: is for content: sampled, which is {self.content!r} here")
        return self
