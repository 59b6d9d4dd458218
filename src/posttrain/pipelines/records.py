"""What running a recipe hands back. Not here: what is kept of a run (``artifacts.records``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain.artifacts.records import Artifact

StageEnd: TypeAlias = Literal["finished", "reused"]


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """How one stage of a run ended."""

    name: str
    kind: str
    key: str
    status: StageEnd
    outputs: Mapping[str, Artifact]
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Small facts from the stage; of a reused stage those are not repeated."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run that finished ended. One that did not raises instead."""

    run_id: str
    recipe: str
    stages: tuple[StageOutcome, ...]
    outputs: Mapping[str, Artifact]
    """The recipe's own outputs."""
    reports: Mapping[str, Path]
    """Output name to the page of each output that has one (reports, decisions), in the run's folder."""
    seconds: float
