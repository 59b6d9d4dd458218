"""A rollout, as it is written down before it starts.

Here: frozen, torch-free records: who is the candidate, in which stages it meets traffic, and what ends it. Not here:
triggers from a contract (``registered``), what happened (``events``), what was seen (``observe``). The whole is one
document with a digest, and every trigger stands in it under the digest of the contract that asked for it: a limit that
is thought of after the traffic was seen cannot get in.

To add a kind of trigger: a record with a ``Literal`` tag here, its line in ``Trigger``, and its branch in
``triggers.evaluate``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from posttrain.core.buckets import BUCKETS
from posttrain.core.canonical import digest_bytes
from posttrain.core.documents import Digest, Document, Record
from posttrain.routing.records import Target, Unit

StageKind: TypeAlias = Literal["gated", "shadow", "canary", "production"]
RateMeasure: TypeAlias = Literal["error", "abandon", "latency", "cost"]
"""``error``: no answer, by no fault of the client. ``abandon``: the user left. ``latency`` and ``cost``: the share of
requests above a limit."""
IncidentMeasure: TypeAlias = Literal["incident", "guardrail"]
"""``incident``: reported by feedback. ``guardrail``: answers that a guardrail blocked."""

_ORDER: dict[StageKind, int] = {"gated": 0, "shadow": 1, "canary": 2, "production": 3}


class Stage(Record):
    """One step of a rollout: how much traffic, and how long at least."""

    kind: StageKind
    share: int = Field(ge=0, le=BUCKETS)
    """In ten-thousandths: of users for a canary, of copied requests for a shadow."""
    minimum_requests: int = Field(0, ge=0)
    """Answers of the candidate in this stage before it may go on."""
    minimum_seconds: float = Field(0.0, ge=0)
    """Time in this stage before it may go on."""

    @property
    def label(self) -> str:
        """``canary 5 %``."""
        shown = f"{self.share / 100:g} %"
        return f"{self.kind} {shown}" if self.kind in ("shadow", "canary") else self.kind

    @model_validator(mode="after")
    def _check(self) -> Self:
        fixed = {"gated": 0, "production": BUCKETS}.get(self.kind)
        if fixed is not None and self.share != fixed:
            raise ValueError(f"share: of the stage {self.kind!r} it is {fixed}, not {self.share}")
        if self.kind in ("shadow", "canary") and self.share == 0:
            raise ValueError(f"share: a {self.kind} stage needs one above 0")
        if self.kind == "canary" and self.share == BUCKETS:
            raise ValueError("share: a canary of all users is the stage 'production'")
        return self


_HOUR = 3600.0

DEFAULT_STAGES: tuple[Stage, ...] = (
    Stage(kind="gated", share=0),
    Stage(kind="shadow", share=1000, minimum_requests=500, minimum_seconds=_HOUR),
    Stage(kind="canary", share=100, minimum_requests=200, minimum_seconds=2 * _HOUR),
    Stage(kind="canary", share=500, minimum_requests=500, minimum_seconds=4 * _HOUR),
    Stage(kind="canary", share=2500, minimum_requests=1300, minimum_seconds=6 * _HOUR),
    Stage(kind="canary", share=5000, minimum_requests=3000, minimum_seconds=12 * _HOUR),
    Stage(kind="production", share=BUCKETS, minimum_seconds=_HOUR),
)
"""The canary stages together are the window of 5,000 requests and 24 hours; production is watched for an hour more."""


class _Trigger(Record):
    name: str = Field(min_length=1)
    """Unique in the rollout."""
    rule: str = ""
    """The contract's rule that asked for it, as written; empty where none did."""


class IncidentTrigger(_Trigger):
    """A hard trip: more than ``limit`` of something that should not happen."""

    kind: Literal["incident"] = "incident"
    measure: IncidentMeasure = "incident"
    limit: int = Field(0, ge=0)
    slice: str | None = None


