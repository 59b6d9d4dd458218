"""Releases by name, and the lanes that they take.

Here: finding a release by what a person types, listing, publishing by compare-and-set. Not here: making one
(``create``), checking one (``verify``), whether it *may* be published (the gate and the rollout decide that).

A name is the ref ``release/NAME``; it is set once and never moved. A lane's history only grows: going back to an
earlier release is one more entry, and the journal has a line for each, written in the same transaction, and one for
each that was refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from posttrain.artifacts.errors import ConflictError, ReleaseError
from posttrain.artifacts.home import Home, resolve
from posttrain.artifacts.records import Artifact, Release
from posttrain.core.canonical import is_digest, short
from posttrain.core.errors import (
    CorruptArtifactError,
    DataError,
    MissingArtifactError,
    UnknownReferenceError,
    UsageError,
)
from posttrain.core.suggest import did_you_mean
from posttrain.releases.records import RELEASE_FILE, RELEASE_KIND, ReleaseManifest

LANES = ("dev", "staging", "production")
NOTHING: Final = "nothing"
"""What ``expect`` says where no release holds the lane yet."""
_PREFIX = "release/"


@dataclass(frozen=True, slots=True)
class ListedRelease:
    """One line of ``posttrain release list``."""

    name: str
    digest: str
    created_at: str | None
    """When it was first kept here, RFC 3339, UTC; None where the journal does not say."""
    outcome: str | None
    """What the gate said; None where no decision goes with it, or its manifest cannot be read."""
    holds: tuple[str, ...]
    """Lanes that it holds now."""
    held: tuple[str, ...]
    """Lanes that it held before."""
    problem: str | None = None
    """Why its manifest cannot be read."""


def release_ref(name: str) -> str:
    """The ref of a release's name."""
    return f"{_PREFIX}{name}"


def release_digest(home: Home, reference: str) -> str:
    """The digest that a person means by ``v1.3``, a lane's name, a digest or its first digits.

    Its artifact need not be here or whole. Raises UnknownReferenceError.
    """
    if is_digest(reference):
        return reference
    if (named := home.registry.ref(release_ref(reference))) is not None:
        return named
    if reference in LANES:
        if (held := home.registry.current_release(reference)) is None:
            raise UnknownReferenceError(
                f"no release holds the lane {reference}", hint="`posttrain release publish` gives it to one"
            )
        return held.digest
    try:
        return resolve(home, reference).digest
    except UnknownReferenceError as error:
        names = [ref.removeprefix(_PREFIX) for ref in home.registry.refs() if ref.startswith(_PREFIX)]
        raise UnknownReferenceError(
            f"{reference!r} names no release: {error.message}", hint=did_you_mean(reference, names)
        ) from error


def find_release(home: Home, reference: str) -> Artifact:
    """The artifact of a release. Raises UnknownReferenceError, MissingArtifactError, CorruptArtifactError."""
    artifact = home.store.get(release_digest(home, reference))
    if artifact.kind != RELEASE_KIND:
        raise UnknownReferenceError(
            f"{reference!r} is a {artifact.kind}, not a release",
            hint="`posttrain release create --model` makes one of it",
        )
    return artifact


def read_release(home: Home, artifact: Artifact) -> ReleaseManifest:
    """The manifest in a release's artifact, its bytes hashed first. Raises ReleaseError or the store's errors."""
    try:
        return ReleaseManifest.from_json(home.store.read_bytes(artifact, RELEASE_FILE))
    except (DataError, KeyError) as error:
        raise ReleaseError(
            f"release {short(artifact.digest)}: {RELEASE_FILE} is no manifest: {error}"
        ) from error


def list_releases(home: Home) -> list[ListedRelease]:
    """Every named release, the newest first, and those that hold or held a lane without a name."""
    created = {entry.subject: entry.at for entry in home.registry.journal(action="release.created")}
    names = {
        digest: ref.removeprefix(_PREFIX)
        for ref, digest in home.registry.refs().items()
        if ref.startswith(_PREFIX)
    }
    history = home.registry.releases()
    current = {entry.lane: entry.digest for entry in history}  # the last of each lane counts
    digests = {*names, *(entry.digest for entry in history)}

    def line(digest: str) -> ListedRelease:
        lanes = list(dict.fromkeys(entry.lane for entry in history if entry.digest == digest))
        outcome, problem = None, None
        try:
            artifact = home.store.get(digest)
            if (
                artifact.kind == RELEASE_KIND
                and (decision := read_release(home, artifact).decision) is not None
            ):
                outcome = decision.outcome
        except (MissingArtifactError, CorruptArtifactError, ReleaseError) as error:
            problem = error.message
        return ListedRelease(
            name=names.get(digest, short(digest)),
            digest=digest,
            created_at=created.get(digest),
            outcome=outcome,
            holds=tuple(lane for lane in lanes if current[lane] == digest),
            held=tuple(lane for lane in lanes if current[lane] != digest),
            problem=problem,
        )

    return sorted(map(line, digests), key=lambda one: (one.created_at or "", one.name), reverse=True)


def publish_release(
    home: Home,
    reference: str,
    lane: str,
    *,
    expect: str | None = None,
    actor: str = "posttrain",
    public_key: Path | None = None,
    require_signature: bool = False,
) -> Release:
    """Give ``lane`` to a release, after every digest of every piece was derived again.

    ``expect`` is the release that must hold the lane now, or ``nothing``; without it, whatever holds it when this
    starts. A release that holds the lane already is verified and left there. Raises ReleaseError for a piece that is
    not as it was, ConflictError where somebody was faster; both are in the journal as ``release.refused``.
    """
    from posttrain.releases.verify import refusal, verify_release

    if lane not in LANES:
        raise UsageError(f"{lane!r} is no lane", hint=did_you_mean(lane, LANES))
    digest = release_digest(home, reference)
    head = home.registry.current_release(lane)
    if expect is None:
        expected = None if head is None else head.digest
    else:
        expected = None if expect == NOTHING else release_digest(home, expect)
    problems = verify_release(home, digest, public_key=public_key, require_signature=require_signature)
    try:
        if problems:
            raise refusal(reference, problems)
        if head is not None and head.digest == digest == expected:
            return head
        name = read_release(home, find_release(home, digest)).name
        return home.registry.publish_release(lane, digest, expected, actor=actor, data={"name": name})
    except (ReleaseError, ConflictError) as error:
        facts = {"release": digest, "expected": expected, "why": error.message}
        home.registry.append_journal(actor, "release.refused", lane, facts)
        raise
