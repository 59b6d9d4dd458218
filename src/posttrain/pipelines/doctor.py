"""What works on this machine: Python, packages, engines, devices, the home; and what to install for the rest.

Here: ``examine``. Not here: checking every stored byte (``artifacts.verify_home``). Engines are tried in a
process of their own, so one that is missing, broken or crashes on import is a line in the answer. To add a
check: one function that returns ``Check`` records, called in ``examine``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

import posttrain
from posttrain.artifacts.stage import StageSpec
from posttrain.core.errors import PosttrainError
from posttrain.core.settings import Settings, usable_cores
from posttrain.pipelines.plan import existing_home
from posttrain.pipelines.recipe import shipped_recipes
from posttrain.pipelines.registry import STAGES
from posttrain.pipelines.show import list_recipes
from posttrain.serving.gateway.compiled import folder_in_use

CheckStatus: TypeAlias = Literal["ok", "absent", "warning", "failed"]
"""``absent``: not installed and not needed for what is; ``failed`` makes the command exit with 1."""

_MIN_PYTHON = (3, 11)
_PROBE_SECONDS = 120
_LOW_DISK_BYTES = 2 * 1024**3
_EXTRAS = ("train", "gguf", "serve", "sign", "postgres", "compile")

_TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else []
mps = bool(getattr(torch.backends, "mps", None)) and torch.backends.mps.is_available()
facts = {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": names, "mps": mps}
print(json.dumps(facts))
"""
_IMPORT_PROBE = "import json, {module}; print(json.dumps({{}}))"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    group: Literal["base", "extras", "engines", "devices", "home"]
    name: str
    status: CheckStatus
    detail: str
    """What was found."""
    hint: str | None = None
    """What to type, where something is missing or wrong."""


def examine(settings: Settings, *, stages: Mapping[str, StageSpec] = STAGES) -> list[Check]:
    """Look at everything; takes seconds, since engines are really imported. Creates nothing."""
    torch, found = _probe_torch()
    return [*_base(stages), *_extras(), *_engines(torch), *_devices(torch, found), *_home(settings)]


def _base(stages: Mapping[str, StageSpec]) -> list[Check]:
    version = platform.python_version()
    python_ok = sys.version_info[:2] >= _MIN_PYTHON
    wanted = ".".join(map(str, _MIN_PYTHON))
    checks = [
        Check("base", "posttrain", "ok", posttrain.__version__),
        Check(
            "base",
            "python",
            "ok" if python_ok else "failed",
            f"{version} ({sys.executable})",
            None if python_ok else f"use Python {wanted} or later",
        ),
    ]
    broken = [recipe for recipe in list_recipes(stages=stages) if recipe["error"]]
    checks += [Check("base", f"recipe {recipe['name']}", "failed", recipe["error"]) for recipe in broken]
    if not broken:
        checks.append(Check("base", "recipes", "ok", ", ".join(shipped_recipes()) or "none"))
    return checks


def _extras() -> list[Check]:
    """Each extra with the versions of its packages, read from the installed metadata of posttrain."""
    checks = []
    for extra in _EXTRAS:
        installed, missing = [], []
        for name in _requirements_of(extra):
            try:
                installed.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                missing.append(name)
        status: CheckStatus = "ok" if not missing else "absent"
        detail = ", ".join(installed) if not missing else f"missing: {', '.join(missing)}"
        checks.append(
            Check("extras", extra, status, detail, f"pip install 'posttrain[{extra}]'" if missing else None)
        )
    compiled = folder_in_use() is not None
    checks.append(
        Check(
            "extras",
            "gateway workers",
            "ok",
            "compiled" if compiled else "interpreted (`posttrain compile` spares a third of their time)",
        )
    )
    return checks


def _requirements_of(extra: str) -> list[str]:
    names = []
    for requirement in metadata.requires("posttrain") or []:
        text, _, marker = requirement.partition(";")
        if marker.replace('"', "'").replace(" ", "").find(f"extra=='{extra}'") >= 0:
            name = text.strip()
            for stop in "[<>=!~ (":
                name = name.partition(stop)[0]
            names.append(name)
    return names


def _probe_torch() -> tuple[Check, dict[str, Any]]:
    result, found = _probe(_TORCH_PROBE)
    if result is None:
        return Check("engines", "torch", "ok", f"{found['version']}, {found['threads']} threads"), found
    return _unusable("torch", "train", result), {}


def _engines(torch: Check) -> list[Check]:
    checks = [torch]
    for name, module, extra in (
        ("transformers", "transformers", "train"),
        ("trl", "trl", "train"),
        ("llama.cpp", "xllamacpp", "gguf"),
    ):
        result, _ = _probe(_IMPORT_PROBE.format(module=module))
        checks.append(
            Check("engines", name, "ok", f"{module} {_version_of(module)}")
            if result is None
            else _unusable(name, extra, result)
        )
    return checks


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(version unknown)"


def _unusable(name: str, extra: str, problem: str) -> Check:
    absent = problem.startswith("ModuleNotFoundError")
    if absent:
        return Check("engines", name, "absent", "not installed", f"pip install 'posttrain[{extra}]'")
    return Check("engines", name, "failed", problem, f"pip install --force-reinstall 'posttrain[{extra}]'")


def _probe(code: str) -> tuple[str | None, dict[str, Any]]:
    """Run ``code`` in a fresh interpreter: (None, the JSON of its last line), or (what went wrong in one
    line, {})."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"did not load within {_PROBE_SECONDS} s", {}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode != 0:
        return lines[-1] if lines else f"ended with code {done.returncode}", {}
    return None, json.loads(lines[-1])


def _devices(torch: Check, found: dict[str, Any]) -> list[Check]:
    cores = f"{usable_cores()} cores usable, {platform.machine()}"
    checks = [Check("devices", "cpu", "ok", cores)]
    if torch.status == "ok":
        cuda = found["cuda"]
        checks.append(Check("devices", "cuda", "ok" if cuda else "absent", ", ".join(cuda) or "none"))
        checks.append(
            Check("devices", "mps", "ok" if found["mps"] else "absent", "usable" if found["mps"] else "none")
        )
    return checks


def _home(settings: Settings) -> list[Check]:
    where = str(settings.home)
    try:
        home = existing_home(settings)
        if home is None:
            checks = [Check("home", "store", "absent", f"{where} does not exist yet; the first run makes it")]
        else:
            count = sum(1 for _ in home.store.digests())
            checks = [Check("home", "store", "ok", f"{where}, {count} artifacts")]
            problems = home.registry.verify_journal()
            detail = problems[0].what if problems else home.registry.database.shown()
            checks.append(Check("home", "registry", "failed" if problems else "ok", detail))
    except PosttrainError as error:
        return [Check("home", "store", "failed", error.message, error.hint)]
    free = shutil.disk_usage(_nearest_folder(settings.home)).free
    low = free < _LOW_DISK_BYTES
    checks.append(
        Check(
            "home",
            "disk",
            "warning" if low else "ok",
            f"{free / 1024**3:.1f} GiB free",
            "free some space, or set POSTTRAIN_HOME to a larger disk" if low else None,
        )
    )
    return checks


def _nearest_folder(path: Path) -> Path:
    while not path.is_dir():
        path = path.parent
    return path
