"""Scripted policies: stand-ins for a model whose rate of success is known.

``build_policy(config).respond(case, ask)`` answers any case of any shipped slice, asking the slice's recorded tools
where it has some. What a policy does with a case depends on the case, its own settings and nothing else. Here: the
policies. Not here: what is right and wrong in a slice (``slices``). To add one: a config in ``PolicyConfig`` and its
line in ``build_policy``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from posttrain.core.errors import DataError
from posttrain.core.suggest import did_you_mean
from posttrain.environments.records import Answer, Case
from posttrain.environments.suites.slice_records import ToolSpec
from posttrain.environments.suites.slices import SOURCES, Ask


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PerfectPolicy(_Config):
    """Right on every case."""

    kind: Literal["perfect"] = "perfect"


class FluentButWrongPolicy(_Config):
    """Reads well, and breaks the rule of every case."""

    kind: Literal["fluent_but_wrong"] = "fluent_but_wrong"


class RatePolicy(_Config):
    """Right on a share of the cases, which ones is fixed by their ids: a higher rate keeps every right answer."""

    kind: Literal["right_at_rate"] = "right_at_rate"
    rate: float = Field(ge=0, le=1)
    seed: int = 0


class SlowPolicy(_Config):
    """Right, after a while."""

    kind: Literal["slow"] = "slow"
    seconds: float = Field(default=1.0, ge=0)


class CrashingPolicy(_Config):
    """Fails on a share of the cases, by raising or by running into its time limit; right on the others."""

    kind: Literal["crashing"] = "crashing"
    rate: float = Field(default=1.0, ge=0, le=1)
    seed: int = 0


PolicyConfig: TypeAlias = Annotated[
    PerfectPolicy | FluentButWrongPolicy | RatePolicy | SlowPolicy | CrashingPolicy,
    Field(discriminator="kind"),
]
"""Any policy, told apart by ``kind``."""


class PolicyCrash(RuntimeError):
    """What the crashing policy raises half of the time; the other half it is TimeoutError."""


class Policy(Protocol):
    """Anything that answers cases."""

    def respond(self, case: Case, ask: Ask) -> Answer:
        """Answer one case, with ``ask`` for its tools."""
        ...


def build_policy(config: PolicyConfig) -> Policy:
    """The policy of a config."""
    match config:
        case PerfectPolicy():
            return _AtRate(1.0, 0)
        case FluentButWrongPolicy():
            return _AtRate(0.0, 0)
        case RatePolicy():
            return _AtRate(config.rate, config.seed)
        case SlowPolicy():
            return _Slow(config.seconds)
        case CrashingPolicy():
            return _Crashing(config.rate, config.seed)


def recorded(tools: Sequence[ToolSpec]) -> Ask:
    """A slice's tools as something to ask."""
    by_name = {tool.name: tool for tool in tools}

    def ask(name: str, arguments: object) -> str | None:
        tool = by_name.get(name)
        return tool.reply(arguments) if tool is not None and isinstance(arguments, dict) else None

    return ask


def draw(seed: int, text: str) -> float:
    """A number from 0 to below 1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:6], "big") / 2**48


class _AtRate:
    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._seed = seed

    def respond(self, case: Case, ask: Ask) -> Answer:
        """See ``Policy``."""
        if case.slice not in SOURCES:
            raise DataError(
                f"no policy knows the slice {case.slice!r}", hint=did_you_mean(case.slice, SOURCES)
            )
        source = SOURCES[case.slice]
        return (source.right if draw(self._seed, case.id) < self._rate else source.wrong)(case, ask)


class _Slow(_AtRate):
    def __init__(self, seconds: float) -> None:
        super().__init__(1.0, 0)
        self._seconds = seconds

    def respond(self, case: Case, ask: Ask) -> Answer:
        """See ``Policy``."""
        time.sleep(self._seconds)
        return super().respond(case, ask)


class _Crashing(_AtRate):
    def __init__(self, rate: float, seed: int) -> None:
        super().__init__(1.0, 0)
        self._crash_rate = rate
        self._crash_seed = seed

    def respond(self, case: Case, ask: Ask) -> Answer:
        """See ``Policy``."""
        drawn = draw(self._crash_seed, case.id)
        if drawn >= self._crash_rate:
            return super().respond(case, ask)
        if drawn < self._crash_rate / 2:
            raise PolicyCrash(f"the crashing policy crashed on {case.id}")
        raise TimeoutError(f"the crashing policy ran into its time limit on {case.id}")
