"""What meets traffic, and how: one immutable snapshot.

Here: frozen, torch-free records. Not here: who gets which answer (``assignment``), how a snapshot comes to be
(``rollout``, ``control``), how it is served (``gateway``). A worker serves exactly one snapshot at any instant and
says its epoch on every row that it logs; a change, however small, is a new snapshot with a higher epoch. Nothing in a
snapshot is a secret: keys are named by the environment variable that holds them.

To add a field: give it a default that means what an old snapshot meant, and a golden file beside the old ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from posttrain.core.buckets import BUCKETS
from posttrain.core.documents import Digest, Document, Record
from posttrain.routing.config import PRODUCTION, Aggregation, RouterConfig

EngineKind: TypeAlias = Literal["openai", "llama_cpp", "transformers", "vllm", "sglang", "recorded"]
Lane: TypeAlias = Literal["production", "canary", "shadow"]
"""How an answer came to be given: ``shadow`` answers are never seen by a user."""
Unit: TypeAlias = Literal["user", "conversation", "request"]
"""What stays with its answer: all requests of a user, of a conversation, or none but itself."""


class Upstream(Record):
    """One server that speaks the OpenAI protocol."""

    name: str = Field(min_length=1)
    url: str
    """Up to and including the version: ``http://127.0.0.1:8001/v1``."""
    engine: EngineKind = "openai"
    key_variable: str | None = None
    """Environment variable that holds the bearer key, if it wants one."""
    max_connections: int = Field(64, ge=1)
    connect_seconds: float = Field(2.0, gt=0)
    first_byte_seconds: float = Field(60.0, gt=0)
    """How long it may think before the answer's first byte."""
    idle_seconds: float = Field(30.0, gt=0)
    """How long a begun answer may pause."""


class Target(Record):
    """What answers: a release, on the upstreams that hold it."""

    name: str = Field(min_length=1)
    """For people: ``v1.3``."""
    upstreams: tuple[str, ...] = Field(min_length=1)
    """In the order they are tried; the second is asked where the first is down or fails before its first byte."""
    model: str = Field(min_length=1)
    """What the upstream calls it. An adapter's name ends in its digest and is never reused."""
    release: Digest | None = None
    adapter: Digest | None = None
    template: Digest | None = None
    """Of the chat template."""
    sampling: Mapping[str, Any] = Field(default_factory=dict)
    """What a request that does not say otherwise is given: ``temperature``, ``top_p``…"""
    usd_per_1k_prompt_tokens: float = Field(0.0, ge=0)
    usd_per_1k_completion_tokens: float = Field(0.0, ge=0)


class Canary(Record):
    """A candidate that answers a share of users."""

    target: Target
    share: int = Field(ge=0, le=BUCKETS)
    """In ten-thousandths. Raising it only ever adds users."""
    salt: str = Field(min_length=1)
    """Of this rollout; another rollout meets other users first."""


class Shadow(Record):
    """A candidate that answers beside production, unseen."""

    target: Target
    share: int = Field(ge=0, le=BUCKETS)
    salt: str = Field(min_length=1)


class Arm(Record):
    """One side of an experiment."""

    name: str = Field(min_length=1)
    weight: int = Field(ge=0)
    target: Target


class Experiment(Record):
    """Arms among which the users of production are split by weight."""

    name: str = Field(min_length=1)
    arms: tuple[Arm, ...] = Field(min_length=2)

    @property
    def salt(self) -> str:
        """Experiments of different names split independently of each other."""
        return f"experiment:{self.name}"

    @model_validator(mode="after")
    def _check(self) -> Self:
        _unique("arms", (arm.name for arm in self.arms))
        if not any(arm.weight for arm in self.arms):
            raise ValueError("arms: at least one weight is above 0")
        return self


class Route(Record):
    """One public model name and everything that may answer to it."""

    model: str = Field(min_length=1)
    """What clients write as ``model``."""
    production: Target
    canary: Canary | None = None
    shadow: Shadow | None = None
    experiment: Experiment | None = None
    unit: Unit = "user"
    rollout: str | None = None
    """Id of the rollout that put the canary or shadow there."""
    choices: tuple[Target, ...] = ()
    """What a router or an aggregation may call beside production, by its name."""
    router: RouterConfig | None = None
    """Chooses who answers for production, request by request; canary and experiment go first."""
    aggregate: Aggregation | None = None
    """Answers for production with one answer made from several."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_routing([choice.name for choice in self.choices], self.router, self.aggregate)
        return self

    def named(self, name: str) -> Target | None:
        """Who is meant by a name in ``router`` or ``aggregate``."""
        if name == PRODUCTION:
            return self.production
        return next((choice for choice in self.choices if choice.name == name), None)

    def targets(self) -> Iterator[Target]:
        """Everything that may answer, production first."""
        yield self.production
        if self.canary is not None:
            yield self.canary.target
        if self.shadow is not None:
            yield self.shadow.target
        if self.experiment is not None:
            yield from (arm.target for arm in self.experiment.arms)
        yield from self.choices


class Snapshot(Document):
    """All that a worker needs to know to answer: swapped whole, never edited."""

    record_kind: ClassVar[str] = "snapshot"

    epoch: int = Field(ge=1)
    """Goes up by one with every swap."""
    at: str
    """When it was made, RFC 3339, UTC."""
    reason: str
    """One line: ``rollout r-12: canary 5 %``."""
    upstreams: tuple[Upstream, ...]
    routes: tuple[Route, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _unique("upstreams", (upstream.name for upstream in self.upstreams))
        _unique("routes", (route.model for route in self.routes))
        known = {upstream.name for upstream in self.upstreams}
        for route in self.routes:
            for target in route.targets():
                if missing := [name for name in target.upstreams if name not in known]:
                    raise ValueError(
                        f"routes: {route.model!r} names the upstream {missing[0]!r}, known are {sorted(known)}"
                    )
        return self

    def route(self, model: str) -> Route | None:
        """The route of a public model name."""
        return next((route for route in self.routes if route.model == model), None)


def check_routing(choices: Iterable[str], router: RouterConfig | None, aggregate: Aggregation | None) -> None:
    """Whether every name that routing uses is a choice or ``production``. Raises ValueError."""
    names = list(choices)
    _unique("choices", iter(names))
    if PRODUCTION in names:
        raise ValueError(f"choices: {PRODUCTION!r} is what production is called; take another name")
    if router is not None and aggregate is not None:
        raise ValueError("give `router` or `aggregate`, not both: one chooses, the other asks several")
    known = {PRODUCTION, *names}
    for key, routing in (("router", router), ("aggregate", aggregate)):
        if routing is not None and (missing := [name for name in routing.names() if name not in known]):
            raise ValueError(f"{key}: {missing[0]!r} is no choice of the route, known are {sorted(known)}")


def _unique(what: str, names: Iterator[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what}: {twice[0]!r} is there twice")
