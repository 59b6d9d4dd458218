"""Running an answer's code against tests, in the sandbox.

The program is run first, as ``__main__``; then each test gets what came of it. The harness ends with one line that
holds a word which only it was told, so a program that ends the process early, or prints that it passed, has not passed.
The tests are read and removed before the program runs, so it cannot fit itself to them.
*Not covered*: code that looks into the harness's own frames, since both share a process; such code is plain to see in
the answer, and a second judgement of its text (``deprecation``, ``rule_set``) does not depend on it.
"""

from __future__ import annotations

import ast
import json
import secrets
from collections.abc import Mapping
from typing import Any

from posttrain.environments.records import Answer, Case
from posttrain.environments.sandbox import Program, RunResult, Sandbox
from posttrain.evaluation.graders import config as c
from posttrain.evaluation.graders.code_blocks import split_code
from posttrain.evaluation.graders.records import Grade, Metric
from posttrain.evaluation.graders.texts import Verdict

_HARNESS = b"""\
import contextlib, io, json, os, sys, types

def main():
    word = sys.stdin.readline().strip()
    sys.stdin = io.StringIO()
    source = open("answer.py", encoding="utf-8").read()
    ran, printed = {"__name__": "__main__", "__file__": "answer.py"}, io.StringIO()
    tests = {"__name__": "tests"}
    exec(compile(open("tests.py", encoding="utf-8").read(), "tests.py", "exec"), tests)
    os.remove("tests.py")
    os.remove("harness.py")
    failed = []
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(source, "answer.py", "exec"), ran)
    except BaseException as error:
        failed.append(["the program", type(error).__name__ + ": " + str(error)])
    run = types.SimpleNamespace(namespace=ran, stdout=printed.getvalue(), source=source)
    passed = 0
    for name in [] if failed else [name for name in tests if name.startswith("test_")]:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                tests[name](run)
            passed += 1
        except BaseException as error:
            failed.append([name, type(error).__name__ + ": " + str(error)])
    sys.__stdout__.write("\\n" + word + json.dumps([passed, failed]) + "\\n")

main()
"""
_MAX_REASON = 200


class UnitTests(Verdict):
    """The code runs and its tests pass."""

    usual_metric = "unit_tests_pass"
    meaning = "The answer's code runs in the sandbox and passes its tests."
    config: c.UnitTestsConfig

    def __init__(self, config: c.UnitTestsConfig, files: Mapping[str, bytes], sandbox: Sandbox) -> None:
        super().__init__(config)
        self._files = {name: files[name] for name in config.files}
        self._sandbox = sandbox

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict."""
        return super().metrics

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Run the answer's Python; None where the sandbox failed."""
        code = split_code(answer.text).python
        if not code.strip():
            return self.verdict(False, "no code")
        tests = str(case.expected[self.config.expects])
        expected = sum(
            isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            for node in ast.parse(tests).body
        )
        word = secrets.token_hex(16)
        files = {
            **self._files,
            "answer.py": code.encode(errors="replace"),
            "tests.py": tests.encode(),
            "harness.py": _HARNESS,
        }
        run = self._sandbox.run(Program(files, entry="harness.py", stdin=word + "\n"))
        if run.result is None:
            return self.verdict(None, run.reason)
        fault = _fault(run.result, word, expected)
        return self.verdict(not fault, fault[:_MAX_REASON])


def _fault(result: RunResult, word: str, expected: int) -> str:
    if result.stopped_by is not None:
        return "stopped by " + result.stopped_by.replace("_", " ")
    last = result.stdout.rstrip("\n").rpartition("\n")[2]
    if not last.startswith(word):
        words = result.stderr.strip().splitlines()
        return f"ended before its tests: {words[-1] if words else f'status {result.exit_code}'}"
    report: list[Any] = json.loads(last.removeprefix(word))
    passed, failed = report
    if failed:
        return f"{failed[0][0]}: {failed[0][1]}"
    return "" if passed == expected else f"{passed} of {expected} tests passed"
