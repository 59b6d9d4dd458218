"""artifacts: what was made, from what, and where its bytes are.

The content-addressed store, its registry (SQLite or PostgreSQL), lineage, runs, refs, the journal, garbage
collection and verification; releases are in ``artifacts.releases``. Imports only ``core``. Names are resolved when
first used: no database driver loads before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.core.lazy import lazy_names

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
    "Database",
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
    "RunStatus",
    "Schema",
    "StageConfig",
    "StageContext",
    "StageResult",
    "StageSpec",
    "StopRequest",
    "VerifyProgress",
    "collect_garbage",
    "new_run_id",
    "open_home",
    "parse_canonical",
    "parse_manifest",
    "refuse_pickle_content",
    "refuse_pickle_names",
    "reindex_home",
    "resolve",
    "verify_home",
]

_HOMES = {
    "database": ("Database", "Schema"),
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
        "RunStatus",
        "parse_canonical",
    ),
    "registry": ("Registry", "new_run_id"),
    "stage": ("StageConfig", "StageContext", "StageResult", "StageSpec", "StopRequest"),
    "store": ("ArtifactStore", "VerifyProgress", "parse_manifest"),
    "verify": ("verify_home",),
    "weights": ("refuse_pickle_content", "refuse_pickle_names"),
    "writer": ("ArtifactWriter",),
}


__getattr__ = lazy_names(__name__, _HOMES)
