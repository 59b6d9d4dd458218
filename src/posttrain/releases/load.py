"""Loading a release: the folders that an engine reads, after every piece was verified.

Here: verify, then hand over paths. Not here: the checks (``verify``), any engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from posttrain.artifacts.errors import ReleaseError
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact, Problem
from posttrain.core.atomic import remove_tree
from posttrain.core.errors import StoreError
from posttrain.releases.lanes import find_release, read_release, release_digest
from posttrain.releases.records import (
    ArtifactPiece,
    ExternalPiece,
    FilesPiece,
    ReleaseManifest,
    is_served,
    pieces,
)
from posttrain.releases.sources import VerificationCache
from posttrain.releases.verify import WARM, Check, external_pieces, refusal, verify_release


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that passed."""

    name: str
    digest: str
    """Of its piece (``Piece.identity``)."""
    folder: Path
    files: Mapping[str, str]
    """Path below ``folder`` to digest, as the release has them."""


@dataclass(frozen=True, slots=True)
class LoadedRelease:
    """A release that passed, with the folders to load. They are read-only views of the store: do not write there."""

    digest: str
    manifest: ReleaseManifest
    base: Path | None
    """Folder of the base weights; None where they are external and that was allowed."""
    adapters: tuple[LoadedAdapter, ...]
    """In order; without those that are external."""
    tokenizer: Path | None
    """Folder with the tokenizer's files."""
    chat_template: Path | None
    """The file."""
    template_digest: str | None
    input_processing: Path | None
    """A file where the piece is one file, else a folder."""
    own_files: Path
    """Folder with the release's own files."""
    external: tuple[str, ...]
    """Pieces that could not be verified here: ``tools.search_api api:search@3.2.1``."""


def load_release(
    home: Home,
    reference: str,
    *,
    public_key: Path | None = None,
    require_signature: bool = False,
    deep: bool = True,
    cache: VerificationCache | None = None,
    allow_external: bool = False,
) -> LoadedRelease:
    """The folders of a release, every piece verified first. Raises ReleaseError that names the piece.

    What is missing here comes from the mirror where there is one. A base, adapter, tokenizer, template or input
    processing that is external is refused unless ``allow_external``: an engine that fetches it elsewhere then answers
    for it. For the other parameters see :func:`verify_release`.
    """
    digest = release_digest(home, reference)
    _bring(home, digest)
    problems = verify_release(
        home,
        digest,
        public_key=public_key,
        require_signature=require_signature,
        deep=deep,
        cache=cache,
    )
    if problems:
        raise refusal(reference, problems)
    artifact = find_release(home, digest)
    manifest = read_release(home, artifact)
    external = external_pieces(manifest)
    unverified = [line for line in external if is_served(line.partition(" ")[0])]
    if unverified and not allow_external:
        raise ReleaseError(
            f"release {manifest.name} is refused: {unverified[0]} is external and cannot be verified here",
            hint="import the model into the store and make a release of the artifact",
        )
    _renew_changed_views(home, artifact, manifest, Check(deep=deep, cache=cache or WARM))
    return _loaded(home, artifact, manifest, external)


def _bring(home: Home, digest: str) -> None:
    """Fetch from the mirror what is not here, and make the views, whose links would change the files' times later.

    What fails here is found again, and named, by the check.
    """
    with contextlib.suppress(StoreError):
        artifact = home.store.ensure(digest)
        home.store.view(artifact)
        for name, needed in artifact.inputs.items():
            if name != "parent":
                with contextlib.suppress(StoreError):
                    found = home.store.ensure(needed)
                    if is_served(name):
                        home.store.view(found)


def _loaded(home: Home, artifact: Artifact, manifest: ReleaseManifest, external: list[str]) -> LoadedRelease:
    def folder(piece: ArtifactPiece | FilesPiece | ExternalPiece | None) -> Path | None:
        if piece is None or isinstance(piece, ExternalPiece):
            return None
        if isinstance(piece, ArtifactPiece):
            return home.store.view(home.store.get(piece.digest))
        holder = artifact if piece.artifact is None else home.store.get(piece.artifact)
        return home.store.view(holder) / _common_folder(piece)

    def file_or_folder(piece: ArtifactPiece | FilesPiece | ExternalPiece | None) -> Path | None:
        found = folder(piece)
        inside = [] if found is None else list(found.iterdir())
        if found is not None and isinstance(piece, FilesPiece) and len(piece.files) == 1:
            return found / PurePosixPath(next(iter(piece.files))).name
        return inside[0] if len(inside) == 1 else found

    def files(piece: ArtifactPiece | FilesPiece) -> dict[str, str]:
        if isinstance(piece, ArtifactPiece):
            return {entry.path: entry.digest for entry in home.store.get(piece.digest).files}
        top = _common_folder(piece)
        return {
            PurePosixPath(path).relative_to(top).as_posix(): digest for path, digest in piece.files.items()
        }

    template = manifest.chat_template
    return LoadedRelease(
        digest=artifact.digest,
        manifest=manifest,
        base=folder(manifest.base),
        adapters=tuple(
            LoadedAdapter(adapter.name, adapter.piece.identity, path, files(adapter.piece))
            for adapter in manifest.adapters
            if not isinstance(adapter.piece, ExternalPiece) and (path := folder(adapter.piece)) is not None
        ),
        tokenizer=folder(manifest.tokenizer),
        chat_template=file_or_folder(template),
        template_digest=None if template is None else template.identity,
        input_processing=file_or_folder(manifest.input_processing),
        own_files=home.store.view(artifact),
        external=tuple(external),
    )


def _common_folder(piece: FilesPiece) -> PurePosixPath:
    """The deepest folder that holds all files of a piece."""
    parents = [PurePosixPath(path).parent.parts for path in piece.files]
    shared = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return PurePosixPath(*shared)


def _renew_changed_views(home: Home, release: Artifact, manifest: ReleaseManifest, check: Check) -> None:
    """A view holds the very files that were hashed, or copies of them where a file system has no hard links: hash
    those, and make a view anew from the verified files where one differs. Raises ReleaseError where it still does."""
    for field, piece in pieces(manifest):
        if not is_served(field) or isinstance(piece, ExternalPiece):
            continue
        digest = piece.digest if isinstance(piece, ArtifactPiece) else piece.artifact
        artifact = release if digest is None else home.store.get(digest)
        if _changed_file(home, artifact, check) is not None:
            remove_tree(home.store.view_path(artifact.digest))
            if (path := _changed_file(home, artifact, check)) is not None:
                what = "was changed in the view while it was made"
                raise refusal(manifest.name, [Problem(artifact.digest, f"{field}/{path}", what)])


def _changed_file(home: Home, artifact: Artifact, check: Check) -> str | None:
    """A file of the artifact's view that is not the artifact's."""
    view = home.store.view(artifact)
    for entry in artifact.files:
        path = view / entry.path
        if path.samefile(home.store.object_path(entry.digest)):
            continue
        if check.cache.digest_of(path, deep=check.deep) != entry.digest:
            return entry.path
    return None
