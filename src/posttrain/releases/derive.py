"""What need not be written in a release's spec, since the store and the registry know it.

Here: one function for each thing that is looked up. Not here: putting the manifest together (``create``). Lineage is
read from the manifests in the store; an ancestor that is no longer there is left out, since nothing could verify it.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import posttrain
from posttrain.artifacts.errors import ReleaseError
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact, RunRecord, parse_canonical
from posttrain.core.canonical import canonical_json, digest_bytes, short
from posttrain.core.errors import CorruptArtifactError, MissingArtifactError
from posttrain.releases.records import ArtifactPiece, Code, FilesPiece

TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"

_GIT_SECONDS = 20
_REWARD_MODEL_STAGE = "reward_model"


def ancestors(home: Home, artifact: Artifact) -> list[Artifact]:
    """Everything ``artifact`` was made from as far as it is here, sorted by digest."""
    found: dict[str, Artifact] = {}
    waiting = list(artifact.parents)
    while waiting:
        digest = waiting.pop()
        if digest in found:
            continue
        try:
            found[digest] = home.store.get(digest)
        except (MissingArtifactError, CorruptArtifactError):
            continue
        waiting.extend(found[digest].parents)
    return [found[digest] for digest in sorted(found) if digest != artifact.digest]


def run_of(home: Home, reference: str, digest: str) -> RunRecord | None:
    """The run that the reference names (``RUN:…``), else the latest that made the artifact, finished ones first."""
    runs = {run.id: run for run in home.registry.runs()}
    if (named := reference.partition(":")[0]) in runs:
        return runs[named]
    made = [
        run
        for run in runs.values()
        if any(digest in stage.outputs.values() for stage in home.registry.run_stages(run.id))
    ]
    made.sort(key=lambda run: (run.status == "finished", run.created_at, run.id))
    return made[-1] if made else None


def resolved_recipe(run: RunRecord) -> bytes:
    """The run's resolved recipe as canonical JSON, whose digest the run record holds. Raises ReleaseError."""
    raw = canonical_json(parse_canonical(run.recipe_json))
    if digest_bytes(raw) != run.recipe_digest:
        raise ReleaseError(
            f"run {run.id}: its recipe does not match its digest, so somebody changed the run's record",
            hint="give `configuration: {recipe: {file: PATH}}` and take the model by its digest",
        )
    return raw


def holder_of_tokenizer(home: Home, base: Artifact) -> Artifact:
    """The artifact with the tokenizer's files: the base, or the model that a GGUF was made from."""
    if base.kind == "gguf" and "model" in base.inputs:
        try:
            return home.store.get(base.inputs["model"])
        except MissingArtifactError:
            return base
    return base


def tokenizer_files(artifact: Artifact) -> FilesPiece | None:
    """The tokenizer of a model folder."""
    files = {f.path: f.digest for f in artifact.files if PurePosixPath(f.path).name in TOKENIZER_FILES}
    return FilesPiece(artifact=artifact.digest, files=files) if files else None


def template_file(artifact: Artifact) -> FilesPiece | None:
    """The chat template of a model folder, where it is a file of its own."""
    files = {f.path: f.digest for f in artifact.files if PurePosixPath(f.path).name == TEMPLATE_FILE}
    return FilesPiece(artifact=artifact.digest, files=files) if files else None


def template_text(home: Home, artifact: Artifact) -> str | None:
    """The chat template inside ``tokenizer_config.json``, as older tokenizers keep it."""
    if TOKENIZER_CONFIG not in {entry.path for entry in artifact.files}:
        return None
    try:
        found = json.loads(home.store.read_bytes(artifact, TOKENIZER_CONFIG)).get("chat_template")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and found else None


def datasets(home: Home, run: RunRecord | None, lineage: list[Artifact]) -> dict[str, ArtifactPiece]:
    """The datasets among the ancestors, named by the stage that made them in ``run``."""
    return _named(home, run, [found for found in lineage if found.kind == "dataset"])


def reward_models(home: Home, run: RunRecord | None, lineage: list[Artifact]) -> dict[str, ArtifactPiece]:
    """The reward models among the ancestors."""
    learned = [
        found
        for found in lineage
        if found.kind == "model" and any(made_by.stage == _REWARD_MODEL_STAGE for made_by in found.producers)
    ]
    return _named(home, run, learned)


def headline_of(home: Home, report: Artifact) -> dict[str, float]:
    """The figures of a report: those that its stage told a run, else the numbers in its meta."""
    for run in reversed(home.registry.runs()):
        for stage in home.registry.run_stages(run.id):
            if report.digest in stage.outputs.values() and (figures := numbers(stage.summary)):
                return figures
    return numbers(report.meta)


def numbers(value: Any) -> dict[str, float]:
    """The finite numbers at the top of a JSON object."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(key): float(found)
        for key, found in sorted(value.items())
        if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    }


def code_of(folder: Path) -> Code:
    """This posttrain's version, and commit and state of the Git repository that ``folder`` is in (None without one).

    It is the code that makes the release. Where the model was made by other code, say so in the spec.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    dirty = None if commit is None else bool(_git(folder, "status", "--porcelain"))
    return Code(commit=commit, dirty=dirty, posttrain=posttrain.__version__)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _named(home: Home, run: RunRecord | None, found: list[Artifact]) -> dict[str, ArtifactPiece]:
    stages = [] if run is None else home.registry.run_stages(run.id)
    in_run = {digest: f"{stage.name}.{name}" for stage in stages for name, digest in stage.outputs.items()}
    named: dict[str, ArtifactPiece] = {}
    for artifact in found:
        other = artifact.kind
        if artifact.producers:
            other = f"{artifact.producers[0].stage}.{artifact.producers[0].output}"
        name = in_run.get(artifact.digest, other)
        if name in named:
            name = f"{name}@{short(artifact.digest)}"
        named[name] = ArtifactPiece(digest=artifact.digest, kind=artifact.kind)
    return named
