"""Sandboxes for tests, one for each backend that works here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain.environments.sandbox import BACKENDS, Sandbox, SandboxConfig, why_not

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
