"""Signatures on releases: made with a private key, checked with the public one, nothing asked of any network.

Here: signing and checking through the library ``model-signing`` (OpenSSF; ``pip install 'posttrain[sign]'``), in its
elliptic-curve key mode. Not here: keyless signing, which needs sigstore's servers; whether a signature is required
(the caller's policy).

What is signed is one file, ``manifest.json``: the release's artifact manifest, whose ``sha256:`` is the release's
digest and which names every piece. So a signature covers every byte of every piece through its digest, as long as
those are derived again, which ``verify`` does. The folder ``release`` of an export holds that one file, and
``model_signing verify key release --signature … --public_key …`` checks it without posttrain.

A signature is an artifact of kind ``signature`` whose input is the release, under the ref
``signature/RELEASE/KEY``. Beside and not inside, since a release's digest must not change when somebody signs it, and
several people may. An artifact and not a row, so that ``verify`` hashes it, ``gc`` keeps it (and through it the
release) and a mirror can carry it. Somebody who can write to the store can also remove a signature: only
``require_signature`` makes that a refusal.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import json
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact
from posttrain.core.canonical import canonical_json
from posttrain.core.errors import MissingDependencyError, StoreError, UsageError
from posttrain.releases.lanes import find_release
from posttrain.releases.sources import MANIFEST_FILE, RELEASE_FOLDER

SIGNATURE_KIND = "signature"
SIGNATURE_FILE = "release.sig"
"""A sigstore bundle, as ``model-signing`` writes it."""
_KEY_DIGITS = 16


def sign_release(
    home: Home, reference: str, key: Path, *, password: str | None = None, actor: str = "posttrain"
) -> Artifact:
    """Sign a release with the elliptic-curve private key in the PEM file ``key``; the signature's artifact.

    Its pieces are verified first: nobody signs what is not there. Signing again with the same key replaces that key's
    signature. Raises ReleaseError, UsageError for a key that cannot be used, MissingDependencyError.
    """
    from posttrain.releases.verify import refusal, verify_release

    signing = _library("signing")
    release = find_release(home, reference)
    if problems := verify_release(home, release.digest):
        raise refusal(reference, problems)
    with tempfile.TemporaryDirectory() as scratch:
        folder, target = _signed_folder(Path(scratch), release), Path(scratch) / SIGNATURE_FILE
        try:
            signer = signing.Config().use_elliptic_key_signer(private_key=key, password=_encoded(password))
            signer.sign(folder, target)
        except (ValueError, TypeError, OSError, AttributeError) as error:
            raise UsageError(
                f"{key} cannot sign: {_first_line(error)}",
                hint="make a key: openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
            ) from error
        bundle = target.read_bytes()
    name = _key_name(bundle)
    inputs, meta = {"release": release.digest}, {"key": name}
    with home.store.writer(SIGNATURE_KIND, inputs=inputs, meta=meta) as writer:
        writer.add_bytes(SIGNATURE_FILE, bundle)
        artifact = writer.commit()
    home.registry.record(artifact)
    home.registry.set_ref(f"{_prefix(release.digest)}{name[:_KEY_DIGITS]}", artifact.digest)
    home.registry.append_journal(
        actor, "release.signed", release.digest, {"key": name, "signature": artifact.digest}
    )
    return artifact


def stored_signatures(home: Home, digest: str) -> list[bytes]:
    """The signatures of a release that this home knows. One that is damaged or gone is as if it were not there."""
    found = []
    for ref, signature in home.registry.refs().items():
        if ref.startswith(_prefix(digest)):
            with contextlib.suppress(StoreError, KeyError):
                found.append(home.store.read_bytes(home.store.get(signature), SIGNATURE_FILE))
    return found


def key_names(signatures: list[bytes]) -> list[str]:
    """Of each signature the SHA-256 of its public key (PEM), in hex; ``?`` where it does not say."""
    names = []
    for bundle in signatures:
        try:
            names.append(_key_name(bundle))
        except (ValueError, KeyError, TypeError):
            names.append("?")
    return names


def check_signatures(
    release: Artifact, signatures: list[bytes], public_key: Path, *, required: bool
) -> str | None:
    """What is wrong with the signatures of ``release`` by this key; None where all is well.

    A signature by this key that does not verify is wrong whether one is required or not. Raises UsageError for a file
    that is no public key, MissingDependencyError.
    """
    mine = public_key_name(public_key)
    by_key = [bundle for bundle, name in zip(signatures, key_names(signatures), strict=True) if name == mine]
    if not by_key:
        others = f"; {len(signatures)} by other keys" if signatures else ""
        return f"there is none by the key {mine[:_KEY_DIGITS]}{others}" if required else None
    for bundle in by_key:
        if (what := _refuted(release, bundle, public_key)) is not None:
            return f"by the key {mine[:_KEY_DIGITS]} does not verify: {what}"
    return None


def public_key_name(path: Path) -> str:
    """SHA-256 of a public key's PEM, as a signature says it. Raises UsageError, MissingDependencyError."""
    _library("verifying")
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, OSError, TypeError) as error:
        raise UsageError(
            f"{path} is no public key: {_first_line(error)}",
            hint="make it from the private key: openssl ec -in key.pem -pubout -out pub.pem",
        ) from error
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _refuted(release: Artifact, bundle: bytes, public_key: Path) -> str | None:
    """Why a signature does not hold; None where it does."""
    verifying = _library("verifying")
    with tempfile.TemporaryDirectory() as scratch:
        folder, path = _signed_folder(Path(scratch), release), Path(scratch) / SIGNATURE_FILE
        path.write_bytes(bundle)
        try:
            with contextlib.redirect_stdout(
                io.StringIO()
            ):  # the library prints a warning about old signatures
                verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(folder, path)
            signed = _signed_files(bundle)
        except Exception as error:  # a boundary: what the library raises for a broken bundle is not one class
            return _first_line(error)
    # The library compares what the signature lists; it must list this very file, and no more.
    wanted = {MANIFEST_FILE: release.digest.removeprefix("sha256:")}
    return None if signed == wanted else "it is a signature of something else"


def _signed_folder(scratch: Path, release: Artifact) -> Path:
    """A folder with the one file that is signed."""
    folder = scratch / RELEASE_FOLDER
    folder.mkdir()
    (folder / MANIFEST_FILE).write_bytes(canonical_json(release.manifest()))
    return folder


def _signed_files(bundle: bytes) -> dict[str, str]:
    """Name to SHA-256 of the files that a signature lists."""
    payload: Any = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    return {
        one["name"]: one["digest"] if one["algorithm"] == "sha256" else one["algorithm"]
        for one in payload["predicate"]["resources"]
    }


def _key_name(bundle: bytes) -> str:
    try:
        name = json.loads(bundle)["verificationMaterial"]["publicKey"]["hint"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"not a signature by a key: {error!r}") from error
    if not isinstance(name, str) or len(name) != 64:
        raise ValueError("the signature does not say by which key it is")
    return name


def _prefix(digest: str) -> str:
    return f"signature/{digest.removeprefix('sha256:')}/"


def _encoded(password: str | None) -> bytes | None:
    # The library hands it on as it is, to a function that wants bytes.
    return None if password is None else password.encode()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _library(module: str) -> ModuleType:
    """A module of ``model_signing``, loaded only where a signature is made or checked."""
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "signatures need the package model-signing", hint="pip install 'posttrain[sign]'"
        ) from error
