"""A release as one folder, which needs no store: to hand over, to keep elsewhere, to serve on another machine.

Here: writing the folder and checking one. Not here: the checks themselves (``verify``).

    DIR/release/manifest.json      the release's artifact manifest: its sha256 is the release's digest
    DIR/files/                     the release's own files: release.json, contract, recipe…
    DIR/artifacts/HEX/manifest.json and files/…    each artifact that a piece is in
    DIR/signatures/KEY.sig         signatures over release/manifest.json

Left out: what the pieces were made from, and the parent release.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from posttrain.artifacts.errors import ReleaseError
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact, Problem
from posttrain.core.atomic import make_folder, remove_tree, storage_errors, sync_folder, unique_name
from posttrain.core.canonical import canonical_json, digest_bytes, short
from posttrain.core.errors import DataError, UnknownReferenceError, UsageError
from posttrain.releases.lanes import find_release
from posttrain.releases.records import RELEASE_FILE, ReleaseManifest
from posttrain.releases.signing import key_names, stored_signatures
from posttrain.releases.sources import (
    ARTIFACTS_FOLDER,
    FILES_FOLDER,
    MANIFEST_FILE,
    RELEASE_FOLDER,
    SIGNATURES_FOLDER,
    FolderSource,
    VerificationCache,
    files_place,
    manifest_place,
)
from posttrain.releases.verify import (
    Check,
    check_release,
    refusal,
    verify_release,
)


def export_release(home: Home, reference: str, folder: Path) -> Path:
    """Write a release and its pieces into the new folder ``folder``, whole or not at all.

    Everything is verified in the store before and in the folder after. Raises UsageError where ``folder`` is there
    already, ReleaseError, StorageFullError.
    """
    release = find_release(home, reference)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", hint="name a new folder")
    if problems := verify_release(home, release.digest):
        raise refusal(reference, problems)
    needed = {release.digest: release}
    for name, digest in release.inputs.items():
        if name != "parent":
            needed[digest] = home.store.get(digest)
    target = folder.absolute()
    make_folder(target.parent)
    staging = target.parent / f".{target.name}.{unique_name()}"
    with storage_errors(target.parent):
        try:
            for artifact in needed.values():
                _write_artifact(home, artifact, staging, release.digest)
            signatures = stored_signatures(home, release.digest)
            for name, bundle in zip(key_names(signatures), signatures, strict=True):
                place = staging / SIGNATURES_FOLDER / f"{name[:16]}.sig"
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(bundle)
            if problems := verify_exported(staging):
                raise refusal(reference, problems)
            if target.is_dir():
                target.rmdir()
            staging.rename(target)
        finally:
            remove_tree(staging)
    sync_folder(target.parent)
    return target


def is_export(folder: Path) -> bool:
    """Whether ``folder`` looks like an exported release."""
    return (folder / RELEASE_FOLDER / MANIFEST_FILE).is_file()


def exported_digest(folder: Path) -> str:
    """The digest of the release in an exported folder. Raises UnknownReferenceError."""
    try:
        return digest_bytes((folder / RELEASE_FOLDER / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise UnknownReferenceError(
            f"{folder} is no exported release: {RELEASE_FOLDER}/{MANIFEST_FILE} is missing",
            hint="`posttrain release export` writes one",
        ) from error


def read_exported(folder: Path) -> ReleaseManifest:
    """The manifest in an exported folder, hashed first. Raises ReleaseError, UnknownReferenceError, StoreError."""
    digest = exported_digest(folder)
    source = FolderSource(folder, digest)
    release = source.artifact(digest)
    entries = {entry.path: entry for entry in release.files}
    try:
        raw = source.path(release, entries[RELEASE_FILE]).read_bytes()
        if digest_bytes(raw) != entries[RELEASE_FILE].digest:
            raise ReleaseError(f"{folder}: {RELEASE_FILE} does not match its digest")
        return ReleaseManifest.from_json(raw)
    except (OSError, KeyError, DataError) as error:
        if isinstance(error, ReleaseError):
            raise
        raise ReleaseError(f"{folder}: {RELEASE_FILE} is no manifest: {error}") from error


def verify_exported(
    folder: Path,
    *,
    expected: str | None = None,
    public_key: Path | None = None,
    require_signature: bool = False,
) -> list[Problem]:
    """Derive every digest in an exported folder again; what is wrong, and nothing where all is well.

    A folder proves only that it is whole. That it is the release that you mean is told by ``expected`` (a digest that
    you know from elsewhere) or by a signature. A file that belongs to no piece is a problem, too.
    """
    digest = exported_digest(folder)
    if expected is not None and digest != expected:
        return [Problem(digest, "manifest", f"is release {short(digest)}, expected was {short(expected)}")]
    signatures = [path.read_bytes() for path in sorted((folder / SIGNATURES_FOLDER).glob("*.sig"))]
    source = FolderSource(folder, digest)
    check = Check(public_key, require_signature, deep=True, cache=VerificationCache())
    problems = check_release(source, digest, check, signatures)
    return problems or list(_strangers(folder, source, digest))


def _write_artifact(home: Home, artifact: Artifact, staging: Path, release: str) -> None:
    manifest = manifest_place(staging, artifact.digest, release)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_bytes(canonical_json(artifact.manifest()))
    for entry in artifact.files:
        target = files_place(staging, artifact.digest, release) / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        # Copied and not linked: a write to the folder must not reach the store.
        shutil.copyfile(home.store.file(artifact, entry.path), target)


def _strangers(folder: Path, source: FolderSource, digest: str) -> Iterator[Problem]:
    release = source.artifact(digest)
    known = set()
    for artifact in (
        release,
        *(source.artifact(d) for name, d in release.inputs.items() if name != "parent"),
    ):
        known.add(manifest_place(folder, artifact.digest, digest))
        place = files_place(folder, artifact.digest, digest)
        known |= {place / entry.path for entry in artifact.files}
    for top in (RELEASE_FOLDER, FILES_FOLDER, ARTIFACTS_FOLDER):
        for path in sorted((folder / top).rglob("*")):
            if path not in known and not path.is_dir():
                yield Problem(
                    digest, path.relative_to(folder).as_posix(), "belongs to no piece of the release"
                )
