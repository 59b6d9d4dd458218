"""What a run would do: the key of each stage, and whether its outputs are already in the store.

Here: stage keys, ``plan_recipe`` for ``--dry-run``, and finding artifacts for ``resolve_recipe``. Not here:
running (``runner``). A home that does not exist stays so; what only a mirror has is fetched when it is asked
for.

A stage's key is the digest of its kind, its configuration with every default filled in, the digests of its inputs, the
digest of its code, the class of device where it computes with torch, and other facts that decide the result
(``StageConfig.outside_facts``). A file outside the store counts by its bytes, not by its path
(``StageConfig.external_files``). The number of threads is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain.artifacts.home import Home, open_home, resolve
from posttrain.artifacts.records import Artifact
from posttrain.core.canonical import digest_file, digest_json
from posttrain.core.device import device_class
from posttrain.core.errors import (
    ConfigError,
    CorruptArtifactError,
    MissingArtifactError,
    UnknownReferenceError,
)
from posttrain.core.settings import Settings
from posttrain.core.sources import SourceTree
from posttrain.pipelines.codeversion import code_closure
from posttrain.pipelines.resolve import ArtifactInput, Lookup, ResolvedRecipe, ResolvedStage, Wire

PlanStatus: TypeAlias = Literal["cached", "will run", "will resume", "unknown"]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """What would happen to one stage."""

    name: str
    kind: str
    status: PlanStatus
    """``unknown`` until the stages before it have run: its inputs, and so its key, are not known."""
    key: str | None = None
    inputs: Mapping[str, str | None] = field(default_factory=dict)
    """Input name to digest; None where it is not known yet."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Output name to digest, where the stage is cached."""


class StageKeys:
    """Derives the keys of one recipe's stages; code and outside files are read once, when it is made.

    Raises ConfigError for a file outside the store that is not there.
    """

    def __init__(self, resolved: ResolvedRecipe) -> None:
        sources = SourceTree()
        self._fixed = {stage.name: self._fixed_part(stage, sources) for stage in resolved.stages}

    def key(self, stage: ResolvedStage, inputs: Mapping[str, str]) -> str:
        """The key of ``stage`` with these input digests."""
        return digest_json({**self._fixed[stage.name], "inputs": dict(inputs)})

    @staticmethod
    def _fixed_part(stage: ResolvedStage, sources: SourceTree) -> dict[str, Any]:
        code = code_closure(stage.spec, sources)
        files = external_files(stage)
        fixed: dict[str, Any] = {
            "kind": stage.spec.kind,
            "config": _without_paths(stage.config_json, files),
            "code": code.digest,
        }
        if "torch" in code.libraries:
            fixed["device"] = _device_of(stage)
        if facts := stage.config.outside_facts():
            fixed["facts"] = dict(facts)
        return fixed


def _without_paths(config: dict[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with the digest of every outside file where its path stood."""
    for key, digest in files.items():
        *path, last = key.split(".")
        owner: Any = config
        for part in path:
            owner = owner[int(part)] if isinstance(owner, list) else owner[part]
        owner[int(last) if isinstance(owner, list) else last] = digest
    return config


def _device_of(stage: ResolvedStage) -> str:
    """The class of device that a stage computes on: the one that its configuration names, else this machine's."""
    wanted = stage.config_json.get("device", "auto")
    return "cpu" if wanted == "cpu" else device_class()


def external_files(stage: ResolvedStage) -> dict[str, str]:
    """Configuration key to digest of each file outside the store that the stage reads.

    A configuration names them by a method ``external_files() -> Mapping[str, Path]``; a folder counts with
    every file below it. Raises ConfigError for one that is not there.
    """
    return {
        key: _digest_outside(stage.name, key, path) for key, path in stage.config.external_files().items()
    }


def _digest_outside(stage: str, key: str, path: Path) -> str:
    try:
        if path.is_dir():
            below = sorted(item for item in path.rglob("*") if item.is_file())
            return digest_json({item.relative_to(path).as_posix(): digest_file(item) for item in below})
        return digest_file(path)
    except OSError as error:
        raise ConfigError(
            f"{stage}.{key}: {path} cannot be read: {error.strerror}",
            hint=f"set {stage}.{key} to a file that exists",
        ) from error


def plan_recipe(resolved: ResolvedRecipe, home: Home | None) -> list[PlannedStage]:
    """What running ``resolved`` would do in ``home``; None stands for a home that does not exist yet."""
    keys = StageKeys(resolved)
    planned: dict[str, PlannedStage] = {}
    for stage in resolved.stages:
        inputs = {name: _digest_of(wire, planned) for name, wire in stage.inputs.items()}
        known = {name: digest for name, digest in inputs.items() if digest is not None}
        if len(known) < len(inputs):
            planned[stage.name] = PlannedStage(stage.name, stage.spec.kind, "unknown", None, inputs)
            continue
        key = keys.key(stage, known)
        outputs = reusable_outputs(home, stage, key) if home else None
        status: PlanStatus = "cached" if outputs is not None else "will run"
        if outputs is None and home and home.work_path(key).is_dir():
            status = "will resume"
        made = {name: artifact.digest for name, artifact in (outputs or {}).items()}
        planned[stage.name] = PlannedStage(stage.name, stage.spec.kind, status, key, inputs, made)
    return list(planned.values())


def _digest_of(wire: Wire, planned: Mapping[str, PlannedStage]) -> str | None:
    return wire.digest if isinstance(wire, ArtifactInput) else planned[wire.stage].outputs.get(wire.output)


def reusable_outputs(home: Home, stage: ResolvedStage, key: str) -> dict[str, Artifact] | None:
    """The outputs of the stage with this key, when it has finished before and every file of them is in place.

    None where it has not, or where something is missing or damaged: the stage is then run again, which
    repairs it.
    """
    digests = home.registry.stage_outputs(key)
    if digests is None or digests.keys() != stage.spec.outputs.keys():
        return None
    try:
        return {name: home.store.ensure(digest) for name, digest in digests.items()}
    except (MissingArtifactError, CorruptArtifactError):
        return None


def existing_home(settings: Settings) -> Home | None:
    """The home that ``settings`` names, or None where there is none; nothing is created."""
    return open_home(settings) if (settings.home / "store.json").is_file() else None


def lookup_in(settings: Settings) -> Lookup:
    """Finds artifacts in the home that ``settings`` names; opened when the first reference is looked up."""

    def lookup(reference: str) -> Artifact:
        home = existing_home(settings)
        if home is None:
            raise UnknownReferenceError(
                f"{reference!r} names no artifact: there is no home at {settings.home} yet",
                hint="name an output of an earlier stage, as stage.output, or another home with --home",
            )
        return resolve(home, reference)

    return lookup
