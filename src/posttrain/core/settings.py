"""Where things live and how many threads to use, from the environment.

Settings are about *this machine*; what decides a result is in the recipe. Each field names its variable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from posttrain.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Settings:
    """One machine's settings."""

    home: Path
    """Store, registry, runs and work folders. ``POSTTRAIN_HOME``; default ``.posttrain`` in the current folder."""
    registry_url: str | None = None
    """SQLAlchemy URL of the registry. ``POSTTRAIN_REGISTRY``; default SQLite inside ``home``."""
    mirror_url: str | None = None
    """fsspec URL of a second home of every artifact. ``POSTTRAIN_MIRROR``; default none."""
    threads: int = 2
    """Torch threads of a training process. ``POSTTRAIN_THREADS``; default the usable cores, at most 8."""

    @classmethod
    def from_environment(cls, home: Path | None = None) -> Settings:
        """Read the environment; ``home`` overrides ``POSTTRAIN_HOME``."""
        raw_threads = os.environ.get("POSTTRAIN_THREADS", "")
        if raw_threads and not (raw_threads.isdecimal() and int(raw_threads) > 0):
            raise UsageError(f"POSTTRAIN_THREADS is {raw_threads!r}", hint="set it to a whole number above 0")
        return cls(
            home=(home or Path(os.environ.get("POSTTRAIN_HOME") or ".posttrain")).absolute(),
            registry_url=os.environ.get("POSTTRAIN_REGISTRY") or None,
            mirror_url=os.environ.get("POSTTRAIN_MIRROR") or None,
            threads=int(raw_threads) if raw_threads else min(8, usable_cores()),
        )


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
