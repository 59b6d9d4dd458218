"""How one worker behaves: limits, retries, breakers, shadow copies, and where it listens and logs.

Here: frozen, torch-free configs. Not here: what it serves (``serving.records.Snapshot``). All of it is fixed for the
life of a process; what changes under traffic is in the snapshot. To add a field: a default that means what an old
config meant, and a sentence on what it costs to set it wrong.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, field_serializer, model_validator

from posttrain.core.documents import Document, Record
from posttrain.guardrails.config import GuardrailConfig
from posttrain.traffic.config import TrafficConfig


class LimitsConfig(Record):
    """What one worker takes in."""

    max_connections: int = Field(4096, ge=1)
    """Open client connections; one more is closed at once."""
    max_header_bytes: int = Field(32_768, ge=1024)
    """Request line and headers together; above: 431."""
    max_headers: int = Field(100, ge=8)
    """Header lines; above: 431."""
    max_body_bytes: int = Field(16_777_216, ge=1024)
    """A request's body; above: 413. Pictures in a chat are base64 in the body, so this is not small."""
    max_answer_bytes: int = Field(67_108_864, ge=1024)
    """An upstream's answer that is not streamed, and the text kept of one that is; above: 502."""
    header_seconds: float = Field(10.0, gt=0)
    """From a request's first byte to the end of its headers; above: 408 (slow-loris)."""
    body_seconds: float = Field(60.0, gt=0)
    """From the end of the headers to the end of the body; above: 408."""
    keep_alive_seconds: float = Field(75.0, gt=0)
    """How long a connection may be idle between requests."""
    write_seconds: float = Field(60.0, gt=0)
    """How long a client may take nothing of an answer that waits for it; above, it is cut off."""
    max_in_flight: int = Field(256, ge=1)
    """Requests being answered at once."""
    policy: Literal["shed", "wait"] = "wait"
    """Above ``max_in_flight``: refuse with 429 at once, or wait for a place."""
    queue: int = Field(512, ge=0)
    """How many may wait; one more is refused with 429. Only with ``wait``."""
    queue_seconds: float = Field(10.0, gt=0)
    """How long one may wait; above: 429."""
    retry_after_seconds: int = Field(1, ge=0)
    """What a refused client is told to wait."""


class RetryConfig(Record):
    """When a request that failed before its answer began is sent again."""

    tries: int = Field(3, ge=1)
    """Upstream calls per request at most, the first included. A stale kept-alive connection is no try."""
    statuses: tuple[int, ...] = (429, 500, 502, 503, 504)
    """Answers of an upstream that are worth another try; the last try's answer goes to the client as it is."""
    budget_ratio: float = Field(0.1, ge=0, le=1)
    """Repeats on an upstream already tried, as a share of requests: a failing upstream is not given twice the load.
    The first try on the next upstream is free: each has its own breaker."""
    budget_burst: float = Field(10.0, ge=0)
    """Repeats allowed beyond the share, saved up while all was well."""
    backoff_seconds: float = Field(0.05, ge=0)
    """Before a repeat on an upstream already tried; doubled with every try, half of it random."""


class BreakerConfig(Record):
    """When an upstream is left alone for a while."""

    failures: int = Field(5, ge=1)
    """Consecutive failures that open it."""
    share: float = Field(0.5, gt=0, le=1)
    """Share of failures among the last ``window`` calls that opens it."""
    window: int = Field(40, ge=2)
    """Calls that the share is taken over; fewer open nothing."""
    open_seconds: float = Field(2.0, gt=0)
    """How long it is left alone; then one probe goes through. Doubled by every probe that fails."""
    max_open_seconds: float = Field(30.0, gt=0)
    """Where the doubling ends."""


class ShadowConfig(Record):
    """Copies that nobody waits for."""

    queue: int = Field(256, ge=1)
    """Copies that wait; one more is dropped and counted."""
    queue_bytes: int = Field(67_108_864, ge=1024)
    """Bytes of bodies that wait; above, copies are dropped and counted."""
    concurrency: int = Field(8, ge=1)
    """Copies under way at once."""
    seconds: float = Field(120.0, gt=0)
    """How long a copy may take altogether."""


class WorkerConfig(Document):
    """One worker process."""

    record_kind: ClassVar[str] = "worker"

    name: str = Field(min_length=1)
    """Unique on this machine and for ever: the chain of log segments bears it."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, le=65535)
    """0 takes a free one, which ``ready`` tells."""
    control: str | None = None
    """Unix socket of control."""
    traffic_folder: str
    """Folder of the traffic log."""
    traffic: TrafficConfig = Field(default_factory=TrafficConfig)
    """How rows are kept."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """What it takes in."""
    retries: RetryConfig = Field(default_factory=RetryConfig)
    """When it asks again."""
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    """When it leaves an upstream alone."""
    shadow: ShadowConfig = Field(default_factory=ShadowConfig)
    """Copies."""
    hash_secret: SecretStr | None = None
    """Key of the hashes of tenants, users and conversations in the log; default: the traffic folder's own, where
    ``posttrain log forget`` looks, too."""
    tls_certificate: str | None = None
    """PEM file with the certificate chain; without it the door speaks plain HTTP."""
    tls_key: str | None = None
    """PEM file with its private key."""
    access: str | None = None
    """File of API keys; without it everybody may ask."""
    budgets: str | None = None
    """File of the counters that all workers share; without it keys' budgets are not kept."""
    index: int = Field(0, ge=0)
    """The how manieth worker it is, from 0: its part of the counters."""
    workers: int = Field(1, ge=1)
    """How many there are."""
    guardrails: GuardrailConfig | None = None
    """Rules over what is asked and answered."""
    metrics_folder: str | None = None
    """Where workers show each other their metrics, so that ``/metrics`` is of all of them; None: of the one asked."""
    grace_seconds: float = Field(30.0, ge=0)
    """How long requests in flight may take to end after SIGTERM."""

    @field_serializer("hash_secret", when_used="json")
    def _reveal(self, value: SecretStr | None) -> str | None:
        # The document is the start message; printing or logging the object itself shows asterisks.
        return None if value is None else value.get_secret_value()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: give both or none")
        if self.index >= self.workers:
            raise ValueError(f"index: {self.index} is not below workers, which is {self.workers}")
        if self.hash_secret is not None and not 16 <= len(self.hash_secret.get_secret_value().encode()) <= 64:
            raise ValueError("hash_secret: 16 to 64 bytes, such as those of `openssl rand -hex 32`")
        return self
