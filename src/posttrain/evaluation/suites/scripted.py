"""Scripted policies as players: stand-ins for a model whose successes are known beforehand.

Here: a policy answered by the suite's frozen tools, and naming one. Not here: the policies (``environments.policies``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from posttrain.core.canonical import canonical_json
from posttrain.core.errors import DataError
from posttrain.core.suggest import did_you_mean
from posttrain.engines.conversation import Job, Played
from posttrain.environments.records import ToolCall
from posttrain.environments.suites.policies import PolicyConfig, build_policy
from posttrain.environments.suites.suite import Suite
from posttrain.environments.tools import FrozenTools, ToolMiss

_ADAPTER: TypeAdapter[PolicyConfig] = TypeAdapter(PolicyConfig)
_KINDS = ("perfect", "fluent_but_wrong", "right_at_rate", "slow", "crashing")
_PREFIX = "policy:"
_ERROR_CHARACTERS = 300


class PolicyPlayer:
    """Plays by a script. What it raises is recorded, as with any engine."""

    batch_size = 8

    def __init__(self, suite: Suite, config: PolicyConfig) -> None:
        self._policy = build_policy(config)
        self._tools = {spec.name: FrozenTools(suite, spec) for spec in suite.slices}

    def play(self, jobs: Sequence[Job]) -> list[Played]:
        """See :class:`~posttrain.engines.conversation.Player`."""
        return [self._play(job) for job in jobs]

    def _play(self, job: Job) -> Played:
        case, tools = job.case, self._tools[job.case.slice]
        misses: list[ToolMiss] = []

        def ask(name: str, arguments: Mapping[str, Any]) -> str | None:
            raw = json.dumps(dict(arguments))
            answer = tools.answer(ToolCall(name, dict(arguments), raw), case.tools)
            misses.extend([answer.miss] if answer.miss is not None else [])
            return answer.call.reply

        started = time.monotonic()
        try:
            answer = self._policy.respond(case, ask)
        except Exception as error:  # a boundary: a policy may be written to fail
            text = f"engine: {type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
            return Played(case.id, case.slice, job.sample, None, text)
        seconds = time.monotonic() - started
        return Played(case.id, case.slice, job.sample, answer, None, tuple(misses), seconds)


def policy_name(config: PolicyConfig) -> str:
    """``policy:right_at_rate,rate=0.8``: what a report calls it, and what reads back."""
    settings = config.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
    texts = [f"{key}={canonical_json(value).decode()}" for key, value in sorted(settings.items())]
    return ",".join([f"{_PREFIX}{config.kind}", *texts])


def read_policy(text: str) -> PolicyConfig:
    """The inverse of :func:`policy_name`; dashes are as good as underscores. Raises DataError."""
    name, *settings = text.removeprefix(_PREFIX).split(",")
    kind = name.replace("-", "_")
    if kind not in _KINDS:
        raise DataError(f"there is no policy {name!r}", hint=did_you_mean(kind, _KINDS))
    try:
        pairs = dict(setting.split("=", 1) for setting in settings)
        return _ADAPTER.validate_python({"kind": kind, **pairs})
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{text}: {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}") from error
    except ValueError as error:
        raise DataError(
            f"{text}: write settings as NAME,KEY=VALUE", hint="policy:right_at_rate,rate=0.8"
        ) from error
