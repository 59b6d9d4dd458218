"""What ``posttrain serve`` is configured with: one YAML file.

Here: the whole of it as one frozen record, made of the parts that each room owns. Not here: the parts. Unknown keys are
refused with the nearest known one. Secrets never stand in it: keys of upstreams are named by environment variable, keys
of clients live hashed in a file of their own.

    listen: 127.0.0.1:8080
    workers: 2
    upstreams:
      - {name: old, url: http://127.0.0.1:9000/v1}
    routes:
      - model: assistant
        production: {upstream: old, model: qwen}      # or {release: v1.2}, on an engine that we start
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, TypeAdapter, model_validator

from posttrain.core.documents import Document, Record
from posttrain.engines.drivers.records import EngineConfig, RecordedConfig
from posttrain.guardrails.config import GuardrailConfig
from posttrain.routing.config import Aggregation, RouterConfig
from posttrain.routing.records import Arm, Experiment, Target, Unit, Upstream, check_routing
from posttrain.serving.gateway.config import BreakerConfig, LimitsConfig, RetryConfig, ShadowConfig
from posttrain.serving.shadow.config import ShadowJudge
from posttrain.traffic.config import TrafficConfig

ENGINE: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)
Access: TypeAlias = Literal["keys", "open"]


class TargetConfig(Record):
    """Who answers: a release, or a model of an upstream."""

    release: str | None = None
    """Name or digest of a release; verified, then run on the route's ``engine``."""
    adapter: str | None = None
    """Which adapter of the release, where it has several; ``base`` for none of them."""
    upstream: str | None = None
    """Name of an upstream, instead of a release."""
    fallbacks: tuple[str, ...] = ()
    """Upstreams that are asked where the first is down."""
    model: str | None = None
    """What the upstream calls it; default: the route's model."""
    sampling: Mapping[str, Any] = Field(default_factory=dict)
    """What a request that does not say otherwise is given; default: the release's."""
    usd_per_1k_prompt_tokens: float = Field(0.0, ge=0)
    usd_per_1k_completion_tokens: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.release is None) == (self.upstream is None):
            raise ValueError("give exactly one of `release` and `upstream`")
        if self.adapter is not None and self.release is None:
            raise ValueError("adapter: is for a release")
        return self

    def on_upstream(self, public: str) -> Target:
        """The target, where it is a model of an upstream."""
        assert self.upstream is not None
        model = self.model or public
        return Target(
            name=f"{self.upstream}/{model}",
            upstreams=(self.upstream, *self.fallbacks),
            model=model,
            sampling=self.sampling,
            usd_per_1k_prompt_tokens=self.usd_per_1k_prompt_tokens,
            usd_per_1k_completion_tokens=self.usd_per_1k_completion_tokens,
        )


class ArmConfig(Record):
    """One side of an experiment."""

    name: str
    weight: int = Field(ge=0)
    target: TargetConfig


class ExperimentConfig(Record):
    """Arms among which users are split by weight."""

    name: str
    arms: tuple[ArmConfig, ...] = Field(min_length=2)


