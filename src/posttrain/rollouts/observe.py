"""What a rollout's traffic has shown: a fold over rows of the traffic log.

Here: joining rows by request, counting. Not here: reading rows (``traffic``), judging counts (``triggers``). Rows may
come twice, late and in any order, feedback before its request: the observation is the same, because it depends on which
rows there are and on nothing else. All sums are whole numbers (microseconds, billionths of a dollar): floats added in
another order are another sum.

A row belongs to the stage in whose epochs it was *accepted*, so what was answered under 5 % is counted under 5 %,
however late it ends or is complained about. Times of rows are not compared with each other: workers' clocks may differ.
Feedback counts only where it is of the tenant whose request it was: who got hold of an id must not be able to roll back
a candidate for everybody.

*Covered*: ``end``, ``shadow``, ``feedback``, ``verdict``. *Not covered*: ``begin`` rows without an end, until the
indexer says that they are lost. A request that the client cancelled is a latency above a limit only where it already
had been; its true one is not known, so this counts too few and never too many.

To count something more: a field of ``Tally``, a line in ``_count``.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from posttrain.core.buckets import BUCKETS, bucket
from posttrain.rollouts.fold import Entered
from posttrain.rollouts.records import ComparisonTrigger, RateTrigger, RolloutSpec
from posttrain.routing.config import ROUTED_TAGS

Arm: TypeAlias = Literal["candidate", "control"]
Row: TypeAlias = Mapping[str, Any]

_CLIENT_FAULTS = frozenset({400, 413, 415, 422})
_KEPT_EXAMPLES = 3
_MAX_WAITING = 200_000


class Key(NamedTuple):
    """Whose tally."""

    stage: int
    arm: Arm
    slice: str | None
    """None for all requests."""


@dataclass(slots=True)
class Tally:
    """Counts of one arm in one stage. A plain sum: tallies add up."""

    requests: int = 0
    """That count: not shed, not wrong by the client."""
    left_out: int = 0
    """Shed by back-pressure, or wrong by the client."""
    errors: int = 0
    cancelled: int = 0
    abandons: int = 0
    """Requests of which feedback says so, once each."""
    incidents: int = 0
    """Reported by feedback, each report once."""
    blocked: int = 0
    """Answers that a guardrail blocked."""
    answered: int = 0
    """Requests without an error: what latencies are of."""
    timed: int = 0
    """Of those, whole answers with a latency: what its mean is of."""
    latency_us: int = 0
    latency_us_squared: int = 0
    priced: int = 0
    """Answers with a cost and tokens."""
    cost_nano: int = 0
    tokens: int = 0
    cost_squared: int = 0
    cost_tokens: int = 0
    tokens_squared: int = 0
    above: dict[tuple[str, float], int] = field(default_factory=dict)
    """Requests above a limit that some trigger names: ``("latency", 950.0)``."""

    def __add__(self, other: Tally) -> Tally:
        numbers = {name: getattr(self, name) + getattr(other, name) for name in _NUMBERS}
        keys = self.above.keys() | other.above.keys()
        return Tally(**numbers, above={key: self.above.get(key, 0) + other.above.get(key, 0) for key in keys})

    def to_json(self) -> dict[str, Any]:
        """For people and programs."""
        above = {f"{what} > {limit:g}": count for (what, limit), count in sorted(self.above.items())}
        return {**{name: getattr(self, name) for name in _NUMBERS}, "above": above}


_NUMBERS = tuple(name for name in Tally.__dataclass_fields__ if name != "above")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Verdicts on shadow answers beside the user's."""

    shadow: int = 0
    """Won by the shadow answer."""
    production: int = 0
    tie: int = 0
    unknown: int = 0
    """Of which the judge could say nothing."""
    flipped: int = 0

    @property
    def judged(self) -> int:
        """Verdicts that say something."""
        return self.shadow + self.production + self.tie

    @property
    def win_rate(self) -> float | None:
        """``(wins + ties / 2) / judged``."""
        return (self.shadow + self.tie / 2) / self.judged if self.judged else None


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen until now. Immutable, and equal where the rows were the same."""

    tallies: Mapping[Key, Tally]
    units: Mapping[tuple[int, Arm], int]
    """Distinct users, conversations or requests by stage and arm, of canary stages."""
    misplaced: int
    """Rows whose lane or release does not fit their bucket."""
    misplaced_examples: tuple[str, ...]
    pairs: Pairs
    waiting: int
    """Feedback whose request was not seen; that of other routes is among it, whoever said it."""
    heard_ms: int | None = field(compare=False)
    """When the last row of the candidate came in, by the clock of who observes; else by the row."""

    def tally(self, stages: Iterable[int], arm: Arm, part: str | None = None) -> Tally:
        """The sum over stages."""
        total = Tally()
        for stage in stages:
            if (found := self.tallies.get(Key(stage, arm, part))) is not None:
                total += found
        return total


class _Place(NamedTuple):
    stage: int
    arm: Arm
    slices: tuple[str, ...]
    tenant: str | None
    """Whose word on the request counts."""


class _Said(NamedTuple):
    what: str
    id: str
    tenant: str | None


class Observer:
    """The fold, a few rows at a time: cheap enough to be fed every few hundred milliseconds."""

    def __init__(self, spec: RolloutSpec, entered: Iterable[Entered] = ()) -> None:
        self._spec = spec
        self._epochs: list[int] = []
        self._stages: list[int | None] = []
        self._limits = _limits(spec)
        self._parts = frozenset(
            part for trigger in spec.triggers if (part := getattr(trigger, "slice", None)) is not None
        )
        self._tallies: dict[Key, Tally] = {}
        self._units: dict[tuple[int, Arm], set[int]] = {}
        # Of every counted row: its place, as a number, times two, plus one where it was abandoned.
        self._known: dict[str, int] = {}
        self._places: dict[_Place, int] = {}
        self._place_list: list[_Place] = []
        self._waiting: dict[str, set[_Said]] = {}
        self._incident_ids = set[str]()
        self._verdicts: dict[str, tuple[str, str, bool]] = {}
        self._pairs = Pairs()
        self._misplaced = set[str]()
        self._heard_ms: int | None = None
        for epoch, stage in entered:
            self.enter(epoch, stage)

    def enter(self, epoch: int, stage: int | None) -> None:
        """From ``epoch`` on rows belong to ``stage``; say it before any worker serves that epoch. Idempotent."""
        if self._epochs and epoch <= self._epochs[-1]:
            if (epoch, stage) not in zip(self._epochs, self._stages, strict=True):
                raise ValueError(f"epoch {epoch} comes after {self._epochs[-1]} was entered")
            return
        self._epochs.append(epoch)
        self._stages.append(stage)

    def add(self, rows: Iterable[Row], *, received_ms: int | None = None) -> None:
        """Take rows. ``received_ms``: now, by the clock that ``triggers.evaluate`` is given."""
        for row in rows:
            kind = row["kind"]
            if kind in ("end", "shadow"):
                self._answer(row, kind, received_ms)
            elif kind == "feedback":
                self._feedback(row)
            elif kind == "verdict":
                self._verdict(row)

    def observation(self) -> Observation:
        """What was seen until now."""
        return Observation(
            tallies={key: replace(tally, above=dict(tally.above)) for key, tally in self._tallies.items()},
            units=self._unit_counts(),
            misplaced=len(self._misplaced),
            misplaced_examples=tuple(heapq.nsmallest(_KEPT_EXAMPLES, self._misplaced)),
            pairs=self._pairs,
            waiting=sum(len(items) for items in self._waiting.values()),
            heard_ms=self._heard_ms,
        )

    # -- answers -----------------------------------------------------------------------------------

    def _answer(self, row: Row, kind: str, received_ms: int | None) -> None:
        spec, name = self._spec, row["id"]
        if row["model"] != spec.route or name in self._known:
            return
        stage = self._stage_of(row["epoch"])
        if stage is None or spec.stages[stage].kind == "gated":
            return
        unit = row_unit(row, spec)
        arm = self._arm(row, kind, stage)
        if unit is not None and self._is_misplaced(row, kind, stage, unit):
            self._misplaced.add(name)
        if arm is None or (arm == "control" and not self._is_sampled(unit)):
            return
        slices = tuple(sorted(self._parts.intersection(row.get("slices") or ()))) if self._parts else ()
        place = _Place(stage, arm, slices, row.get("tenant"))
        number = self._places.get(place)
        if number is None:
            number = self._places[place] = len(self._place_list)
            self._place_list.append(place)
        self._known[name] = number * 2
        for part in (None, *slices):
            self._count(self._tally(Key(stage, arm, part)), row)
        if unit is not None and spec.stages[stage].kind == "canary" and spec.unit != "request":
            self._units.setdefault((stage, arm), set()).add(hash(unit))
        if arm == "candidate":
            heard = row["at_ms"] if received_ms is None else received_ms
            self._heard_ms = heard if self._heard_ms is None else max(self._heard_ms, heard)
        for said in self._waiting.pop(name, ()):
            self._learn(name, said)
        if kind == "shadow" and name in self._verdicts:
            self._count_verdict(self._verdicts[name], 1)

    def _stage_of(self, epoch: int) -> int | None:
        index = bisect_right(self._epochs, epoch) - 1
        return self._stages[index] if index >= 0 else None

    def _arm(self, row: Row, kind: str, stage: int) -> Arm | None:
        """None for an answer that is neither the candidate's nor what it is compared with."""
        at = self._spec.stages[stage].kind
        if kind == "shadow":
            return "candidate" if at == "shadow" else None
        if at == "production":
            mine = row["lane"] == "production" and not self._is_anothers(row)
            return "candidate" if mine else None
        if row["lane"] == "canary":
            return "candidate" if at == "canary" else None
        return "control" if row["lane"] == "production" and row.get("arm") in ("", "control", None) else None

    def _is_misplaced(self, row: Row, kind: str, stage: int, unit: str) -> bool:
        spec, lane = self._spec, row["lane"]
        at = spec.stages[stage]
        release = row.get("release")
        if kind == "shadow":
            fits = at.kind == "shadow" and bucket(spec.shadow_salt, unit) < at.share
            return not fits or release not in (None, spec.release)
        candidate = at.kind == "production" or (at.kind == "canary" and bucket(spec.salt, unit) < at.share)
        if (lane == "canary") != (candidate and at.kind == "canary"):
            return True
        # A candidate that answers where another should, or the other way about. Without a release nothing is known.
        if release is None or row.get("arm") not in ("", "control", "candidate", None):
            return False
        if lane == "production" and _is_routed(row):
            return False
        return bool((release == spec.release) != candidate and not self._same_release())

    def _is_anothers(self, row: Row) -> bool:
        """An answer of the production stage that the route's router gave to a target that is not the candidate."""
        return row.get("release") != self._spec.release and _is_routed(row)

    def _same_release(self) -> bool:
        """An A/A rollout, whose candidate is what serves: releases tell nothing apart."""
        return self._spec.production is not None and self._spec.production.release == self._spec.release

    def _is_sampled(self, unit: str | None) -> bool:
        sampling = self._spec.control_sampling
        return sampling >= 1 or (
            unit is not None and bucket(f"{self._spec.salt}/control", unit) < round(sampling * BUCKETS)
        )

    def _tally(self, key: Key) -> Tally:
        if (tally := self._tallies.get(key)) is None:
            tally = self._tallies[key] = Tally(above=dict.fromkeys(self._limits, 0))
        return tally

    def _count(self, tally: Tally, row: Row) -> None:
        finish, status = row.get("finish"), row.get("status") or 0
        if is_left_out(row):
            tally.left_out += 1
            return
        tally.requests += 1
        if was_blocked(row):
            tally.blocked += 1
        if finish in ("error", "lost") or (status >= 400 and finish != "cancelled"):
            tally.errors += 1
            return
        cancelled = finish == "cancelled"
        tally.cancelled += cancelled
        tally.answered += 1
        latency = row.get("latency_ms")
        if latency is not None and not cancelled:
            microseconds = round(latency * 1000)
            tally.timed += 1
            tally.latency_us += microseconds
            tally.latency_us_squared += microseconds * microseconds
        tokens = (row.get("prompt_tokens") or 0) + (row.get("completion_tokens") or 0)
        cost = row.get("cost_usd")
        priced = cost is not None and tokens > 0
        if cost is not None and priced:
            nano = round(cost * 1e9)
            tally.priced += 1
            tally.cost_nano += nano
            tally.tokens += tokens
            tally.cost_squared += nano * nano
            tally.cost_tokens += nano * tokens
            tally.tokens_squared += tokens * tokens
        for what, limit in self._limits:
            if what == "latency":
                tally.above[what, limit] += latency > limit if latency is not None else not cancelled
            elif cost is not None and priced:
                tally.above[what, limit] += cost * 1000 > limit * tokens

    # -- what is learned later ---------------------------------------------------------------------

    def _waiting_for(self, name: str) -> set[_Said]:
        """What was said of a request that has not been seen. Of requests that never come there may be any number: the
        oldest are forgotten."""
        found = self._waiting.get(name)
        if found is None:
            found = self._waiting[name] = set()
            if len(self._waiting) > _MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
        return found

    def _feedback(self, row: Row) -> None:
        what = row["type"]
        if what == "incident" or (what == "abandon" and (row.get("value") is None or row["value"] > 0)):
            said = _Said(what, row["id"], row.get("tenant"))
            if row["of"] in self._known:
                self._learn(row["of"], said)
            else:
                self._waiting_for(row["of"]).add(said)

    def _learn(self, request: str, said: _Said) -> None:
        code = self._known[request]
        place = self._place_list[code // 2]
        if said.tenant != place.tenant:
            return
        if said.what == "incident":
            if said.id in self._incident_ids:
                return
            self._incident_ids.add(said.id)
        elif code % 2:
            return
        else:
            self._known[request] = code + 1
        for part in (None, *place.slices):
            tally = self._tally(Key(place.stage, place.arm, part))
            if said.what == "incident":
                tally.incidents += 1
            else:
                tally.abandons += 1

    def _verdict(self, row: Row) -> None:
        if self._spec.shadow.judge not in (None, row["judge"]):
            return
        shadow, new = row["shadow"], (row["id"], row["outcome"], bool(row.get("flipped")))
        old = self._verdicts.get(shadow)
        if old is not None and old[0] <= new[0]:
            return  # a pair that was judged again counts once: by the lower id, whichever came first
        self._verdicts[shadow] = new
        if shadow in self._known:
            if old is not None:
                self._count_verdict(old, -1)
            self._count_verdict(new, 1)

    def _count_verdict(self, verdict: tuple[str, str, bool], step: int) -> None:
        _, outcome, flipped = verdict
        pairs = self._pairs
        changed = {outcome: getattr(pairs, outcome) + step, "flipped": pairs.flipped + step * flipped}
        self._pairs = replace(pairs, **changed)

    def _unit_counts(self) -> dict[tuple[int, Arm], int]:
        if self._spec.unit != "request":
            return {key: len(units) for key, units in self._units.items()}
        counts: dict[tuple[int, Arm], int] = {}
        for key, tally in self._tallies.items():
            if key.slice is None and self._spec.stages[key.stage].kind == "canary":
                counts[key.stage, key.arm] = tally.requests + tally.left_out
        return counts


def observe(spec: RolloutSpec, entered: Iterable[Entered], rows: Iterable[Row]) -> Observation:
    """The same as a batch."""
    observer = Observer(spec, entered)
    observer.add(rows)
    return observer.observation()


def row_unit(row: Row, spec: RolloutSpec) -> str | None:
    """What the row's request was assigned by; None where the row does not say."""
    if (unit := row.get("unit")) is not None:
        return str(unit)
    if spec.unit == "request":
        return str(row.get("of") or row["id"])
    found = row.get(spec.unit)
    return None if found is None else str(found)


def is_judged(spec: RolloutSpec, request: str) -> bool:
    """Whether the pair of this request is among those that the rollout's judge sees: the same ones for everybody."""
    return spec.shadow.judge is not None and bucket(f"{spec.salt}/judge", request) < round(
        spec.shadow.sampling * BUCKETS
    )


def is_left_out(row: Row) -> bool:
    """Whether a request says nothing of who answered: shed, or wrong by the client."""
    status = row.get("status") or 0
    if row.get("finish") == "shed":
        return True
    # An upstream that answers 401, 403, 404 or 429 refused *us*; where none was asked, the client was refused.
    return status in _CLIENT_FAULTS or (400 <= status < 500 and not row.get("tries"))


def was_blocked(row: Row) -> bool:
    """Whether a guardrail blocked the answer; a prompt that was blocked is not its doing."""
    return row.get("finish") == "content_filter" or any(
        found.get("action") == "block" and found.get("where", "response") != "request"
        for found in row.get("guardrails") or ()
    )


def _limits(spec: RolloutSpec) -> tuple[tuple[str, float], ...]:
    return tuple(
        sorted(
            {
                (trigger.measure, trigger.above)
                for trigger in spec.triggers
                if isinstance(trigger, RateTrigger | ComparisonTrigger) and trigger.above is not None
            }
        )
    )


def _is_routed(row: Row) -> bool:
    """Whether a router or an aggregation decided who answers: then the release says nothing about the bucket."""
    return any(tag.startswith(ROUTED_TAGS) for tag in row.get("slices") or ())