class RateTrigger(_Trigger):
    """Evidence that a rate of the candidate is above ``limit``: an e-process, valid at every look."""

    kind: Literal["rate"] = "rate"
    measure: RateMeasure
    limit: float = Field(gt=0, lt=1)
    above: float | None = Field(None, gt=0)
    """Of ``latency`` milliseconds, of ``cost`` US dollars per 1,000 tokens of one request; what is above it counts."""
    slice: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.above is None) == (self.measure in ("latency", "cost")):
            raise ValueError(f"above: is for latency and cost, and needed there (measure {self.measure!r})")
        return self


class RatioTrigger(_Trigger):
    """Evidence that dollars per 1,000 tokens, over all requests, are above ``limit``: an asymptotic sequence.

    *Not covered*: fewer than ``minimum`` requests, for which it is silent.
    """

    kind: Literal["ratio"] = "ratio"
    measure: Literal["cost"] = "cost"
    limit: float = Field(gt=0)
    """US dollars per 1,000 tokens."""
    minimum: int = Field(200, ge=2)
    planned: int = Field(5000, ge=100)
    """Requests at which it sees best."""
    slice: str | None = None


class ComparisonTrigger(_Trigger):
    """Evidence that the candidate is worse than control by more than ``margin``: an asymptotic confidence sequence.

    Strata are the canary stages, so that a day and a night with different shares are not compared with each other.
    *Not covered*: fewer than ``minimum`` requests in either arm, for which it is silent.
    """

    kind: Literal["comparison"] = "comparison"
    measure: RateMeasure
    margin: float = Field(0.0, ge=0)
    """In the measure's unit: a share, or milliseconds where ``latency`` has no ``above``."""
    above: float | None = Field(None, gt=0)
    """As of a rate. ``latency`` without it compares means; ``cost`` needs it."""
    minimum: int = Field(200, ge=2)
    """Requests of each arm."""
    planned: int = Field(5000, ge=100)
    """Requests of both arms at which it sees best."""
    slice: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted = {"cost": True, "latency": None}.get(self.measure, False)
        if wanted is not None and wanted != (self.above is not None):
            raise ValueError(f"above: is for latency and cost (measure {self.measure!r})")
        return self


class NoDataTrigger(_Trigger):
    """Health: nothing was heard of the candidate for too long. Holds, and lets go by itself."""

    kind: Literal["no_data"] = "no_data"
    seconds: float = Field(900.0, gt=0)


class SampleRatioTrigger(_Trigger):
    """Health: units did not come to the arms as meant, so no comparison of them means anything. INVALID."""

    kind: Literal["sample_ratio"] = "sample_ratio"
    alpha: float = Field(0.001, gt=0, lt=1)


class ExposureTrigger(_Trigger):
    """Health: rows whose lane does not fit their bucket: someone else than the snapshot decided. Holds."""

    kind: Literal["exposure"] = "exposure"
    limit: int = Field(0, ge=0)


Trigger: TypeAlias = Annotated[
    IncidentTrigger
    | RateTrigger
    | RatioTrigger
    | ComparisonTrigger
    | NoDataTrigger
    | SampleRatioTrigger
    | ExposureTrigger,
    Field(discriminator="kind"),
]
EvidenceTrigger: TypeAlias = RateTrigger | RatioTrigger | ComparisonTrigger
"""Those that may be wrong by chance, and share ``alpha_rollback``."""

HEALTH: tuple[Trigger, ...] = (
    NoDataTrigger(name="no-data"),
    SampleRatioTrigger(name="sample-ratio"),
    ExposureTrigger(name="exposure"),
)
"""What every rollout watches, whatever its contract says."""


class ProductionBaseline(Record):
    """Compared with what serves now."""

    kind: Literal["production"] = "production"


class RecordedBaseline(Record):
    """Compared with answers that were recorded, such as people's, where no model serves yet."""

    kind: Literal["recorded"] = "recorded"
    answers: Digest
    """Of the recorded answer set."""
    name: str = "people"
    """Who answered, for people."""


Baseline: TypeAlias = Annotated[ProductionBaseline | RecordedBaseline, Field(discriminator="kind")]


