"""artifacts: what was made, from what, and where its bytes are.

The content-addressed store, its registry (SQLite or PostgreSQL), lineage, runs, refs, the journal, garbage
collection and verification; releases are in ``artifacts.releases``. Imports only ``core``. Names are resolved when
first used: no database driver loads before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.artifacts.errors import ConflictError, ReleaseError
    from posttrain.artifacts.gc import GcReport, collect_garbage
    from posttrain.artifacts.home import Home, ReindexReport, open_home, reindex_home, resolve
    from posttrain.artifacts.mirror import Mirror
    from posttrain.artifacts.records import (
        Artifact,
        FileEntry,
        JournalEntry,
        Problem,
        Producer,
        Release,
        RunRecord,
        RunStageRecord,
    )
    from posttrain.artifacts.registry import Registry, new_run_id
    from posttrain.artifacts.store import ArtifactStore
    from posttrain.artifacts.verify import verify_home
    from posttrain.artifacts.writer import ArtifactWriter

__all__ = [
    "Artifact",
    "ArtifactStore",
    "ArtifactWriter",
    "ConflictError",
    "FileEntry",
    "GcReport",
    "Home",
    "JournalEntry",
    "Mirror",
    "Problem",
    "Producer",
    "Registry",
    "ReindexReport",
    "Release",
    "ReleaseError",
    "RunRecord",
    "RunStageRecord",
    "collect_garbage",
    "new_run_id",
    "open_home",
    "reindex_home",
    "resolve",
    "verify_home",
]

_HOMES = {
    "errors": ("ConflictError", "ReleaseError"),
    "gc": ("GcReport", "collect_garbage"),
    "home": ("Home", "ReindexReport", "open_home", "reindex_home", "resolve"),
    "mirror": ("Mirror",),
    "records": (
        "Artifact",
        "FileEntry",
        "JournalEntry",
        "Problem",
        "Producer",
        "Release",
        "RunRecord",
        "RunStageRecord",
    ),
    "registry": ("Registry", "new_run_id"),
    "store": ("ArtifactStore",),
    "verify": ("verify_home",),
    "writer": ("ArtifactWriter",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
