"""verify: derive everything again and compare.

Here: the store's digests, the registry's journal chain, names that name nothing. Not here: statements of releases
about their pieces (``releases.verify``). Nothing is changed and nothing is repaired. To add a check: one function that
yields Problems, called from ``verify_home``.

Covered: objects and manifests that rotted, were changed, cut or removed; a journal with an entry changed,
removed or inserted before its last one; dangling refs, releases, run outputs and index rows. Not covered: the
removal of the journal's newest entries together with its triggers (keep the head digest elsewhere to see
that), and ancestors that the garbage collector has removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from posttrain.artifacts.records import Problem
from posttrain.core.canonical import digest_file, is_digest, short
from posttrain.core.errors import CorruptArtifactError, MissingArtifactError, NewerStoreError

if TYPE_CHECKING:
    from posttrain.artifacts.home import Home
    from posttrain.artifacts.store import ArtifactStore, VerifyProgress


def verify_home(home: Home, progress: VerifyProgress | None = None) -> list[Problem]:
    """Derive every digest and the journal's chain again, and look for names that name nothing."""
    problems = verify_store(home.store, progress=progress)
    registry = home.registry
    problems += [Problem("", "registry", what) for what in registry.database.integrity_problems()]
    problems += registry.verify_journal()
    # A mirror may still have what is not here; whoever asks for it fetches it.
    if home.store.mirror_url is None:
        problems += _dangling(home)
    return problems


def _dangling(home: Home) -> Iterator[Problem]:
    present = set(home.store.digests())
    registry = home.registry
    names = [(f"refs/{name}", digest) for name, digest in registry.refs().items()]
    names += [(f"releases/{r.lane}/{r.position}", r.digest) for r in registry.releases()]
    for run in registry.runs():
        for stage in registry.run_stages(run.id):
            for what, digests in (("inputs", stage.inputs), ("outputs", stage.outputs)):
                names += [(f"runs/{run.id}/{stage.name}/{what}/{n}", digest) for n, digest in digests.items()]
    names += [(f"stages/{short(key)}/{name}", digest) for key, name, digest in registry.finished_outputs()]
    # A registry that several homes share also indexes what only the others hold.
    if home.settings.registry_url is None:
        names += [("index", artifact.digest) for artifact in registry.artifacts()]
    for where, digest in names:
        if digest not in present:
            yield Problem(digest, where, "names an artifact that is not in the store")


def verify_store(
    store: ArtifactStore, digest: str | None = None, progress: VerifyProgress | None = None
) -> list[Problem]:
    """Hash every object and every manifest again (or those of one artifact); what is wrong, in the order
    found."""
    with store.shared():
        manifests = list(store.digests()) if digest is None else [digest]
        problems: list[Problem] = []
        artifacts = []
        for name in manifests:
            if not is_digest(name):
                problems.append(Problem("", f"manifests/{name}", "is not the name of a manifest"))
                continue
            try:
                artifacts.append((name, store.read_manifest(name)))
            except (CorruptArtifactError, MissingArtifactError, NewerStoreError) as error:
                problems.append(Problem(name, "manifest", error.message))
            for damaged in store.read_provenance(name)[1]:
                problems.append(Problem(name, f"provenance/{damaged}", "does not match its digest"))
        named = {entry.digest for _, artifact in artifacts for entry in artifact.files}
        everything = sorted(named | (set(store.objects()) if digest is None else set()))
        sizes: dict[str, int | str] = {}
        for index, name in enumerate(everything):
            sizes[name] = _check_object(store, name)
            if progress is not None:
                progress(index + 1, len(everything))
        for name, artifact in artifacts:
            for entry in artifact.files:
                found = sizes[entry.digest]
                if isinstance(found, str):
                    problems.append(Problem(name, entry.path, found))
                elif found != entry.size_bytes:
                    what = f"has {found} bytes, the manifest says {entry.size_bytes}"
                    problems.append(Problem(name, entry.path, what))
        problems.extend(_unnamed(everything, named, sizes))
    return problems


def _unnamed(everything: list[str], named: set[str], sizes: dict[str, int | str]) -> Iterator[Problem]:
    for name in everything:
        found = sizes[name]
        if name not in named and isinstance(found, str):
            yield Problem("", f"objects/{name.removeprefix('sha256:')}", f"{found}; no artifact names it")


def _check_object(store: ArtifactStore, digest: str) -> int | str:
    """The object's size when it is sound, else what is wrong with it."""
    if not is_digest(digest):
        return "is not the name of an object"
    path = store.object_path(digest)
    try:
        actual = digest_file(path)
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return size_bytes if actual == digest else "does not match its digest"
