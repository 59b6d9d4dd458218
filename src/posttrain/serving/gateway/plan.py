"""A snapshot made ready for use: everything that is the same for many requests is worked out once.

Here: routes and seats. A seat is a target in a role (route, lane, arm): who is called, what is written on every row.
Not here: who gets which seat (``assignment``), connections (``upstream``).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson

from posttrain.core.canonical import digest_json
from posttrain.routing.assignment import assign
from posttrain.routing.config import Aggregation
from posttrain.routing.records import Route, Snapshot, Target, Unit
from posttrain.serving.gateway.choosing import Chooser
from posttrain.serving.gateway.events import Endpoint, Usage
from posttrain.serving.gateway.metrics import Cell, CellKey, Metrics
from posttrain.serving.gateway.upstream import UpstreamHandle

_dumps: Final = orjson.dumps
_SORTED: Final = orjson.OPT_SORT_KEYS

SAMPLING_KEYS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "stop",
    "n",
    "logit_bias",
    "reasoning_effort",
)
"""What the sampling digest of a row is made of. Not the seed: it names one draw, not a way to draw."""
_SAMPLING: Final = frozenset(SAMPLING_KEYS)
_SAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
"""Two names of one thing: a default fills neither where the request gives the other."""
_REMEMBERED = 4096


class Seat:
    """A target in a role."""

    __slots__ = ("_usd_per_completion_token", "_usd_per_prompt_token", "cell", "fixed", "handles", "lane", "model",
                 "sampling", "target", "unit")  # fmt: skip

    def __init__(
        self, target: Target, key: CellKey, fixed: bytes, handles: tuple[UpstreamHandle, ...]
    ) -> None:
        self.target = target
        self.unit: Unit = "user"
        """What stays with its answer on this route."""
        self.lane = key.lane
        self.model = target.model
        """What the upstream calls it."""
        self.sampling = tuple(target.sampling.items())
        self._usd_per_prompt_token = target.usd_per_1k_prompt_tokens / 1000
        self._usd_per_completion_token = target.usd_per_1k_completion_tokens / 1000
        self.fixed = fixed
        """JSON members that all its rows have, without braces."""
        self.handles = handles
        """Who is called, in order."""
        self.cell: Cell

    def fill(self, body: dict[str, Any]) -> None:
        """Make a client's body the upstream's: the model's name, and what the client left open."""
        body["model"] = self.model
        for name, value in self.sampling:
            if name not in body and _SAME.get(name) not in body:
                body[name] = value

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What it costs."""
        return prompt_tokens * self._usd_per_prompt_token + completion_tokens * self._usd_per_completion_token

    def spend(self, usage: Usage) -> float:
        """Count the tokens of an answer; what it costs."""
        prompt, completion = usage.prompt or 0, usage.completion or 0
        self.cell.prompt_tokens += prompt
        self.cell.completion_tokens += completion
        return self.cost_usd(prompt, completion)


class Team(NamedTuple):
    """Several that make one answer."""

    config: Aggregation
    seats: Mapping[str, Seat]
    """By the names that ``config`` uses."""


class Seating(NamedTuple):
    """Who answers a request, and who beside."""

    seat: Seat
    shadow: Seat | None
    tag: str = ""
    """What the row says of how it was chosen."""
    team: Team | None = None
    """Who answers together, for ``seat``."""


class RoutePlan:
    """One public model name."""

    def __init__(self, plan: Plan, route: Route, chooser: Chooser | None) -> None:
        self.route = route
        self.is_routed = (chooser is not None or route.aggregate is not None) and route.experiment is None
        """Whether :meth:`choose` has a say. An experiment leaves nothing to choose: all of production is its arms'."""
        self._chooser = chooser
        self.unit = route.unit
        self._plan = plan
        self._seats: dict[tuple[str, str, str], Seat] = {}
        self._is_drawn = not (route.canary is None and route.shadow is None and route.experiment is None)
        self._only: Seating | None = None
        """Everybody's, where nothing is drawn, once it was asked for."""

    def seat(self, unit: str) -> Seating:
        """Who answers this unit."""
        seating = self._only
        if seating is None:
            seating = self._draw(unit)
            if not self._is_drawn:
                self._only = seating
        return seating

    def _draw(self, unit: str) -> Seating:
        lane, arm, target, shadow = assign(self.route, unit)
        beside = None if shadow is None else self._seat("shadow", "", shadow)
        return Seating(self._seat(lane, arm, target), beside)

    def choose(
        self, seating: Seating, endpoint: Endpoint, body: Mapping[str, Any], headers: Mapping[bytes, bytes]
    ) -> Seating:
        """The same with who answers for production; a canary's users are not touched."""
        _, lane, arm, _ = seating.seat.cell.key
        if lane != "production":
            return seating
        aggregation = self.route.aggregate
        if aggregation is not None:
            seats = {name: self._named(lane, arm, name) for name in aggregation.names()}
            first = seats[aggregation.targets[0]]
            if not can_aggregate(body):
                return seating._replace(seat=first, tag="aggregate:skipped")
            team = Team(aggregation, seats)
            return seating._replace(seat=first, tag=f"aggregate:{aggregation.kind}", team=team)
        if self._chooser is None:
            return seating
        choice = self._chooser.choose(endpoint, body, headers)
        seat = self._named(lane, arm, choice.target)
        self._plan.metrics.routed[self.route.model, choice.by, seat.target.name] += 1
        return seating._replace(seat=seat, tag=f"router:{choice.by}")

    def _named(self, lane: str, arm: str, name: str) -> Seat:
        return self._seat(lane, arm, self.route.named(name) or self.route.production)

    def _seat(self, lane: str, arm: str, target: Target) -> Seat:
        # Production, canary and arms may be one target in several roles, or one name with different digests.
        key = (lane, arm, target.name)
        seat = self._seats.get(key)
        if seat is None or seat.target is not target:
            seat = self._seats[key] = self._plan.make_seat(self.route, lane, arm, target)
        return seat


