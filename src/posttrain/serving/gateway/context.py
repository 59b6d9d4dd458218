"""What all requests of a worker share.

Here: one object that holds the parts. Not here: what they do. The plan is the only thing in it that is replaced while
the worker lives; a request takes it once, at acceptance, and keeps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from posttrain.guardrails import compile_guardrails
from posttrain.serving.gateway.admission import Admission
from posttrain.serving.gateway.breaker import RetryBudget
from posttrain.serving.gateway.config import WorkerConfig
from posttrain.serving.gateway.events import Answer, Endpoint
from posttrain.serving.gateway.guard import AnswerGuard
from posttrain.serving.gateway.identity import Pseudonyms, RequestIds
from posttrain.serving.gateway.metrics import Metrics
from posttrain.serving.gateway.ports import AccessCheck
from posttrain.serving.gateway.rowlog import RowLog
from posttrain.traffic.clock import MonotonicWallClock

if TYPE_CHECKING:
    from posttrain.serving.gateway.plan import Plan
    from posttrain.serving.gateway.shadow import ShadowQueue


class Context:
    """The parts of one worker."""

    plan: Plan
    """The snapshot in use."""
    shadow: ShadowQueue

    def __init__(self, config: WorkerConfig, log: RowLog, metrics: Metrics, secret: bytes) -> None:
        self.config = config
        self.limits = config.limits
        self.retries = config.retries
        self.log = log
        self.metrics = metrics
        self.clock = MonotonicWallClock()
        self.ids = RequestIds(self.clock)
        self.pseudonyms = Pseudonyms(secret)
        self.admission = Admission(config.limits)
        self.budget = RetryBudget(config.retries)
        self.access: AccessCheck | None = None
        self.guardrails = None if config.guardrails is None else compile_guardrails(config.guardrails)
        self._audits_only = config.guardrails is not None and config.guardrails.stream == "audit"
        self.epochs: Counter[int] = Counter()
        """Requests and copies in flight, by the epoch that they were accepted under."""
        self.on_epoch_empty: Callable[[], None] = lambda: None
        """Called when an epoch that is no longer in use has nothing in flight."""

    def answer(self, endpoint: Endpoint, body: Mapping[str, Any], *, stream: bool) -> Answer:
        """What an answer to this body is read into, with the guard that it passes."""
        guard = None
        if self.guardrails is not None and self.guardrails.start(stream) is not None:
            guard = AnswerGuard(self.guardrails, body, audits_only=self._audits_only)
        return Answer(endpoint, self.limits.max_answer_bytes, guard)

    def enter_epoch(self, epoch: int) -> None:
        """Something is in flight under this epoch."""
        self.epochs[epoch] += 1

    def leave_epoch(self, epoch: int) -> None:
        """It is not any more."""
        self.epochs[epoch] -= 1
        if epoch != self.plan.epoch and not self.epochs[epoch]:
            del self.epochs[epoch]
            self.on_epoch_empty()