class RouteConfig(Record):
    """One public model name."""

    model: str = Field(min_length=1)
    """What clients write as ``model``."""
    production: TargetConfig
    """What answers at the first start; later the snapshots say (``posttrain rollout``, ``posttrain rollback``)."""
    experiment: ExperimentConfig | None = None
    choices: Mapping[str, TargetConfig] = Field(default_factory=dict)
    """What ``router`` or ``aggregate`` may call beside ``production``, by the name that they and the log use."""
    router: RouterConfig | None = None
    """Chooses who answers for production, request by request. Taken up at every start."""
    aggregate: Aggregation | None = None
    """Answers for production with one answer made from several. Taken up at every start."""
    unit: Unit = "user"
    engine: Mapping[str, Any] = Field(default_factory=lambda: {"engine": "llama_cpp"})
    """How releases of this route are run: the keys of an engine, without its ``model``."""
    probes: Path | None = None
    """YAML with requests and what must come back, asked of a release before it takes traffic."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.engine_for("check")
        check_routing(self.choices, self.router, self.aggregate)
        if self.choices and self.router is None and self.aggregate is None:
            raise ValueError("choices: nothing chooses among them; give `router` or `aggregate`")
        return self

    def engine_for(self, model: str) -> EngineConfig:
        """The engine that runs ``model``."""
        named = (
            {} if self.engine.get("engine") == "openai" else {"model": model}
        )  # somebody else runs that one
        return ENGINE.validate_python({**self.engine, **named})

    def with_paths_from(self, folder: Path) -> Self:
        """The same with every file named from ``folder``."""
        changes: dict[str, Any] = {}
        if self.probes is not None:
            changes["probes"] = folder / self.probes
        if self.router is not None and self.router.model is not None:
            changes["router"] = self.router.model_copy(update={"model": str(folder / self.router.model)})
        return self.model_copy(update=changes)


class TlsConfig(Record):
    """HTTPS by files; they are read again when they change."""

    certificate: Path
    """PEM, the whole chain."""
    key: Path
    """PEM."""


class SignatureConfig(Record):
    """Releases must be signed."""

    public_key: Path
    """PEM; the key mode of model-signing."""


class ServeConfig(Document):
    """A gateway."""

    record_kind: ClassVar[str] = "serve"

    name: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Names its folder: ``HOME/serving/NAME``."""
    listen: str = "127.0.0.1:8080"
    """Address and port; port 0 takes a free one."""
    admin: str = "127.0.0.1:0"
    """Of the admin surface, whose address and token are in the folder's ``admin.json``."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that take traffic; one uses one core."""
    upstreams: tuple[Upstream, ...] = ()
    recorded: tuple[RecordedConfig, ...] = ()
    """Upstreams that answer as people did; a route names one as its production's ``upstream``."""
    routes: tuple[RouteConfig, ...] = Field(min_length=1)
    traffic: TrafficConfig = Field(default_factory=TrafficConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    retries: RetryConfig = Field(default_factory=RetryConfig)
    breaker: BreakerConfig = Field(default_factory=BreakerConfig)
    shadow: ShadowConfig = Field(default_factory=ShadowConfig)
    guardrails: GuardrailConfig = Field(default_factory=GuardrailConfig)
    judge: ShadowJudge | None = None
    """Who judges shadow answers beside production's; without one they are watched for errors and times only."""
    judge_sampling: float = Field(1.0, gt=0, le=1)
    """Share of the pairs that is judged."""
    access: Access | None = None
    """``keys``: every request needs an API key (``posttrain key create``). ``open``: nobody needs one. Not said: keys
    where there are any, and on every address but a loopback one."""
    tls: TlsConfig | None = None
    signatures: SignatureConfig | None = None
    """Where given, an unsigned release is refused."""
    start_seconds: float = Field(60.0, gt=0)
    """How long workers may take until they listen."""
    grace_seconds: float = Field(30.0, ge=0)
    """How long requests in flight may take to end at a stop."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        split_address(self.listen)
        split_address(self.admin)
        return self

    def with_paths_from(self, folder: Path) -> Self:
        """The same with every file named from ``folder``."""
        changes: dict[str, Any] = {"routes": tuple(route.with_paths_from(folder) for route in self.routes)}
        changes["recorded"] = tuple(
            each.model_copy(update={"answers": folder / each.answers}) for each in self.recorded
        )
        if self.tls is not None:
            changes["tls"] = TlsConfig(certificate=folder / self.tls.certificate, key=folder / self.tls.key)
        if self.signatures is not None:
            changes["signatures"] = SignatureConfig(public_key=folder / self.signatures.public_key)
        return self.model_copy(update=changes)

    def experiment_of(self, route: RouteConfig, targets: Mapping[str, Target]) -> Experiment | None:
        """The route's experiment with the targets that its arms became."""
        if route.experiment is None:
            return None
        arms = tuple(
            Arm(name=arm.name, weight=arm.weight, target=targets[arm.name]) for arm in route.experiment.arms
        )
        return Experiment(name=route.experiment.name, arms=arms)


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:8080`` or ``[::1]:8080``. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not an address such as 127.0.0.1:8080")
    return host, int(port)
