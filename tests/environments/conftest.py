"""Sandboxes for tests, one for each backend that works here, and a small suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.environments.sandbox import BACKENDS, Sandbox, SandboxConfig, why_not
from posttrain.environments.suites.build import build_from_slices
from posttrain.environments.suites.files import parse_suite, write_suite
from posttrain.environments.suites.suite import Suite
from tests.environments.world import SETTINGS, small_slices

SMALL = {"wall_seconds": 20, "cpu_seconds": 10, "memory_mib": 64, "folder_mib": 4, "file_mib": 2, "files": 64}


@pytest.fixture(scope="session", params=BACKENDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox with small limits. At least one backend has to work wherever tests run."""
    if reason := why_not(request.param):
        if all(why_not(backend) for backend in BACKENDS):
            pytest.fail(f"no backend can isolate here: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    with Sandbox(SandboxConfig.model_validate({"backend": request.param, **SMALL})) as ready:
        yield ready


@pytest.fixture
def files() -> dict[str, bytes]:
    """The small suite's files."""
    return build_from_slices(
        SETTINGS,
        small_slices(),
        code={"graders.py": "sha256:" + "0" * 64},
        prompts={"system": "Be brief."},
    )


@pytest.fixture
def suite(files: dict[str, bytes]) -> Suite:
    return parse_suite(files)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Writes files as a suite's folder."""

    def writing(files: dict[str, bytes], name: str = "suite") -> Path:
        write_suite(tmp_path / name, files)
        return tmp_path / name

    return writing
