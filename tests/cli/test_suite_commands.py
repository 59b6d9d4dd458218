"""``posttrain suite`` and ``posttrain evaluate`` as a user meets them: output, JSON, exit codes, one clear message."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main
from posttrain.environments.suites.build import build_from_slices
from posttrain.environments.suites.files import write_suite
from posttrain.environments.suites.slices import SOURCES, build_slice
from posttrain.environments.suites.suite import SuiteSettings
from posttrain.evaluation.suites.frozen_code import frozen_code

CASES = 4


class Done:
    """How a command ended."""

    def __init__(self, *arguments: str | Path) -> None:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            self.code = main([str(argument) for argument in arguments])
        self.out, self.err = out.getvalue(), err.getvalue()

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small suite of the four slices, and a home beside it."""
    root = tmp_path_factory.mktemp("suite-commands")
    slices = [build_slice(name, cases=CASES) for name in SOURCES]
    write_suite(root / "suite", build_from_slices(SuiteSettings(name="few"), slices, code=frozen_code()))
    return root


@pytest.fixture(autouse=True)
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_HOME", str(folder / "home"))


def test_build_show_verify_and_diff(folder: Path, tmp_path: Path) -> None:
    built = Done("suite", "build", "standard", "-o", tmp_path / "standard", "--json")
    assert built.code == 0, built.err
    facts = built.json()
    assert {s["name"]: s["cases"] for s in facts["slices"]} == dict.fromkeys(SOURCES, 400)
    root = facts["identity"]["root"]
    again = Done("suite", "build", "standard", "--json")
    assert again.json()["identity"]["root"] == root
    shown = Done("suite", "show", tmp_path / "standard")
    assert shown.out.startswith(f"standard  {root}  (scheme 1)")
    assert "debug_search_api" in shown.out and "unit_tests" in shown.out
    assert Done("suite", "show", again.json()["suite"]).out == shown.out
    verified = Done("suite", "verify", tmp_path / "standard", "--expect", root[:20])
    assert (verified.code, verified.out.splitlines()[1]) == (0, "code: as installed")
    other = Done("suite", "verify", tmp_path / "standard", "--expect", "sha256:0000")
    assert other.code == 2 and "not sha256:0000" in other.err
    same = Done("suite", "diff", tmp_path / "standard", "standard")
    assert (same.code, same.out) == (0, f"the same suite, {root}\n")
    changed = Done("suite", "build", tmp_path / "standard", "--set", "seed=7", "-o", tmp_path / "changed")
    assert changed.code == 0, changed.err
    found = Done("suite", "diff", tmp_path / "standard", tmp_path / "changed", "--json")
    assert found.code == 1
    assert [entry["where"] for entry in found.json()["entries"]] == ["settings.json#seed"]


@pytest.mark.parametrize(
    "name", ["settings.json", "suite.json", "slices/math_basic/cases.jsonl", "code.json"]
)
def test_a_flipped_byte_is_found_and_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder / "suite", tmp_path / "suite")
    data = bytearray((tmp_path / "suite" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "suite" / name).write_bytes(bytes(data))
    for command in (("suite", "verify"), ("suite", "show"), ("evaluate", "policy:perfect", "--suite")):
        done = Done(*command, tmp_path / "suite")
        assert done.code == 2 and name in done.err and "Traceback" not in done.err, done.err


def test_what_is_well_hashed_but_not_canonical_is_found_by_verify(folder: Path, tmp_path: Path) -> None:
    from posttrain.core.canonical import digest_bytes
    from posttrain.environments.suites.files import SUITE_FILE, _head, read_files
    from posttrain.environments.suites.identity import identify

    files = read_files(folder / "suite")
    files["slices/math_basic/cases.jsonl"] = b"\n".join(
        files["slices/math_basic/cases.jsonl"].split(b"\n")[::-1]
    )
    leaves = {path: digest_bytes(data) for path, data in files.items() if path != SUITE_FILE}
    write_suite(tmp_path / "suite", {**files, SUITE_FILE: _head(identify(leaves), leaves)})
    assert Done("suite", "show", tmp_path / "suite").code == 0
    done = Done("suite", "verify", tmp_path / "suite")
    assert done.code == 2 and "cases.jsonl of the suite is not what" in done.err


def test_evaluate_compare_and_prove(folder: Path, tmp_path: Path) -> None:
    suite = folder / "suite"
    wrong = Done("evaluate", "policy:fluent-but-wrong", "--suite", suite, "--json")
    assert wrong.code == 0, wrong.err
    assert [line["success_at_1"] for line in wrong.json()["slices"]] == [0.0] * 5
    baseline = wrong.json()["report"]
    done = Done(
        "evaluate", "policy:perfect", "--suite", suite, "--baseline", baseline, "--out", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert "evaluate-suite: done" in done.out
    assert "better 16: debug_search_api-0000" in done.out
    assert (tmp_path / "out/report.json").exists() and (tmp_path / "out/summary.json").exists()
    proven = Done("evaluate", "policy:perfect", "--suite", suite, "--prove", "--json")
    assert proven.code == 0, proven.err
    assert proven.json()["proof"]["equal"] is True
    # It was in the home already, so only the second run of the proof was played.
    again = Done("evaluate", "policy:perfect", "--suite", suite, "--set", "attempt=2")
    assert again.code == 0 and "reused" not in again.out
    assert Done("evaluate", "policy:perfect", "--suite", suite).out.count("reused") == 1
    replayed = Done("evaluate", f"replay:{baseline}", "--suite", suite, "--json")
    assert replayed.json()["frozen_digest"] == wrong.json()["frozen_digest"]
    assert replayed.json()["lane"] == "replay"


def test_a_baseline_of_another_suite_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    slices = [build_slice(name, cases=2) for name in SOURCES]
    write_suite(tmp_path / "other", build_from_slices(SuiteSettings(name="two"), slices, code=frozen_code()))
    other = Done("evaluate", "policy:perfect", "--suite", tmp_path / "other", "--json").json()["report"]
    done = Done("evaluate", "policy:slow,seconds=60", "--suite", folder / "suite", "--baseline", other)
    assert done.code == 2 and "was measured on another suite" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("policy:prefect",), "did you mean 'perfect'"),
        (("http://127.0.0.1:9/v1",), "--served-model"),
        (("no-such-model",), "names nothing"),
        (("policy:perfect", "--set", "graders=0"), "graders"),
        (("policy:perfect", "--suite", "nowhere"), "'nowhere'"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(
    folder: Path, arguments: tuple[str, ...], says: str
) -> None:
    suite = () if "--suite" in arguments else ("--suite", folder / "suite")
    done = Done("evaluate", *arguments, *suite)
    assert done.code == 2 and says in done.err and "Traceback" not in done.err, done.err
