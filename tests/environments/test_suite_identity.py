"""A suite's identity: any byte changes it, no order does, and what was changed is named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.core.canonical import digest_bytes
from posttrain.core.errors import ConfigError, DataError
from posttrain.environments.suites.build import build_from_folder, build_from_slices, change_settings
from posttrain.environments.suites.diff import diff_suites
from posttrain.environments.suites.files import SUITE_FILE, check_files, parse_suite, read_suite
from posttrain.environments.suites.identity import IDENTITY_SCHEME, Identity, identify, part_of
from tests.environments.world import SETTINGS, small_slices

Files = dict[str, bytes]
Writer = Callable[..., Path]

# A fixture that is only read may be shared between the examples of one property.
_SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
leaves = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,3}", fullmatch=True),
    st.binary(max_size=8).map(digest_bytes),
    min_size=1,
)


def flipped(files: Files, path: str, position: int, bit: int) -> Files:
    data = bytearray(files[path])
    data[position % len(data)] ^= 1 << bit
    return {**files, path: bytes(data)}


@_SHARED
@given(data=st.data())
def test_any_changed_byte_changes_the_root_and_is_refused_by_name(files: Files, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(files)))
    other = flipped(
        files, path, data.draw(st.integers(0, len(files[path]) - 1)), data.draw(st.integers(0, 7))
    )
    with pytest.raises(DataError, match=path.replace(".", r"\.")):
        parse_suite(other)
    if path != SUITE_FILE:
        before, after = (
            identify({p: digest_bytes(b) for p, b in side.items() if p != SUITE_FILE})
            for side in (files, other)
        )
        assert before.root != after.root
        assert [name for name in before.parts if before.parts[name] != after.parts[name]] == [part_of(path)]


@given(leaves, st.randoms(use_true_random=False))
def test_the_order_of_files_changes_nothing(table: dict[str, str], draw: random.Random) -> None:
    items = list(table.items())
    draw.shuffle(items)
    assert identify(dict(items)) == identify(table)


@given(leaves, st.data())
def test_a_renamed_added_or_removed_file_changes_the_root(table: dict[str, str], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(table)))
    renamed = {(f"{p}x" if p == path else p): digest for p, digest in table.items()}
    removed = {p: digest for p, digest in table.items() if p != path}
    roots = {identify(t).root for t in (table, renamed, removed, {**table, "added": digest_bytes(b"")})}
    assert len(roots) == 4


def test_the_identity_is_pinned() -> None:
    """A scheme is for ever: the same files have this root in every later version."""
    identity = identify({"settings.json": digest_bytes(b"{}\n"), "slices/a/cases.jsonl": digest_bytes(b"")})
    assert identity.root == "sha256:88855a000a4d33986875ddee114cf48035b8c04a149ce345d8d423bbc766db89"
    assert list(identity.parts) == ["a/cases", "settings"]


def test_another_scheme_is_refused(files: Files) -> None:
    identity = check_files(files).to_json()
    assert Identity.from_json(identity).to_json() == identity
    with pytest.raises(DataError, match=f"scheme 2; this posttrain knows {IDENTITY_SCHEME}"):
        Identity.from_json({**identity, "scheme": 2})
    for broken in ({}, None, {**identity, "root": "md5:1"}, {**identity, "parts": 3}):
        with pytest.raises(DataError):
            Identity.from_json(broken)


def test_a_suite_reads_back_as_it_was_made(files: Files, write: Writer) -> None:
    suite = read_suite(write(files))
    expected = sorted(small_slices(), key=lambda spec: spec.name)
    assert [replace(spec, tools=()) for spec in suite.slices] == [
        replace(spec, tools=()) for spec in expected
    ]
    for read, made in zip(suite.slices, expected, strict=True):
        assert {tool.name: tool for tool in read.tools} == {tool.name: tool for tool in made.tools}
    assert suite.settings == SETTINGS
    assert suite.prompts == {"system": "Be brief."}
    assert list(suite.indexes) == ["debug"]
    # The order in which slices and cases are given is not part of a suite.
    turned = [replace(spec, cases=spec.cases[::-1], tools=spec.tools[::-1]) for spec in small_slices()[::-1]]
    again = build_from_slices(SETTINGS, turned, code=suite.code, prompts={"system": "Be brief."})
    assert again == files


def test_what_is_missing_or_foreign_is_named(files: Files, write: Writer, tmp_path: Path) -> None:
    folder = write(files)
    (folder / "slices/debug/files/sdk/README.md").unlink()
    with pytest.raises(DataError, match=r"slices/debug/files/sdk/README\.md of the suite is missing"):
        read_suite(folder)
    shutil.rmtree(folder)
    folder = write(files)
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt of the suite does not belong"):
        read_suite(folder)
    (folder / "notes.txt").unlink()
    (folder / "link").symlink_to("settings.json")
    with pytest.raises(DataError, match="link in the suite"):
        read_suite(folder)
    with pytest.raises(DataError, match="holds no suite"):
        read_suite(tmp_path)
    with pytest.raises(DataError, match="is there already"):
        write(files)


def test_diff_says_what_differs_down_to_the_case(files: Files) -> None:
    assert diff_suites(files, files).same
    slices = small_slices()
    case = slices[1].cases[2]
    changed_case = replace(case, expected={"version": "3.2.2"})
    slices[1] = replace(
        slices[1], cases=(*slices[1].cases[:2], changed_case), files={**slices[1].files, "new.txt": b"x"}
    )
    settings_ = change_settings(SETTINGS, {"decoding.temperature": 0.7})
    other = build_from_slices(settings_, slices, code={}, prompts={"system": "Be brief."})
    found = diff_suites(files, other)
    assert [(e.where, e.what) for e in found.parts] == [
        ("code", "changed"),
        ("debug/cases", "changed"),
        ("debug/files", "changed"),
        ("settings", "changed"),
    ]
    assert ("slices/debug/files/new.txt", "added") in [(e.where, e.what) for e in found.files]
    entries = {e.where: (e.what, e.detail) for e in found.entries}
    assert entries["slices/debug/cases.jsonl#debug-3"][0] == "removed"
    assert entries["slices/debug/cases.jsonl#debug-2"][0] == "changed"
    assert entries["settings.json#decoding.temperature"] == ("changed", "0 → 0.7")


def test_a_folder_written_by_hand_becomes_a_suite(files: Files, tmp_path: Path) -> None:
    source = tmp_path / "source"
    cases = source / "slices/debug"
    (cases / "documents/guide").mkdir(parents=True)
    (source / ".git").mkdir()
    (source / ".git/HEAD").write_text("ref")
    (source / "settings.json").write_text('{"name": "mine",\n "seed": 4}')
    (cases / "slice.json").write_text(
        json.dumps({"required": ["r"], "summary": "s", "graders": [{"name": "r", "kind": "exact"}]}, indent=2)
    )
    lines = [{"messages": [{"role": "user", "content": "?"}], "id": name} for name in ("b", "a")]
    (cases / "cases.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (cases / "documents/guide/one.md").write_text("Pin it.")
    built = build_from_folder(source, code={}, changes={"samples": 3})
    suite = parse_suite(built)
    assert [case.id for case in suite.cases] == ["a", "b"]
    assert (suite.settings.seed, suite.settings.samples) == (4, 3)
    assert suite.slice("debug").documents == {"guide/one.md": "Pin it."}
    assert [hit.id for hit in suite.indexes["debug"].search("pin", 5)] == ["guide/one.md"]
    # A built suite is a source, too, and gives itself.
    for path, data in built.items():
        target = tmp_path / "built" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    assert build_from_folder(tmp_path / "built", code={}) == built
    (cases / "cases.jsonl").write_text(json.dumps(lines[0]) + "\n{broken\n")
    with pytest.raises(DataError, match=r"cases\.jsonl, line 2"):
        build_from_folder(source, code={})
    for changes in ({"decode.temperature": 1}, {"decoding.temprature": 1}, {"seed": -1}):
        with pytest.raises(ConfigError):
            change_settings(SETTINGS, changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: replace(s, cases=()), "has no cases"),
        (lambda s: replace(s, required=("nobody",)), "requires"),
        (lambda s: replace(s, required=()), "requires"),
        (lambda s: replace(s, graders=s.graders * 2), "requires"),
        (lambda s: replace(s, cases=s.cases + s.cases[:1]), "is in the slices"),
        (lambda s: replace(s, cases=(replace(s.cases[0], slice="sums"),)), "another slice"),
        (lambda s: replace(s, tools=s.tools[1:]), "unknown tool 'lookup'"),
    ],
)
def test_slices_that_do_not_fit_are_refused(change: Callable[..., object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        build_from_slices(SETTINGS, [small_slices()[0], change(small_slices()[1])], code={})  # type: ignore[list-item]


def test_a_suite_of_every_scheme_is_read_and_keeps_its_identity() -> None:
    suite = read_suite(Path(__file__).parent / "golden" / "suite_v1")
    assert suite.identity.root == "sha256:03001693e1f50539341c673926960565e16dd034ec597b6d9c593778d4878a21"
    assert suite.slice("debug").tools[1].replies
    assert suite.indexes["debug"].search("cache", 1)[0].id == "release"