class ShadowRule(Record):
    """How shadow answers are judged beside the user's, and what must come of it to leave the shadow stage."""

    judge: str | None = None
    """Name of the judge; None: shadow answers are watched for errors, latency and incidents only."""
    sampling: float = Field(1.0, gt=0, le=1)
    """Share of pairs that are judged."""
    minimum_pairs: int = Field(0, ge=0)
    """Judged pairs that the shadow stage needs."""
    least_win_rate: float = Field(0.0, ge=0, le=1)
    """``(wins + ties / 2) / pairs`` that it needs, as a point."""


class RolloutSpec(Document):
    """How one candidate is to meet the traffic of one route."""

    record_kind: ClassVar[str] = "rollout"

    id: str = Field(min_length=1)
    route: str = Field(min_length=1)
    """The public model name."""
    candidate: Target
    release: Digest
    """Of the candidate's release."""
    known_as: tuple[str, ...] = ()
    """What reports call the candidate beside its release: the digest of its model artifact."""
    production: Target | None
    """What answers before, and again after a rollback. None where nothing does yet."""
    baseline: Baseline = ProductionBaseline()
    contract: str
    """Text of the contract whose ``canary.`` rules made the triggers, to the byte."""
    contract_digest: Digest
    gate_digest: Digest | None = None
    """Contract of the decision that lets it start, where that is another: the rules of the gate before staging."""
    decision: Digest | None = None
    """The one decision that lets it start; None: any GO for this candidate, suite and contract."""
    suite: Digest
    """The frozen suite that the decision must be about."""
    stages: tuple[Stage, ...] = DEFAULT_STAGES
    salt: str = Field(min_length=1)
    unit: Unit = "user"
    triggers: tuple[Trigger, ...]
    alpha_rollback: float = Field(0.05, gt=0, lt=1)
    """Chance that all triggers of evidence together ever roll back a candidate that is at its limits."""
    control_sampling: float = Field(1.0, gt=0, le=1)
    """Share of control's units that are observed; at a canary of 1 % there are 99 times as many as are needed."""
    shadow: ShadowRule = ShadowRule()
    auto_advance: bool = False
    """Whether it goes on by itself when it may. Rolling back never waits for anybody."""

    @property
    def alpha_each(self) -> float:
        """Of each trigger of evidence: any of them rolls back, so they share."""
        return self.alpha_rollback / max(1, sum(isinstance(t, EvidenceTrigger) for t in self.triggers))

    @property
    def candidate_names(self) -> frozenset[str]:
        """What a decision may call this candidate."""
        return frozenset((self.release, *self.known_as))

    @property
    def shadow_salt(self) -> str:
        """Copies are drawn independently of the canary's users."""
        return f"{self.salt}/shadow"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if digest_bytes(self.contract.encode()) != self.contract_digest:
            raise ValueError("contract_digest: is not the digest of the contract's text")
        if self.candidate.release not in (None, self.release):
            raise ValueError(f"release: the candidate's target says {self.candidate.release}")
        names = [trigger.name for trigger in self.triggers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"triggers: {twice!r} is there twice")
        self._check_stages()
        return self

    def _check_stages(self) -> None:
        if not self.stages or self.stages[0].kind != "gated" or self.stages[-1].kind != "production":
            raise ValueError("stages: the first is 'gated' and the last 'production'")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if _ORDER[before.kind] > _ORDER[after.kind] or (
                before.kind == after.kind and (before.kind != "canary" or before.share >= after.share)
            ):
                raise ValueError(
                    f"stages: {after.label!r} cannot follow {before.label!r}; the order is gated, shadow, canaries "
                    "of rising share, production"
                )
        if self.production is None:
            if self.baseline.kind != "recorded":
                raise ValueError(
                    "baseline: nothing serves yet, so it is 'recorded': name the recorded answers"
                )
            if any(stage.kind == "canary" for stage in self.stages):
                raise ValueError(
                    "stages: nothing serves yet, so nobody answers the users that a canary leaves; name who does as "
                    "`production`, or leave the canary stages out"
                )
