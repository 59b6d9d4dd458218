"""What a name stands for, as data: an artifact, a run, a recipe or a stage.

Here: ``describe`` and ``list_runs``, for the command line and the console alike. Not here: any layout.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from posttrain.artifacts.home import Home, resolve
from posttrain.artifacts.records import Artifact, RunRecord, RunStageRecord
from posttrain.artifacts.stage import StageSpec
from posttrain.core.errors import ConfigError, MissingArtifactError, UnknownReferenceError
from posttrain.core.settings import Settings
from posttrain.pipelines.eventlog import log_path
from posttrain.pipelines.plan import existing_home, lookup_in
from posttrain.pipelines.recipe import find_recipe, read_recipe, shipped_recipes
from posttrain.pipelines.registry import STAGES
from posttrain.pipelines.resolve import ResolvedRecipe, resolve_recipe
from posttrain.pipelines.runs import find_run, resume_command, run_status

_MIN_KEY_DIGITS = 6


def describe(
    settings: Settings, reference: str, *, stages: Mapping[str, StageSpec] = STAGES
) -> dict[str, Any]:
    """What ``reference`` names, with ``type`` saying which of the four it is.

    Tried in this order: a shipped recipe or a recipe file, a run, an artifact (see ``artifacts.resolve``), a
    stage key or its first six or more digits. Raises UnknownReferenceError.
    """
    try:
        find_recipe(reference)
    except UnknownReferenceError:
        pass
    else:
        return describe_recipe(settings, reference, stages=stages)
    home = existing_home(settings)
    if home is None:
        raise UnknownReferenceError(
            f"{reference!r} is no recipe, and there is no home at {settings.home} yet",
            hint="`posttrain recipes` lists recipes; --home names another home",
        )
    try:
        return describe_run(home, find_run(home, reference))
    except UnknownReferenceError:
        pass
    try:
        return describe_artifact(home, resolve(home, reference))
    except (UnknownReferenceError, MissingArtifactError):
        found = _describe_stage(home, reference, stages)
        if found is None:
            raise
        return found


def describe_recipe(
    settings: Settings, reference: str, *, stages: Mapping[str, StageSpec] = STAGES
) -> dict[str, Any]:
    """A recipe with every default filled in."""
    source = read_recipe(reference)
    resolved = resolve_recipe(source, stages=stages, lookup=lookup_in(settings))
    return {
        "type": "recipe",
        "file": source.origin,
        "digest": resolved.digest,
        "stages": [
            {"name": stage.name, "kind": stage.spec.kind, "summary": stage.spec.summary}
            for stage in resolved.stages
        ],
        "recipe": dict(resolved.document),
    }


def describe_run(home: Home, run: RunRecord) -> dict[str, Any]:
    """A run with its stages and their outputs."""
    status = run_status(home, run)
    stages = home.registry.run_stages(run.id)
    document = json.loads(run.recipe_json)
    folder = home.settings.home / "runs" / run.id
    return {
        "type": "run",
        **_run_facts(run, status),
        "stages": [_stage_facts(stage, running=status == "running") for stage in stages],
        "outputs": _recipe_outputs(document, stages),
        "reports": sorted(str(path) for path in folder.glob("*.html")),
        "events": str(log_path(folder)),
        "resume": resume_command(home, run.id) if status in ("interrupted", "failed") else None,
        "recipe_document": document,
    }


def describe_artifact(home: Home, artifact: Artifact) -> dict[str, Any]:
    """An artifact: its files, what it was made from and by, what was made from it, and where it can be
    read."""
    complete = home.store.has(artifact.digest)
    return {
        "type": "artifact",
        "digest": artifact.digest,
        "kind": artifact.kind,
        "size_bytes": artifact.size_bytes,
        "files": [dataclasses.asdict(entry) for entry in artifact.files],
        "meta": dict(artifact.meta),
        "inputs": dict(artifact.inputs),
        "provenance": [kept.document() for kept in artifact.provenance],
        "ancestors": home.registry.ancestors(artifact.digest),
        "children": home.registry.children(artifact.digest),
        "refs": [name for name, digest in home.registry.refs().items() if digest == artifact.digest],
        "complete": complete,
        "view": str(home.store.view(artifact)) if complete else None,
    }


def list_runs(home: Home | None) -> list[dict[str, Any]]:
    """Every run, the youngest first."""
    if home is None:
        return []
    listed = []
    for run in reversed(home.registry.runs()):
        stages = home.registry.run_stages(run.id)
        done = sum(stage.status in ("finished", "reused") for stage in stages)
        listed.append({**_run_facts(run, run_status(home, run)), "stages_done": done, "stages": len(stages)})
    return listed


def list_recipes(*, stages: Mapping[str, StageSpec] = STAGES) -> list[dict[str, Any]]:
    """Every shipped recipe; one that does not resolve says why under ``error``."""
    listed = []
    for name, path in shipped_recipes().items():
        facts: dict[str, Any] = {
            "name": name,
            "file": str(path),
            "title": "",
            "stages": [],
            "variants": {},
            "error": None,
        }
        try:
            resolved = resolve_recipe(read_recipe(path), stages=stages)
        except ConfigError as error:
            facts["error"] = error.message
        else:
            facts |= _recipe_facts(resolved)
        listed.append(facts)
    return listed


def _recipe_facts(resolved: ResolvedRecipe) -> dict[str, Any]:
    return {
        "title": resolved.recipe.title,
        "description": resolved.recipe.description,
        "allow_hub": resolved.recipe.allow_hub,
        "stages": [f"{stage.name} ({stage.spec.kind})" for stage in resolved.stages],
        "variants": {name: variant.summary for name, variant in resolved.recipe.variants.items()},
        "digest": resolved.digest,
    }


def _describe_stage(home: Home, reference: str, stages: Mapping[str, StageSpec]) -> dict[str, Any] | None:
    digits = reference.removeprefix("sha256:")
    if len(digits) < _MIN_KEY_DIGITS:
        return None
    recorded = [stage for run in home.registry.runs() for stage in home.registry.run_stages(run.id)]
    keys = {stage.key for stage in recorded if stage.key and stage.key.startswith(f"sha256:{digits}")}
    if not keys:
        return None
    if len(keys) > 1:
        raise UnknownReferenceError(f"{len(keys)} stage keys begin with {digits}", hint="give more digits")
    key = keys.pop()
    ours = [stage for stage in recorded if stage.key == key]
    work = home.work_path(key)
    return {
        "type": "stage",
        "key": key,
        "kind": ours[-1].kind,
        "summary": stages[ours[-1].kind].summary if ours[-1].kind in stages else "",
        "inputs": dict(ours[-1].inputs),
        "outputs": home.registry.stage_outputs(key),
        "checkpoints": str(work) if work.is_dir() else None,
        "runs": [f"{stage.run_id}:{stage.name}" for stage in ours],
    }


def _run_facts(run: RunRecord, status: str) -> dict[str, Any]:
    return {
        "id": run.id,
        "recipe": run.recipe,
        "recipe_digest": run.recipe_digest,
        "status": status,
        "seed": run.seed,
        "created_at": run.created_at,
        "updated_at": run.updated_at,
        "error": run.error,
    }


def _stage_facts(stage: RunStageRecord, *, running: bool) -> dict[str, Any]:
    facts = dataclasses.asdict(stage)
    del facts["run_id"], facts["position"]
    if stage.status == "running" and not running:
        facts["status"] = "interrupted"
    return facts


def _recipe_outputs(document: dict[str, Any], stages: list[RunStageRecord]) -> dict[str, str]:
    made = {f"{stage.name}.{name}": digest for stage in stages for name, digest in stage.outputs.items()}
    return {name: made[wire] for name, wire in document.get("outputs", {}).items() if wire in made}
