"""releases: everything that decides an answer under one digest, by name, on lanes, verified before it is served.

``records`` is the manifest, ``policies`` what is agreed beforehand, ``spec`` what a person writes, ``create`` and
``derive`` make one of the other, ``verify`` derives every digest again, ``load`` hands over the folders, ``lanes``
publishes by compare-and-set; ``signing``, ``diff``, ``export`` and ``checklist`` (the short form) do what they say.
Names are resolved when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.core.lazy import lazy_names

if TYPE_CHECKING:
    from posttrain.releases.checklist import from_checklist_json, to_checklist_json
    from posttrain.releases.create import create_release
    from posttrain.releases.diff import ReleaseDiff, diff_releases, render_diff
    from posttrain.releases.export import export_release, verify_exported
    from posttrain.releases.lanes import (
        ListedRelease,
        find_release,
        list_releases,
        publish_release,
        read_release,
    )
    from posttrain.releases.load import LoadedAdapter, LoadedRelease, load_release
    from posttrain.releases.policies import Limit, RollbackPolicy, SloPolicy, Trigger
    from posttrain.releases.records import ReleaseManifest
    from posttrain.releases.signing import sign_release
    from posttrain.releases.sources import VerificationCache
    from posttrain.releases.spec import ReleaseSpec, parse_spec, read_spec
    from posttrain.releases.verify import verify_release

__all__ = [
    "ArtifactPiece",
    "FilesPiece",
    "Limit",
    "ListedRelease",
    "LoadedAdapter",
    "LoadedRelease",
    "ReleaseDiff",
    "ReleaseManifest",
    "ReleaseSpec",
    "RollbackPolicy",
    "SloPolicy",
    "Trigger",
    "VerificationCache",
    "create_release",
    "diff_releases",
    "export_release",
    "exported_digest",
    "external_pieces",
    "find_release",
    "from_checklist_json",
    "is_export",
    "key_names",
    "list_releases",
    "load_release",
    "parse_spec",
    "pieces",
    "publish_release",
    "read_exported",
    "read_release",
    "read_spec",
    "read_yaml",
    "release_digest",
    "render_diff",
    "sign_release",
    "stored_signatures",
    "to_checklist_json",
    "verify_everything",
    "verify_exported",
    "verify_release",
]

_HOMES = {
    "checklist": ("from_checklist_json", "to_checklist_json"),
    "create": ("create_release",),
    "diff": ("ReleaseDiff", "diff_releases", "render_diff"),
    "export": ("export_release", "exported_digest", "is_export", "read_exported", "verify_exported"),
    "lanes": (
        "ListedRelease",
        "find_release",
        "list_releases",
        "publish_release",
        "read_release",
        "release_digest",
    ),
    "load": ("LoadedAdapter", "LoadedRelease", "load_release"),
    "policies": ("Limit", "RollbackPolicy", "SloPolicy", "Trigger"),
    "records": ("ArtifactPiece", "FilesPiece", "ReleaseManifest", "pieces"),
    "signing": ("key_names", "sign_release", "stored_signatures"),
    "sources": ("VerificationCache",),
    "spec": ("ReleaseSpec", "parse_spec", "read_spec", "read_yaml"),
    "verify": ("external_pieces", "verify_everything", "verify_release"),
}


__getattr__ = lazy_names(__name__, _HOMES)
