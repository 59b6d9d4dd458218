"""Checking and loading a release: every piece, every kind of damage, in the store and in an exported folder."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path

import pytest

from posttrain.artifacts.errors import ReleaseError
from posttrain.artifacts.gc import collect_garbage
from posttrain.artifacts.home import Home
from posttrain.artifacts.records import Artifact
from posttrain.core.canonical import digest_file, short
from posttrain.core.errors import UnknownReferenceError, UsageError
from posttrain.releases.create import create_release
from posttrain.releases.export import export_release, read_exported, verify_exported
from posttrain.releases.lanes import read_release
from posttrain.releases.load import load_release
from posttrain.releases.records import (
    RELEASE_FILE,
    RELEASE_KIND,
    ArtifactPiece,
    FilesPiece,
    lineage,
    pieces,
)
from posttrain.releases.sources import VerificationCache
from posttrain.releases.verify import verify_everything, verify_release
from tests.releases.release_world import (
    TEMPLATE,
    decide,
    flip,
    keep,
    keep_model,
    release_home,
)


@pytest.fixture
def home(fast_folder: Path) -> Home:
    return release_home(fast_folder / "home")


def _everything(home: Home, folder: Path) -> Artifact:
    """A release with a piece of every field, artifacts and files."""
    for name in ("system.txt", "hyperparams.yaml", "search_v3.json", "checker.py"):
        (folder / name).write_text(f"this is {name}\n")
    data = keep(home, "dataset", {"rows.jsonl": b"{}\n"})
    model = keep_model(home, 1.0, {"examples": data.digest})
    scorer = keep(home, "model", {"scorer.safetensors": b"scorer"})
    lora = keep(home, "adapter", {"adapter_model.safetensors": b"lora", "adapter_config.json": b"{}"})
    profile = keep(home, "profile", {"profile.json": b"{}"})
    return create_release(
        home,
        {
            "name": "v1",
            "model": model.digest,
            "adapters": [{"name": "math", "piece": lora.digest}],
            "input_processing": {"file": "system.txt"},
            "reward_models": {"helpful": scorer.digest},
            "verifiers": {"checker": {"file": "checker.py"}},
            "tools": {"fixtures": {"file": "search_v3.json"}, "search": "3.2.1"},
            "configuration": {"hyperparams": {"file": "hyperparams.yaml"}},
            "decision": decide(home, model).digest,
            "drift_profile": profile.digest,
        },
        folder=folder,
    )


def _files(home: Home, release: Artifact) -> dict[str, Path]:
    """Every file of every piece, by ``field/path``."""
    found = {f"release/{RELEASE_FILE}": home.store.file(release, RELEASE_FILE)}
    for field, piece in pieces(read_release(home, release)):
        if isinstance(piece, ArtifactPiece):
            artifact = home.store.get(piece.digest)
            names = [entry.path for entry in artifact.files]
        elif isinstance(piece, FilesPiece):
            artifact = release if piece.artifact is None else home.store.get(piece.artifact)
            names = list(piece.files)
        else:
            continue
        found |= {f"{field}/{name}": home.store.file(artifact, name) for name in names}
    return found


def test_a_sound_release_has_no_problems_and_loads(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    assert verify_release(home, "v1") == verify_everything(home) == []
    loaded = load_release(home, "v1")
    assert loaded.digest == release.digest
    assert loaded.base is not None and loaded.tokenizer is not None and loaded.chat_template is not None
    assert (loaded.base / "model.safetensors").is_file()
    assert (loaded.tokenizer / "tokenizer.json").is_file()
    assert loaded.chat_template.read_text() == TEMPLATE
    assert loaded.template_digest == digest_file(loaded.chat_template)
    assert [
        (adapter.name, sorted(p.name for p in adapter.folder.iterdir())) for adapter in loaded.adapters
    ] == [("math", ["adapter_config.json", "adapter_model.safetensors"])]
    assert loaded.input_processing is not None
    assert loaded.input_processing.read_text() == "this is system.txt\n"
    assert (loaded.own_files / RELEASE_FILE).is_file()
    assert loaded.external == ("tools.search version:3.2.1",)


def test_every_file_of_every_piece_is_missed_and_every_flipped_bit_is_seen(
    home: Home, tmp_path: Path
) -> None:
    """In the store: flipped with its times kept, cut, removed. Each time the piece is named, by verify and by load,
    and the release passes again once the file is back."""
    release = _everything(home, tmp_path)
    files = _files(home, release)
    fields = {name.partition("/")[0].partition(".")[0] for name in files}
    assert fields == {
        *("release", "base", "adapters", "tokenizer", "chat_template", "input_processing", "reward_models"),
        *("verifiers", "tools", "data", "configuration", "results", "contract", "decision", "drift_profile"),
    }
    for name, path in files.items():
        whole, facts = path.read_bytes(), path.stat()
        for damage, says in (
            (flip, "does not match its digest"),
            (_cut, "bytes instead of"),
            (Path.unlink, "is missing"),
        ):
            damage(path)
            problems = verify_release(home, "v1")
            assert [p.what for p in problems if p.path == name] != [], (name, problems)
            assert any(says in p.what for p in problems if p.path == name), (name, problems)
            with pytest.raises(ReleaseError, match="release v1 is refused"):
                load_release(home, "v1")
            path.unlink(missing_ok=True)
            path.write_bytes(whole)
            path.chmod(0o444)
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert verify_release(home, "v1") == []
    assert load_release(home, "v1").digest == release.digest


def _cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


def test_a_changed_or_missing_manifest_is_named(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    for field, digest in {"": release.digest, **lineage(read_release(home, release))}.items():
        path = home.store.manifest_path(digest)
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        changed = verify_release(home, "v1")
        path.unlink()
        missing = verify_release(home, "v1")
        path.write_bytes(whole)
        for problems, says in ((changed, "does not match its digest"), (missing, "is not in the store")):
            assert any(p.path == (field or "manifest") and says in p.what for p in problems), (
                field,
                problems,
            )
    assert verify_release(home, "v1") == []


def test_verify_covers_releases(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    files = _files(home, release)
    for name in (f"release/{RELEASE_FILE}", "base/model.safetensors", "configuration.hyperparams"):
        path = next(path for known, path in files.items() if known.startswith(name))
        whole = path.read_bytes()
        path.unlink()
        assert verify_everything(home) != [], name
        path.write_bytes(whole)
    home.store.remove(release.inputs["adapters.math"])
    assert {problem.path for problem in verify_everything(home)} >= {"adapters.math"}


def test_what_the_release_says_wrongly_is_found(home: Home, tmp_path: Path) -> None:
    """Releases that no ``create`` writes: another kind, files that are not there, lineage that keeps nothing."""
    manifest = read_release(home, _everything(home, tmp_path))

    def problems(raw: bytes, inputs: dict[str, str], files: dict[str, bytes] | None = None) -> list[str]:
        own = home.store.view(home.store.get(home.registry.ref("release/v1") or ""))
        given = {
            path.relative_to(own).as_posix(): path.read_bytes() for path in own.rglob("*") if path.is_file()
        }
        made = keep(home, RELEASE_KIND, {**given, RELEASE_FILE: raw, **(files or {})}, inputs=inputs)
        found = verify_release(home, made.digest)
        assert {problem.path for problem in found} <= {problem.path for problem in verify_everything(home)}
        home.store.remove(made.digest)
        return [f"{problem.path}: {problem.what}" for problem in found]

    raw, inputs = manifest.to_bytes() + b"\n", lineage(manifest)
    assert problems(raw, inputs) == []
    assert problems(raw, {"base": inputs["base"]}) == [
        "manifest: its lineage does not name what release.json names"
    ]
    assert problems(raw.replace(b'"base":', b' "base":'), inputs) == [
        "release/release.json: is not canonical JSON"
    ]
    assert "not a release record" in problems(b"{}", inputs)[0]
    wrong_kind = manifest.model_copy(update={"base": ArtifactPiece(digest=inputs["base"], kind="gguf")})
    assert problems(wrong_kind.to_bytes() + b"\n", inputs) == ["base: is a model, the release says gguf"]
    assert isinstance(manifest.tokenizer, FilesPiece)
    other = FilesPiece(
        artifact=inputs["base"], files={"tokenizer.json": inputs["base"], "gone.json": inputs["base"]}
    )
    wrong_files = manifest.model_copy(update={"tokenizer": other})
    assert problems(wrong_files.to_bytes() + b"\n", inputs) == [
        f"tokenizer/gone.json: is no file of artifact {short(inputs['base'])}",
        "tokenizer/tokenizer.json: has another digest than the release says",
    ]
    assert manifest.decision is not None
    lied = manifest.model_copy(update={"decision": manifest.decision.model_copy(update={"outcome": "NO-GO"})})
    assert problems(lied.to_bytes() + b"\n", inputs) == ["decision: says GO, the release says NO-GO"]


def test_what_is_no_release_is_refused(home: Home) -> None:
    model = keep_model(home, 1.0)
    assert [p.what for p in verify_release(home, model.digest)] == ["is a model, not a release"]
    with pytest.raises(ReleaseError, match="not a release"):
        load_release(home, model.digest)
    with pytest.raises(UnknownReferenceError, match="names no release"):
        verify_release(home, "v9")
    with pytest.raises(UnknownReferenceError, match="no release holds the lane production"):
        load_release(home, "production")


def test_an_external_base_is_served_only_where_that_is_allowed(home: Home) -> None:
    commit = "0123456789" * 4
    create_release(home, {"name": "v1", "model": {"hub": f"org/model@{commit}"}})
    assert verify_release(home, "v1") == []
    with pytest.raises(ReleaseError, match=r"base hub:org/model@0123456789.* is external"):
        load_release(home, "v1")
    loaded = load_release(home, "v1", allow_external=True)
    assert (loaded.base, loaded.external) == (None, (f"base hub:org/model@{commit}",))


def test_the_error_crosses_processes(home: Home) -> None:
    error = ReleaseError("release v1 is refused: base/model.safetensors is missing", hint="look")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.hint) == (ReleaseError, str(error), "look")


# -- warm ------------------------------------------------------------------------------------------


def test_a_warm_release_is_not_hashed_again_and_a_change_is_still_seen(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    cache = VerificationCache()
    assert load_release(home, "v1", cache=cache).digest == release.digest
    time.sleep(0.1)  # what was written just now is not remembered
    assert load_release(home, "v1", deep=False, cache=cache).digest == release.digest
    known = dict(cache._known)
    assert len(known) >= 15
    assert load_release(home, "v1", deep=False, cache=cache).digest == release.digest
    assert cache._known == known  # nothing was new: neither views nor locks touched a file
    weights = _files(home, release)["base/model.safetensors"]
    flip(weights)  # size and modification time as before
    problems = verify_release(home, "v1", deep=False, cache=cache)
    assert [p.path for p in problems] == ["base/model.safetensors"]


def test_deep_does_not_believe_the_cache(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    weights = _files(home, release)["base/model.safetensors"]
    cache = VerificationCache()
    time.sleep(0.1)
    verify_release(home, "v1", cache=cache)
    flip(weights)
    # As if the disk had rotted: the cache holds the right digest for the file as it is now.
    for facts, digest in dict(cache._known).items():
        if facts.inode == weights.stat().st_ino:
            cache._known[type(facts)(*_facts_of(weights))] = digest
    assert verify_release(home, "v1", deep=False, cache=cache) == []
    assert [p.path for p in verify_release(home, "v1", deep=True, cache=cache)] == ["base/model.safetensors"]


def _facts_of(path: Path) -> tuple[int, int, int, int, int]:
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path) -> None:
    """A second write within the clock's step would have the first one's times."""
    cache, path = VerificationCache(), tmp_path / "f"
    path.write_bytes(b"a")
    cache.digest_of(path, deep=False)
    assert cache._known == {}
    time.sleep(0.1)
    cache.digest_of(path, deep=False)
    assert len(cache._known) == 1


def test_a_view_that_is_a_copy_is_hashed_too(home: Home, tmp_path: Path) -> None:
    """A file system without hard links copies; the copy is what the engine reads. A changed one is made anew."""
    release = _everything(home, tmp_path)
    base = home.store.get(read_release(home, release).base.identity)
    view = home.store.view(base)
    copy = view / "model.safetensors"
    shutil.copy2(copy, view / "aside")
    copy.unlink()
    (view / "aside").rename(copy)
    assert load_release(home, "v1").base == view
    flip(copy)
    assert verify_release(home, "v1") == []  # the store is whole
    assert home.store.view(base) == view and digest_file(copy) != _digest_in(base, "model.safetensors")
    assert load_release(home, "v1").base == view
    assert digest_file(copy) == _digest_in(base, "model.safetensors")


def _digest_in(artifact: Artifact, path: str) -> str:
    return {entry.path: entry.digest for entry in artifact.files}[path]


def test_a_mirror_brings_back_what_is_missing(tmp_path: Path) -> None:
    home = release_home(tmp_path / "home", mirror_url=f"file://{tmp_path / 'mirror'}")
    release = _everything(home, tmp_path)
    home.store.push(release.digest, ancestors=True)
    weights = _files(home, release)["base/model.safetensors"]
    weights.unlink()
    assert [p.path for p in verify_release(home, "v1")] == ["base/model.safetensors"]
    assert load_release(home, "v1").digest == release.digest
    assert weights.is_file()


# -- gc --------------------------------------------------------------------------------------------


def test_gc_keeps_everything_that_a_release_needs(home: Home, tmp_path: Path) -> None:
    """Also of a release that only held a lane before, and has no other name."""
    release = _everything(home, tmp_path)
    stranger = keep(home, "dataset", {"x": b"nobody needs this"})
    home.registry.publish_release("production", release.digest, None)
    other = create_release(home, {"name": "v2", "model": {"version": "x"}})
    home.registry.publish_release("production", other.digest, release.digest)
    home.registry.delete_ref("release/v1")
    report = collect_garbage(home, min_age_seconds=-60)
    assert report.removed == (stranger.digest,)
    assert verify_release(home, release.digest) == verify_everything(home) == []
    assert load_release(home, release.digest).digest == release.digest


def test_gc_takes_a_release_that_nobody_names_and_its_pieces(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    home.registry.delete_ref("release/v1")
    report = collect_garbage(home, min_age_seconds=-60)
    assert release.digest in report.removed and report.kept == 0


# -- exported --------------------------------------------------------------------------------------


def test_an_exported_release_is_checked_without_a_store(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    folder = export_release(home, "v1", tmp_path / "out" / "v1")
    shutil.rmtree(home.settings.home)
    assert verify_exported(folder, expected=release.digest) == []
    assert read_exported(folder).name == "v1"
    assert [p.path for p in verify_exported(folder, expected="sha256:" + "0" * 64)] == ["manifest"]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        changed = path.relative_to(folder).as_posix()
        # The release's own manifest is its identity: changed, it is another release.
        assert verify_exported(folder, expected=release.digest), changed
        path.unlink()
        if changed != "release/manifest.json":
            assert verify_exported(folder), changed
        path.write_bytes(whole)
    (folder / "files" / "extra.py").write_text("import os\n")
    assert [(p.path, p.what) for p in verify_exported(folder)] == [
        ("files/extra.py", "belongs to no piece of the release")
    ]


def test_an_export_is_whole_or_not_there(home: Home, tmp_path: Path) -> None:
    release = _everything(home, tmp_path)
    flip(_files(home, release)["base/model.safetensors"])
    with pytest.raises(ReleaseError, match=r"base/model\.safetensors"):
        export_release(home, "v1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UsageError, match="is there already"):
        export_release(home, "v1", tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_write_to_an_export_does_not_reach_the_store(home: Home, tmp_path: Path) -> None:
    _everything(home, tmp_path)
    folder = export_release(home, "v1", tmp_path / "out")
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"changed")
    assert verify_release(home, "v1") == []