class Plan:
    """One snapshot in use."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        worker: str,
        handles: Mapping[str, UpstreamHandle],
        shadow_handles: Mapping[str, UpstreamHandle],
        metrics: Metrics,
        choosers: Mapping[str, Chooser],
    ) -> None:
        self.snapshot = snapshot
        self.epoch = snapshot.epoch
        self.handles = handles
        """By name; what a user waits for."""
        self.shadow_handles = shadow_handles
        """By name; connections and breakers of their own, so that copies take nothing from users."""
        self._worker = worker
        self.metrics = metrics
        self.choosers = choosers
        """By route, of those that have a router."""
        self.routes = {
            route.model: RoutePlan(self, route, choosers.get(route.model)) for route in snapshot.routes
        }
        self.created = _seconds(snapshot.at)

    def make_seat(self, route: Route, lane: str, arm: str, target: Target) -> Seat:
        """A target in a role, with what its rows say."""
        says: dict[str, Any] = {
            "worker": self._worker,
            "epoch": self.epoch,
            "model": route.model,
            "lane": lane,
            "arm": arm,
            "rollout": route.rollout,
            "target": target.name,
            "release": target.release,
            "adapter": target.adapter,
            "template": target.template,
        }
        fixed = _dumps({name: value for name, value in says.items() if value not in (None, "")})[1:-1]
        handles = self.shadow_handles if lane == "shadow" else self.handles
        key = CellKey(route.model, lane, arm, target.name)
        seat = Seat(target, key, fixed, tuple(handles[name] for name in target.upstreams))
        seat.cell = self.metrics.cell(key)
        seat.unit = route.unit
        return seat


def can_aggregate(body: Mapping[str, Any]) -> bool:
    """Whether several answers to this can be made one: a single text is asked for, and no tool may be called."""
    return not (
        body.get("tools") or body.get("functions") or body.get("n") not in (None, 1) or body.get("logprobs")
    )


_digests: Final[dict[bytes, str]] = {}
_NO_SAMPLING: Final = digest_json({})


def sampling_digest(body: dict[str, Any]) -> str | None:
    """Of the sampling parameters in force; remembered, because canonical JSON costs more than the rest of a row.

    None where they cannot be meant (a whole number beyond 2**53): the upstream will say so.
    """
    values = {name: value for name, value in body.items() if name in _SAMPLING}
    if not values:
        return _NO_SAMPLING
    key = _dumps(values, option=_SORTED)
    digest = _digests.get(key)
    if digest is None:
        try:
            digest = digest_json(values)
        except ValueError:
            return None
        if len(_digests) >= _REMEMBERED:
            _digests.clear()
        if len(key) <= 512:
            _digests[key] = digest
    return digest


def _seconds(at: str) -> int:
    try:
        return int(datetime.fromisoformat(at).timestamp())
    except ValueError:
        return 0
