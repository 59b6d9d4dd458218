"""Names, lanes and lesson L05's story: v1.2 at 92.5 %, v1.3 at 58.5 %, and back to exactly v1.2."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from posttrain.artifacts.errors import ConflictError, ReleaseError
from posttrain.artifacts.gc import collect_garbage
from posttrain.artifacts.home import Home
from posttrain.core.errors import UnknownReferenceError, UsageError
from posttrain.releases.create import create_release
from posttrain.releases.diff import diff_releases
from posttrain.releases.lanes import find_release, list_releases, publish_release, read_release
from posttrain.releases.load import load_release
from posttrain.releases.spec import read_spec
from posttrain.releases.verify import verify_everything, verify_release
from tests.releases.release_world import every_byte, experiment, flip, keep_model, release_home


@pytest.fixture
def home(fast_folder: Path, registry_url: str) -> Home:
    """Once with SQLite and once with PostgreSQL."""
    return release_home(fast_folder / "home", registry_url)


def test_the_story_of_lesson_5(home: Home, tmp_path: Path) -> None:
    good = experiment(home, tmp_path, "1.2", 0.925)
    v12 = create_release(home, read_spec(good.spec), folder=good.folder, actor="ann")
    publish_release(home, "v1.2", "production", expect="nothing", actor="ann")
    before = every_byte(home, v12.digest)
    loaded_before = load_release(home, "production")
    assert loaded_before.manifest.results["held_out"].headline["accuracy"] == 0.925

    bad = experiment(home, tmp_path, "1.3", 0.585, parent="v1.2")
    v13 = create_release(home, read_spec(bad.spec), folder=bad.folder, actor="ann")
    publish_release(home, "v1.3", "production", expect="v1.2", actor="ann")
    assert load_release(home, "production").manifest.results["held_out"].headline["accuracy"] == 0.585
    differs = diff_releases(read_release(home, v12), read_release(home, v13))
    fields = {change.field for change in differs.changes}
    assert {"name", "base.digest", "results.held_out.headline.accuracy", "parent"} <= fields

    # Somebody who still believes that v1.2 holds the lane is refused, and nothing moves.
    with pytest.raises(ConflictError, match="somebody changed it first"):
        publish_release(home, "v1.2", "production", expect="v1.2", actor="bob")
    assert load_release(home, "production").digest == v13.digest

    publish_release(home, "v1.2", "production", expect="v1.3", actor="control")
    back = load_release(home, "production")
    assert (back.digest, back.manifest) == (v12.digest, loaded_before.manifest)
    assert every_byte(home, v12.digest) == before
    names = {path.rpartition("/")[2] for path in before}
    assert {
        "user_feedback_v1.2.jsonl",
        "hyperparams_v1.2.yaml",
        "model.safetensors",
        "accuracy_92.5%.json",
    } <= names
    assert back.manifest.code.commit == "a4b7c1da34brh4"

    assert [(e.actor, e.action, e.subject) for e in home.registry.journal()] == [
        ("ann", "release.created", v12.digest),
        ("ann", "release.published", "production"),
        ("ann", "release.created", v13.digest),
        ("ann", "release.published", "production"),
        ("bob", "release.refused", "production"),
        ("control", "release.published", "production"),
    ]
    assert [e.data["name"] for e in home.registry.journal(action="release.published")] == [
        "v1.2",
        "v1.3",
        "v1.2",
    ]
    assert [(r.digest, r.previous) for r in home.registry.releases("production")] == [
        (v12.digest, None),
        (v13.digest, v12.digest),
        (v12.digest, v13.digest),
    ]
    assert verify_everything(home) == []
    collect_garbage(home, min_age_seconds=-60)
    assert every_byte(home, v12.digest) == before


def test_the_way_back_is_refused_where_one_bit_of_the_weights_differs(home: Home, tmp_path: Path) -> None:
    for version, accuracy in (("1.2", 0.925), ("1.3", 0.585)):
        made = experiment(home, tmp_path, version, accuracy)
        create_release(home, read_spec(made.spec), folder=made.folder)
        publish_release(home, f"v{version}", "production")
    weights = home.store.file(
        home.store.get(read_release(home, find_release(home, "v1.2")).base.identity), "model.safetensors"
    )
    flip(weights)
    with pytest.raises(
        ReleaseError, match=r"release v1\.2 is refused: base/model\.safetensors does not match"
    ):
        publish_release(home, "v1.2", "production", actor="control")
    with pytest.raises(ReleaseError, match=r"base/model\.safetensors"):
        load_release(home, "v1.2")
    assert load_release(home, "production").manifest.name == "v1.3"
    last = home.registry.journal()[-1]
    assert (last.action, last.subject, last.actor) == ("release.refused", "production", "control")
    assert "base/model.safetensors" in last.data["why"]
    flip(weights)
    assert publish_release(home, "v1.2", "production").position == 3


def test_of_two_who_publish_at_once_one_is_refused(home: Home) -> None:
    first = create_release(home, {"name": "v1", "model": keep_model(home, 1.0).digest})
    publish_release(home, "v1", "production")
    for seed in range(2, 6):
        create_release(home, {"name": f"v{seed}", "model": keep_model(home, float(seed)).digest})
    outcomes: list[str] = []
    together = threading.Barrier(4)

    def publish(name: str) -> None:
        together.wait()
        try:
            publish_release(home, name, "production", expect=first.digest, actor=name)
            outcomes.append("published")
        except ConflictError:
            outcomes.append("refused")

    threads = [threading.Thread(target=publish, args=(f"v{seed}",)) for seed in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["published", "refused", "refused", "refused"]
    assert len(home.registry.releases("production")) == 2
    actions = [entry.action for entry in home.registry.journal()]
    assert (actions.count("release.published"), actions.count("release.refused")) == (2, 3)
    assert home.registry.verify_journal() == []


def test_publishing_what_holds_the_lane_changes_nothing(home: Home) -> None:
    create_release(home, {"name": "v1", "model": keep_model(home, 1.0).digest})
    once = publish_release(home, "v1", "staging")
    assert (
        publish_release(home, "v1", "staging") == publish_release(home, "v1", "staging", expect="v1") == once
    )
    with pytest.raises(ConflictError):
        publish_release(home, "v1", "staging", expect="nothing")
    assert len(home.registry.releases()) == 1


def test_a_lane_is_one_of_three(home: Home) -> None:
    create_release(home, {"name": "v1", "model": keep_model(home, 1.0).digest})
    with pytest.raises(UsageError, match="'prodution' is no lane") as caught:
        publish_release(home, "v1", "prodution")
    assert caught.value.hint == "did you mean 'production'?"
    with pytest.raises(UnknownReferenceError):
        publish_release(home, "v1", "dev", expect="v7")


def test_the_list_says_who_holds_and_held_what(home: Home) -> None:
    for seed in (1, 2):
        create_release(home, {"name": f"v{seed}", "model": keep_model(home, float(seed)).digest})
        publish_release(home, f"v{seed}", "production")
    publish_release(home, "v1", "dev")
    newest, oldest = list_releases(home)
    assert (newest.name, newest.holds, newest.held) == ("v2", ("production",), ())
    assert (oldest.name, oldest.holds, oldest.held) == ("v1", ("dev",), ("production",))
    assert newest.created_at is not None and oldest.created_at is not None
    path = home.store.manifest_path(oldest.digest)
    path.unlink()
    damaged = list_releases(home)[1]
    assert damaged.problem is not None and "is not in the store" in damaged.problem


def test_a_release_is_found_by_name_lane_digest_and_prefix(home: Home) -> None:
    made = create_release(home, {"name": "v1", "model": keep_model(home, 1.0).digest})
    publish_release(home, "v1", "staging")
    for reference in ("v1", "staging", "release/v1", made.digest, made.digest.removeprefix("sha256:")[:8]):
        assert find_release(home, reference) == made
        assert verify_release(home, reference) == []
    with pytest.raises(UnknownReferenceError, match="names no release") as caught:
        find_release(home, "v11")
    assert caught.value.hint == "did you mean 'v1'?"


def test_a_lane_never_moves_without_its_line_in_the_journal(home: Home) -> None:
    """Both are one transaction: where the line cannot be written, the lane stays."""
    made = create_release(home, {"name": "v1", "model": keep_model(home, 1.0).digest})
    with pytest.raises(ValueError, match="canonical"):
        home.registry.publish_release("production", made.digest, None, actor="ann", data={"x": float("nan")})
    assert home.registry.current_release("production") is None
    publish_release(home, "v1", "production", actor="ann")
    (line,) = home.registry.journal(action="release.published")
    assert dict(line.data) == {"release": made.digest, "previous": None, "position": 1, "name": "v1"}
