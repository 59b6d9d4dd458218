"""The contract between a stage and whoever runs it.

Here: what a stage is given (``StageContext``), what it hands back (``StageResult``) and how it is declared
(``StageSpec``). Not here: the order of stages (``pipelines``) or any stage. To add a stage: one file with one
frozen ``XConfig`` and one ``run_x(config, inputs, context) -> StageResult``, and one ``StageSpec`` in
``posttrain.pipelines.registry``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from posttrain.artifacts.records import Artifact, Producer
from posttrain.core.errors import Interrupted
from posttrain.core.events import Event, EventKind, EventSink, ignore_events

if TYPE_CHECKING:
    from posttrain.artifacts.store import ArtifactStore, ArtifactWriter


class StageConfig(BaseModel):
    """Base of every stage configuration: frozen, unknown keys refused, torch-free."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def external_files(self) -> Mapping[str, Path]:
        """Files or folders outside the store that decide the result, by the config key that names them.

        Their digests enter the stage's key in place of their paths: a changed file is never answered from the store,
        and two equal files are one input.
        """
        return {}

    def outside_facts(self) -> Mapping[str, str]:
        """Other things outside the configuration that decide the result, by name: each a digest or a version."""
        return {}


@dataclass(frozen=True, slots=True)
class StageSpec:
    """The declaration of a stage kind: everything the runner must know without importing its engine."""

    kind: str
    """Name used in recipes (``uses: grpo``)."""
    summary: str
    """One line for people."""
    config: str
    """``module:Class`` of its StageConfig; importing it must not load torch."""
    run: str
    """``module:function`` with the signature ``run_x(config, inputs, context) -> StageResult``."""
    inputs: Mapping[str, str]
    """Input name to artifact kind; a name ending in ``?`` is optional, one ending in ``*`` takes any number
    (written in recipes as a mapping; the stage sees keys ``name.key``)."""
    outputs: Mapping[str, str]
    """Output name to artifact kind."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage hands back."""

    outputs: Mapping[str, Artifact]
    """Every declared output, committed to the store."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Small facts for the run record and the terminal; may hold wall-clock figures, so it is never hashed."""


class StopRequest:
    """A flag that asks running work to stop at its next safe point."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise :class:`Interrupted` when a stop was requested."""
        if self.requested:
            raise Interrupted("stopped on request")


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a running stage may touch beside its config and inputs."""

    store: ArtifactStore
    stage: str
    """Name of the stage in the recipe."""
    kind: str
    """Stage kind."""
    key: str
    """Digest of config, inputs and code version: the identity of this piece of work."""
    workdir: Path
    """A private folder that survives kills, named by ``key``: checkpoints go here, resume looks here."""
    input_digests: Mapping[str, str] = field(default_factory=dict)
    """Input name to artifact digest: the lineage of every output."""
    threads: int = 1
    """Torch threads to use."""
    events: EventSink = ignore_events
    stop: StopRequest = field(default_factory=StopRequest)

    def emit(self, event: EventKind, **data: Any) -> None:
        """Tell whoever watches; see ``core.events`` for the kinds and their values."""
        self.events(Event(event, self.stage, data))

    def writer(self, kind: str, output: str, meta: Mapping[str, Any] | None = None) -> ArtifactWriter:
        """A writer for the output called ``output``: lineage, producer and threads are filled in."""
        return self.store.writer(
            kind,
            meta=meta or {},
            inputs=self.input_digests,
            producer=Producer(stage=self.kind, key=self.key, output=output),
            facts={"threads": self.threads},
        )
