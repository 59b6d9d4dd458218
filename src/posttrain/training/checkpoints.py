"""Checkpoints that a kill cannot spoil.

Here: a folder is written beside its final name, synced, and renamed, so that its existence is its completion; the
latest one is found by its number. Weights and optimizer state are safetensors; nothing is a pickle. Used by loops
that are ours (``pretrain_tiny``); the TRL trainers write their own folders, which :func:`mark_complete` seals the
same way: a marker, written last, that names every file's digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core.atomic import (
    make_folder,
    remove_tree,
    storage_errors,
    sync_file,
    sync_folder,
    unique_name,
    write_atomic,
)
from posttrain.core.canonical import canonical_json, digest_file

if TYPE_CHECKING:
    import torch

_STEP_FOLDER = re.compile(r"step-(\d{8})")
_TRAINER_FOLDER = re.compile(r"checkpoint-(\d+)")
MARKER = "complete.json"


def save(
    workdir: Path,
    step: int,
    *,
    model: torch.nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    rows: list[dict[str, Any]],
) -> None:
    """Write the state after ``step``; older checkpoints are removed once it stands."""
    from safetensors.torch import save_file

    with storage_errors(workdir):
        make_folder(workdir)
        staging = workdir / f"tmp-{unique_name()}"
        staging.mkdir()
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, staging / "model.safetensors")
        for name, optimizer in optimizers.items():
            tensors, plain = _split_state(optimizer.state_dict())
            save_file(tensors, staging / f"{name}.safetensors")
            (staging / f"{name}.json").write_bytes(canonical_json(plain))
        (staging / "rows.json").write_bytes(canonical_json(rows))
        for path in staging.iterdir():
            sync_file(path)
        sync_folder(staging)
        staging.rename(workdir / f"step-{step:08d}")
        sync_folder(workdir)
    for path in workdir.iterdir():
        match = _STEP_FOLDER.fullmatch(path.name)
        if path.name.startswith("tmp-") or (match and int(match[1]) < step):
            remove_tree(path)


def load_latest(
    workdir: Path,
    *,
    model: torch.nn.Module,
    optimizers: Mapping[str, torch.optim.Optimizer],
    rows: list[dict[str, Any]],
) -> int:
    """Restore the newest checkpoint into the arguments. Returns its step, 0 where there is none."""
    from safetensors.torch import load_file

    steps = [int(m[1]) for p in workdir.glob("step-*") if (m := _STEP_FOLDER.fullmatch(p.name))]
    if not steps:
        return 0
    folder = workdir / f"step-{max(steps):08d}"
    model.load_state_dict(load_file(folder / "model.safetensors"))
    for name, optimizer in optimizers.items():
        plain = json.loads((folder / f"{name}.json").read_bytes())
        optimizer.load_state_dict(_join_state(load_file(folder / f"{name}.safetensors"), plain))
    rows[:] = json.loads((folder / "rows.json").read_bytes())
    return max(steps)


def _split_state(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors (``parameter/name``) and everything else."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            tensors[f"{parameter}/{name}"] = torch.as_tensor(value).contiguous()
    return tensors, {"param_groups": state["param_groups"]}


def _join_state(tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        parameter, name = key.split("/", 1)
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": plain["param_groups"]}


def mark_complete(folder: Path) -> None:
    """Seal a checkpoint folder that a trainer wrote: sync every file, then write the marker with their digests."""
    with storage_errors(folder):
        digests = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                sync_file(path)
                digests[path.relative_to(folder).as_posix()] = digest_file(path)
        sync_folder(folder)
        write_atomic(folder / MARKER, canonical_json({"files": digests}))


def latest_complete(folder: Path) -> Path | None:
    """The newest sealed and intact ``checkpoint-N`` below ``folder``; unsealed or damaged ones are removed."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        match = _TRAINER_FOLDER.fullmatch(path.name)
        if match and _is_intact(path):
            found.append((int(match[1]), path))
        elif match:
            remove_tree(path)
    return max(found)[1] if found else None


def _is_intact(folder: Path) -> bool:
    try:
        files = json.loads((folder / MARKER).read_bytes())["files"]
        return all(digest_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False
