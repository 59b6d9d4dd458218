"""``posttrain gate``: real files, a real home, exit codes, and a decision that can be made again."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from posttrain.cli import main
from posttrain.core.settings import Settings
from posttrain.evaluation.outcomes import Outcomes, write_outcomes
from tests.promotion.worlds import DEV_RULES, OTHER_SUITE, example, flags, plain, rows, shifted, traffic
from tests.promotion.worlds import report as make_report


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def folder(path: Path, outcomes: Outcomes) -> Path:
    path.mkdir()
    write_outcomes(path, outcomes)
    return path


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "rules.txt"
    path.write_text("success@1(tools).point >= 0.8\nno_regressions_on: ['tools'] margin=0.05\n")
    return path


@pytest.fixture
def reports(tmp_path: Path) -> tuple[Path, Path]:
    before, after = shifted(12, 8, 840, 1000)
    return folder(tmp_path / "candidate", plain(after)), folder(tmp_path / "baseline", plain(before))


def test_the_specification_by_command(tmp_path):
    rules = tmp_path / "dev.txt"
    rules.write_text(DEV_RULES)
    sides = [folder(tmp_path / name, example(name)) for name in ("candidate", "baseline")]
    page = tmp_path / "page.html"
    code, out, err = command("gate", rules, "--candidate", sides[0], "--baseline", sides[1], "--html", page)
    assert (code, err) == (1, "")
    assert out.startswith("NO-GO: the data refute a rule (11 PASS, 1 FAIL)")
    (row,) = (line for line in out.splitlines() if line.startswith("headache_redflags "))
    assert row.split()[:4] == ["headache_redflags", "400", "0.310", "0.840"]
    assert "rule_violation_rate 0.62 → 0.06 ✗" in row
    assert "✗ FAIL         rule_violation_rate(headache_redflags).point <= 0.05   (line 4)" in out
    assert "24/400 = 0.06 > 0.05" in out and "a coin toss" in out
    assert "division_hard: 30 lost: division_hard/0000, " in out and "and 22 more" in out
    assert "confidence: 0.95 · margin: 0.02" in out
    html = page.read_text()
    assert "24/400 = 0.06 &gt; 0.05" in html and "<script" not in html and "http" not in html


def test_exit_codes(tmp_path, contract, reports):
    candidate, baseline = reports
    given = ["--candidate", candidate, "--baseline", baseline]
    assert command("gate", contract, *given)[0] == 0
    assert command("gate", "apply", contract, *given)[0] == 0
    contract.write_text("success@1.point >= 0.9\n")
    assert command("gate", contract, *given)[0] == 1
    contract.write_text("success@1.lower_ci >= 0.85\n")
    assert command("gate", contract, *given)[0] == 3
    contract.write_text("canary.abandon_rate.point <= 0.05\n")
    assert command("gate", contract, *given)[0] == 2
    invalid = folder(tmp_path / "canary", traffic(units=(5200, 4000)))
    assert command("gate", contract, *given, "--canary", invalid)[0] == 2
    other = folder(tmp_path / "other", plain([True] * 1000, suite=OTHER_SUITE))
    contract.write_text("no_regressions_on: [tools]\n")
    code, out, _ = command("gate", contract, "--candidate", candidate, "--baseline", other)
    assert code == 2 and "another suite" in out


def test_bad_input_is_one_line_with_a_hint(tmp_path, contract, reports):
    given = ["--candidate", reports[0]]
    contract.write_text("success@1.point >= 0.8\nsuccess@1.pont >= 0.8\n")
    code, _, err = command("gate", contract, *given)
    assert code == 2 and err.startswith("error: rules.txt:2:11: no statistic 'pont'\n  hint: did you mean")
    contract.write_text("success@1(toolz).point >= 0.8\n")
    code, out, err = command("gate", contract, *given)
    assert code == 2 and "no case of a slice 'toolz'; did you mean 'tools'?" in out and "(line 1)" in out
    assert command("gate", tmp_path / "none.txt", *given)[0] == 2
    assert command("gate", contract)[0] == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = command("gate", contract, "--candidate", empty)
    assert code == 2 and "no report of a suite" in err
    code, _, err = command("gate", contract, "--candidate", "abc", "--home", tmp_path / "nowhere")
    assert code == 2 and "no home" in err


def test_a_kept_decision_is_made_again_or_shown_to_differ(tmp_path, contract, reports):
    candidate, baseline = reports
    out = tmp_path / "decision"
    assert command("gate", contract, "--candidate", candidate, "--baseline", baseline, "--out", out)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["decision.html", "decision.json", "decision.txt"]
    again = ["gate", "verify", out, "--candidate", candidate, "--baseline", baseline]
    code, text, _ = command(*again)
    assert code == 0 and text.startswith("GO: the same decision to the byte (sha256:")
    code, _, err = command("gate", "verify", out)
    assert code == 2 and "does not say where the candidate's report is" in err
    code, _, err = command("gate", "verify", out, "--candidate", baseline, "--baseline", baseline)
    assert code == 2 and "not the one that was judged" in err
    forged = json.loads((out / "decision.json").read_text())
    forged["rules"][0]["checks"][0]["value"] = 0.99
    forged["outcome"] = "NO-GO"
    (out / "decision.json").write_text(json.dumps(forged))
    code, text, _ = command(*again)
    assert code == 1 and "rules[0].checks[0].value: 0.99 was written, 0.852 is right" in text


def test_json_is_the_record(contract, reports):
    code, out, _ = command("gate", contract, "--candidate", reports[0], "--baseline", reports[1], "--json")
    record = json.loads(out)
    assert code == 0 and record["kind"] == "decision" and record["outcome"] == "GO"
    assert record["rules"][1]["checks"][0]["margin"] == "0.05"


def test_lint_says_what_cannot_be_reached(tmp_path, contract, reports):
    contract.write_text(
        "math_correct_rate(tools).lower_ci >= 0.98\nrule_violation_rate(tools).lower_ci <= 0.05\n"
    )
    code, out, _ = command("gate", "lint", contract)
    assert code == 2 and "rules.txt:2:1: error: lower_ci <= points the wrong way" in out
    assert "sizes are not known" in out
    contract.write_text("math_correct_rate(tools).lower_ci >= 0.98\n")
    assert command("gate", "lint", contract, "--n", "tools=182")[0] == 2
    code, out, _ = command(
        "gate", "lint", contract, "--n", "tools=1000", "--true", "math_correct_rate(tools)=0.99"
    )
    assert code == 0 and "80 % needs 1295 cases" in out
    code, out, _ = command("gate", "lint", contract, "--report", reports[0], "--json")
    assert code == 0 and json.loads(out)[0]["level"] == "note"
    code, _, err = command("gate", "lint", contract, "--n", "tools")
    assert code == 2 and "expected NAME=NUMBER" in err
    assert command("gate", "lint", contract, "--n", "tools=many")[0] == 2


def test_lint_takes_its_sizes_from_a_suite(tmp_path):
    rules = tmp_path / "rules.txt"
    rules.write_text("math_correct_rate(math_basic).lower_ci >= 0.98\nsuccess@1(divison_hard).point >= 0.5\n")
    code, out, _ = command("gate", "lint", rules, "--suite", "standard", "--json")
    assert code == 2
    (unknown,) = [finding for finding in json.loads(out) if finding["level"] == "error"]
    assert unknown["line"] == 2 and "division_hard" in unknown["message"]
    rules.write_text("math_correct_rate(math_basic).lower_ci >= 0.98\n")
    assert command("gate", "lint", rules, "--suite", "standard")[0] == 0
    assert command("gate", "lint", rules, "--suite", "standard", "--n", "math_basic=182")[0] == 2


def test_the_stage_keeps_a_decision_that_knows_its_reports(tmp_path, contract):
    """Reports in a home, the stage run on them, and verified without being told where they are."""
    from posttrain.artifacts.home import open_home

    home = tmp_path / "home"
    opened = open_home(Settings(home))
    digests = {}
    before, after = shifted(12, 8, 840, 1000)
    for name, success in (("candidate", after), ("baseline", before)):
        with opened.store.writer("report") as writer:
            write_outcomes(writer.directory, make_report(rows("tools", success)))
            digests[name] = writer.commit().digest
    inputs = [f"--input={name}={digest}" for name, digest in digests.items()]
    text = contract.read_text()
    code, out, err = command(
        "stage", "gate", *inputs, "--set", f"contract={json.dumps(text)}", "--home", home
    )
    assert code == 0, err
    (artifact,) = (a for d in opened.store.digests() if (a := opened.store.get(d)).kind == "decision")
    assert artifact.meta == {"outcome": "GO"} and dict(artifact.inputs) == digests
    code, out, err = command("gate", "verify", artifact.digest, "--home", home)
    assert code == 0 and "the same decision to the byte" in out, err
    refs = [f"--{name}={digest[:15]}" for name, digest in digests.items()]
    code, out, _ = command("gate", contract, *refs, "--home", home, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(opened.store.read_bytes(artifact, "decision.json"))
    code, _, err = command("stage", "gate", *inputs, "--set", "contract=success@1.pont >= 1", "--home", home)
    assert code == 2 and "no statistic 'pont'" in err


def test_a_slice_that_never_failed_is_no_proof(tmp_path, contract):
    contract.write_text("success@1(tools).lower_ci >= 0.99\n")
    for cases, code in ((1, 3), (367, 3), (368, 0)):
        made = folder(tmp_path / f"n{cases}", plain(flags(cases, cases)))
        assert command("gate", contract, "--candidate", made)[0] == code
