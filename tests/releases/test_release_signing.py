"""Signatures: real keys, the real library, no network; every tampering is seen."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.artifacts.errors import ReleaseError
from posttrain.artifacts.gc import collect_garbage
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact
from posttrain.core.errors import UsageError
from posttrain.releases.create import create_release
from posttrain.releases.export import export_release, verify_exported
from posttrain.releases.lanes import publish_release
from posttrain.releases.load import load_release
from posttrain.releases.signing import (
    SIGNATURE_FILE,
    SIGNATURE_KIND,
    key_names,
    public_key_name,
    sign_release,
    stored_signatures,
)
from posttrain.releases.verify import verify_release
from tests.releases.release_world import flip, keep, keep_model, keys, release_home

pytest.importorskip("model_signing", reason="needs posttrain[sign]")


@pytest.fixture
def home(fast_folder: Path) -> Home:
    return release_home(fast_folder / "home")


def _release(home: Home, seed: float = 1.0) -> Artifact:
    return create_release(home, {"name": f"v{seed:g}", "model": keep_model(home, seed).digest})


def _replace(home: Home, release: Artifact, bundle: bytes, key: str) -> None:
    """What somebody who can write to the store can do."""
    forged = keep(home, SIGNATURE_KIND, {SIGNATURE_FILE: bundle}, inputs={"release": release.digest})
    home.registry.set_ref(f"signature/{release.digest.removeprefix('sha256:')}/{key[:16]}", forged.digest)


def test_a_signature_is_made_and_checked(home: Home, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    release = _release(home)
    signature = sign_release(home, "v1", private, actor="ann")
    assert verify_release(home, "v1", public_key=public, require_signature=True) == []
    assert load_release(home, "v1", public_key=public, require_signature=True).digest == release.digest
    assert publish_release(home, "v1", "production", public_key=public, require_signature=True).position == 1
    assert signature.inputs == {"release": release.digest}
    assert key_names(stored_signatures(home, release.digest)) == [public_key_name(public)]
    entry = home.registry.journal(action="release.signed")[0]
    assert (entry.actor, entry.subject) == ("ann", release.digest)
    assert home.registry.ref("release/v1") == release.digest  # signing changes no release


def test_an_unsigned_release_is_refused_where_a_signature_is_required(home: Home, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    other, _ = keys(tmp_path, "other")
    _release(home)
    required = {"public_key": public, "require_signature": True}
    assert verify_release(home, "v1", public_key=public) == []
    assert [p.path for p in verify_release(home, "v1", **required)] == ["signature"]
    sign_release(home, "v1", other)
    assert verify_release(home, "v1", public_key=public) == []
    (problem,) = verify_release(home, "v1", public_key=public, require_signature=True)
    assert "1 by other keys" in problem.what
    with pytest.raises(ReleaseError, match="signature there is none by the key"):
        load_release(home, "v1", public_key=public, require_signature=True)
    with pytest.raises(ReleaseError, match="signature there is none by the key"):
        publish_release(home, "v1", "production", public_key=public, require_signature=True)
    sign_release(home, "v1", private)
    assert verify_release(home, "v1", public_key=public, require_signature=True) == []
    assert len(stored_signatures(home, home.registry.ref("release/v1") or "")) == 2
    with pytest.raises(UsageError, match="without the key"):
        verify_release(home, "v1", require_signature=True)


def test_every_changed_byte_of_a_signature_is_seen(home: Home, tmp_path: Path) -> None:
    """Every place of the bundle that carries meaning: payload, signature, key."""
    private, public = keys(tmp_path)
    release = _release(home)
    whole = home.store.read_bytes(sign_release(home, "v1", private), SIGNATURE_FILE)
    mine = public_key_name(public)
    bundle = json.loads(whole)
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    changes = []
    for position in range(0, len(payload), 97):
        changed = bytearray(payload)
        changed[position] ^= 1
        envelope = {**bundle["dsseEnvelope"], "payload": base64.b64encode(bytes(changed)).decode()}
        changes.append({**bundle, "dsseEnvelope": envelope})
    signed = bytearray(base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"]))
    for position in (5, len(signed) // 2, len(signed) - 1):
        changed = bytearray(signed)
        changed[position] ^= 1
        signature = {
            **bundle["dsseEnvelope"]["signatures"][0],
            "sig": base64.b64encode(bytes(changed)).decode(),
        }
        changes.append({**bundle, "dsseEnvelope": {**bundle["dsseEnvelope"], "signatures": [signature]}})
    changes.append({**bundle, "dsseEnvelope": {**bundle["dsseEnvelope"], "signatures": []}})
    for change in changes:
        _replace(home, release, json.dumps(change).encode(), mine)
        (problem,) = verify_release(home, "v1", public_key=public)
        assert problem.path == "signature" and "does not verify" in problem.what
    for broken in (b"", b"{}", b"\x00", whole[:-20]):
        _replace(home, release, broken, mine)
        (problem,) = verify_release(home, "v1", public_key=public, require_signature=True)
        assert problem.path == "signature"


def test_the_signature_of_another_release_does_not_do(home: Home, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    good, bad = _release(home, 1.0), _release(home, 2.0)
    bundle = home.store.read_bytes(sign_release(home, "v1", private), SIGNATURE_FILE)
    _replace(home, bad, bundle, public_key_name(public))
    assert verify_release(home, good.digest, public_key=public, require_signature=True) == []
    (problem,) = verify_release(home, "v2", public_key=public, require_signature=True)
    assert problem.path == "signature" and "does not verify" in problem.what


def test_a_signature_that_leaves_the_manifest_out_does_not_do(home: Home, tmp_path: Path) -> None:
    """The library skips files that a signature says are to be ignored: ours must list exactly the manifest."""
    from model_signing import hashing, signing

    private, public = keys(tmp_path)
    release = _release(home)
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b"{}")
    (folder / "harmless.txt").write_bytes(b"x")
    ignoring = hashing.Config().set_ignored_paths(paths=[folder / "manifest.json"])
    config = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(ignoring)
    config.sign(folder, tmp_path / "sig")
    _replace(home, release, (tmp_path / "sig").read_bytes(), public_key_name(public))
    assert [p.path for p in verify_release(home, "v1", public_key=public)] == ["signature"]
    (folder / "harmless.txt").unlink()
    config.sign(folder, tmp_path / "sig")  # lists no file at all
    _replace(home, release, (tmp_path / "sig").read_bytes(), public_key_name(public))
    assert [p.path for p in verify_release(home, "v1", public_key=public)] == ["signature"]


def test_a_claimed_key_is_not_believed(home: Home, tmp_path: Path) -> None:
    """A bundle by another key that says it is by ours."""
    _, public = keys(tmp_path)
    other, _ = keys(tmp_path, "other")
    release = _release(home)
    bundle = json.loads(home.store.read_bytes(sign_release(home, "v1", other), SIGNATURE_FILE))
    mine = public_key_name(public)
    bundle["verificationMaterial"]["publicKey"]["hint"] = mine
    _replace(home, release, json.dumps(bundle).encode(), mine)
    (problem,) = verify_release(home, "v1", public_key=public, require_signature=True)
    assert "does not verify" in problem.what


def test_one_changed_byte_of_a_signed_release_is_seen(home: Home, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    release = _release(home)
    sign_release(home, "v1", private)
    required = {"public_key": public, "require_signature": True}
    places = [home.store.manifest_path(release.digest), home.store.file(release, "release.json")]
    base = home.store.get(release.inputs["base"])
    places += [home.store.object_path(entry.digest) for entry in base.files]
    for path in places:
        flip(path, path.stat().st_size // 2)
        assert verify_release(home, release.digest, **required) != []
        with pytest.raises(ReleaseError):
            load_release(home, release.digest)
        flip(path, path.stat().st_size // 2)
    assert verify_release(home, release.digest, **required) == []


def test_gc_keeps_signatures_and_verify_covers_them(home: Home, tmp_path: Path) -> None:
    from posttrain.releases.verify import verify_everything

    private, public = keys(tmp_path)
    release = _release(home)
    signature = sign_release(home, "v1", private)
    assert collect_garbage(home, min_age_seconds=-60).removed == ()
    assert (
        verify_release(home, "v1", public_key=public, require_signature=True) == verify_everything(home) == []
    )
    flip(home.store.file(signature, SIGNATURE_FILE))
    assert [p.path for p in verify_everything(home)] == [SIGNATURE_FILE]
    (problem,) = verify_release(home, release.digest, public_key=public, require_signature=True)
    assert "there is none" in problem.what  # a damaged signature is none


def test_keys_that_cannot_be_used_are_refused(home: Home, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    _release(home)
    with pytest.raises(UsageError, match="cannot sign"):
        sign_release(home, "v1", public)
    with pytest.raises(UsageError, match="is no public key"):
        verify_release(home, "v1", public_key=private)
    curve = tmp_path / "k1.pem"
    make = ["openssl", "ecparam", "-name", "secp256k1", "-genkey", "-noout", "-out", curve]
    subprocess.run(make, check=True, capture_output=True)
    with pytest.raises(UsageError, match="Unsupported key"):
        sign_release(home, "v1", curve)
    locked = tmp_path / "locked.pem"
    lock = ["openssl", "ec", "-in", private, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(lock, check=True, capture_output=True)
    with pytest.raises(UsageError, match="cannot sign"):
        sign_release(home, "v1", locked)
    sign_release(home, "v1", locked, password="secret")
    assert verify_release(home, "v1", public_key=public, require_signature=True) == []
    assert home.registry.journal(action="release.signed")[0].data.keys() == {"key", "signature"}


def test_an_exported_release_carries_its_signature(home: Home, tmp_path: Path) -> None:
    """And the library's own command checks it without posttrain."""
    private, public = keys(tmp_path)
    _release(home)
    sign_release(home, "v1", private)
    folder = export_release(home, "v1", tmp_path / "out")
    assert verify_exported(folder, public_key=public, require_signature=True) == []
    (signature,) = (folder / "signatures").iterdir()
    command = [sys.executable, "-m", "model_signing", "verify", "key", folder / "release"]
    command += ["--signature", signature, "--public_key", public]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    # The whole folder made anew by somebody without the key: sound by itself, and unsigned.
    manifest = folder / "release" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"name":"v1"', b'"name":"v2"'))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert verify_exported(folder) == []
    (problem,) = verify_exported(folder, public_key=public, require_signature=True)
    assert problem.path == "signature"
    shutil.rmtree(folder / "signatures")
    (problem,) = verify_exported(folder, public_key=public, require_signature=True)
    assert "there is none" in problem.what
