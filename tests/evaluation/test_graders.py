"""Each kind of grader: what passes, what fails, what cannot be graded, and configs that say what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.core.errors import ConfigError
from posttrain.environments import Answer, Case, SliceSpec, ToolCall, ToolSpec
from posttrain.environments.sandbox import Program, Sandbox, SandboxRun
from posttrain.evaluation.graders import (
    KINDS,
    Grade,
    GradingResources,
    SliceGraders,
    build_grader,
    read_grader,
)
from posttrain.evaluation.graders.code_blocks import split_code


def grade(config: dict[str, Any], text: str, **expected: Any) -> Grade:
    return build_grader(config).grade(
        Case("c", "alone", ({"role": "user", "content": "?"},), expected), Answer(text)
    )


VERSION = {"kind": "version_match", "version": "3.2.1"}
PINNED = {**VERSION, "package": "search-sdk"}
OLD = {"kind": "deprecation", "names": ["SearchClient.legacy_lookup"]}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
LIMIT = {"kind": "word_limit", "max_words": 3, "min_words": 2}
STEPS = {"kind": "step_check", "min_steps": 1}
DIVIDED = {"kind": "numeric", "source": "last_number", "tolerance": "0.0005"}


@pytest.mark.parametrize(
    ("config", "text", "expected", "passed"),
    [
        ({"kind": "exact"}, " Paris\n", "Paris", True),
        ({"kind": "exact"}, "paris", "Paris", False),
        ({"kind": "exact", "ignore_case": True}, "paris", "Paris", True),
        ({"kind": "exact", "source": "tag"}, "So <answer>Paris</answer>", "Paris", True),
        ({"kind": "exact", "source": "tag"}, "Paris", "Paris", False),
        ({"kind": "numeric"}, "<answer>5 apples</answer>", "5", True),
        ({"kind": "numeric"}, "5", "5", False),
        ({"kind": "numeric"}, "<answer>5</answer> or <answer>6</answer>", "5", False),
        ({"kind": "numeric"}, "<answer>five</answer>", "5", False),
        ({"kind": "numeric"}, "<answer>5</answer>", "five or so", None),
        (DIVIDED, "That is 1.769", "23/13", True),
        (DIVIDED, "That is 1.7692", "23/13", True),
        (DIVIDED, "<answer>1.7695</answer>", "23/13", True),
        (DIVIDED, "<answer>1.77</answer>", "23/13", False),
        (DIVIDED, "<answer>1.768</answer>", "23/13", False),
        (DIVIDED, "<think>1.769", "23/13", False),
        (DIVIDED, "no idea", "23/13", False),
        ({"kind": "numeric", "source": "last_number", "tolerance": "0.1"}, "0.3", "0.4", True),
        ({"kind": "regex", "pattern": "^yes"}, "Yes!", "", True),
        ({"kind": "regex", "pattern": "yes", "present": False}, "Oh yes", "", False),
        ({"kind": "regex", "pattern": "yes", "ignore_case": False}, "Yes", "", False),
        ({"kind": "json_schema", "schema": SCHEMA}, '{"n": 1}', "", True),
        ({"kind": "json_schema", "schema": SCHEMA}, '{"n": 1.5}', "", False),
        ({"kind": "json_schema", "schema": SCHEMA}, '{"n": 1', "", False),
        ({"kind": "json_schema", "schema": {"type": "number"}}, "NaN", "", False),
        (
            {"kind": "json_schema", "schema": SCHEMA, "source": "block"},
            'Here:\n```json\n{"n": 1}\n```',
            "",
            True,
        ),
        ({"kind": "json_schema", "schema": SCHEMA, "source": "block"}, '{"n": 1}', "", False),
        (LIMIT, "one two three", "", True),
        (LIMIT, "one two three four", "", False),
        (LIMIT, "one", "", False),
        ({"kind": "answer_tag"}, "So <answer>5</answer>", "", True),
        ({"kind": "answer_tag"}, "<answer>5</answer> it is", "", False),
        (STEPS, "13 × 1 = 13, 23 - 13 = 10", "", True),
        (STEPS, "23 / 13 = 1.769", "", True),
        (STEPS, "23 ÷ 13 ≈ 2", "", True),
        (STEPS, "23 ÷ 13 = 2", "", False),
        (STEPS, "23 / 13 = 1.768", "", False),
        (STEPS, "23 / 0 = 1", "", False),
        (STEPS, "13 * 2 = 27", "", False),
        (STEPS, "1,000 + 5 = 1,005", "", True),
        (STEPS, "no sums", "", False),
        ({"kind": "step_check"}, "2 + 3 * 4 = 14 is a chain, and 2 - 1 = 3 - 2 is one, too", "", True),
        (VERSION, "Use 3.2.1.", "", True),
        (VERSION, "SDK v3.2.1", "", True),
        (VERSION, "pip install x==3.2.1", "", True),
        (VERSION, "x>=3.2.1,<4", "", True),
        (VERSION, "Use 3.2.10", "", False),
        (VERSION, "Use 13.2.1", "", False),
        (VERSION, "Use 3.2.1rc1 or 3.2.1.4 or 3.2.1-beta", "", False),
        (VERSION, "Use 3.2", "", False),
        (PINNED, "v3.2.1: `pip install search-sdk==3.2.1`", "", True),
        (PINNED, "v3.2.1: `pip install search_sdk[all]==3.2.1 other`", "", True),
        (PINNED, "v3.2.1: pip install search-sdk", "", False),
        (PINNED, "v3.2.1: pip install search-sdk==3.1.0", "", False),
        (PINNED, "not v3.2.1 but search-sdk==3.2.0", "", False),
        (PINNED, "The search-sdk v3.2.1 is installed", "", True),
        (OLD, "```python\nSearchClient().query('x')\n```", "", True),
        (OLD, "```python\nSearchClient().legacy_lookup()\n```", "", False),
        (OLD, "```python\nfrom sdk import legacy_lookup\n```", "", False),
        (OLD, "```python\nf = getattr(client, 'legacy_lookup')\n```", "", False),
        (OLD, "```python\n# legacy_lookup() is old\nprint('legacy_lookup')\n```", "", True),
        (OLD, "```python\nclient.legacy_lookup(\n```", "", False),
        (OLD, "```\n$ client.legacy_lookup()  # x\n```", "", False),
        (OLD, "Verify with `SearchClient.legacy_lookup()`.", "", False),
        (OLD, "`SearchClient.legacy_lookup()` is deprecated: use `query`.", "", True),
        (OLD, "Use query instead of legacy_lookup. Done.", "", True),
        (OLD, "Don't guess. Call legacy_lookup() first.", "", False),
    ],
)
def test_one_answer(config: dict[str, Any], text: str, expected: str, passed: bool | None) -> None:
    found = grade(config, text, answer=expected)
    assert found.passed is passed, found
    assert found.reason or found.passed


RULES = {
    "kind": "rule_set",
    "rules": [
        {"name": "polite", "must": ["please", "thank"]},
        {"name": "no_promise", "must_not": ["guarantee", "promise"]},
    ],
}


@pytest.mark.parametrize(
    ("text", "violations", "reason"),
    [
        ("Please wait.", 0, ""),
        ("Wait.", 1, "1 rule violation: polite"),
        ("I promise.", 2, "2 rule violations: polite, no_promise"),
    ],
)
def test_rules_are_counted(text: str, violations: int, reason: str) -> None:
    found = grade(RULES, text)
    assert (found.passed, found.reason) == (violations == 0, reason)
    assert found.metrics["rule_violations"] == violations
    assert found.metrics["rule_violation"] == (violations > 0)
    assert grade({**RULES, "allowed": 2}, text).passed is True


TOOL = ToolSpec("look", "", {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]})
OTHER = ToolSpec("read", "", {"type": "object"})


@pytest.mark.parametrize(
    ("calls", "config", "fault"),
    [
        ([("look", {"q": "x"})], {}, ""),
        ([], {}, ""),
        ([], {"min_calls": 1}, "0 tool calls, at least 1"),
        ([("look", {})], {}, "look: 'q' is a required property"),
        ([("look", {"q": 1})], {}, "look: ['q']: 1 is not of type 'string'"),
        ([("look", None)], {}, "look: the arguments are not a JSON object"),
        ([("find", {"q": "x"})], {}, "unknown tool 'find'"),
        ([("secret", {})], {}, "unknown tool 'secret'"),
        ([("look", {"q": "x"}), ("read", {})], {"order": ["look", "read"]}, ""),
        (
            [("read", {}), ("look", {"q": "x"})],
            {"order": ["look", "read"]},
            "not called in the order look, read",
        ),
    ],
)
def test_tool_calls(calls: list[tuple[str, Any]], config: dict[str, Any], fault: str) -> None:
    data = {"kind": "tool_call_schema", "name": "tools", **config}
    spec = SliceSpec("s", "", (), (data,), ("tools",), tools=(TOOL, OTHER, ToolSpec("secret", "", {})))
    case = Case("c", "s", (), tools=("look", "read"))
    found = SliceGraders(spec).grade(case, Answer("", tuple(ToolCall(*call) for call in calls)))
    assert found.success is (not fault)
    assert found.grades["tools"].reason == fault
    assert found.metrics == {"tool_call_correctness.schema": not fault, "tool_calls": len(calls)}


def test_steps() -> None:
    grader = build_grader({"kind": "steps", "max_steps": 2})
    case = Case("c", "alone", ())
    assert grader.grade(case, Answer("", turns=2)).metrics["steps_to_solve"] == 2
    assert grader.grade(case, Answer("", turns=2)).passed is True
    assert grader.grade(case, Answer("", turns=3)).passed is False
    assert grader.grade(case, Answer("", turns=2, finish="turns")).passed is False


TESTS = """
def test_value(run): assert run.namespace["x"] == 3
def test_output(run): assert run.stdout == "hi\\n"
"""


FILE_GONE = "the program: FileNotFoundError: [Errno 2] No such file or directory: 'tests.py'"


@pytest.fixture(scope="module")
def unit_tests() -> Any:
    with Sandbox() as sandbox:
        spec = SliceSpec(
            "s",
            "",
            (),
            ({"kind": "unit_tests", "files": ["lib.py"]},),
            ("unit_tests",),
            files={"lib.py": b"three = 3"},
        )
        yield SliceGraders(spec, GradingResources(sandbox=sandbox))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("from lib import three as x\nprint('hi')", ""),
        ("if __name__ == '__main__':\n    x = 3\n    print('hi')", ""),
        ("x = 4\nprint('hi')", "test_value: AssertionError: "),
        ("x = 3 +", "the program: SyntaxError: invalid syntax (answer.py, line 1)"),
        ("import nothing_like_this", "the program: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("import sys; sys.exit(0)", "the program: SystemExit: 0"),
        ("import os; os._exit(0)", "ended before its tests: status 0"),
        ("print('[2, []]'); import os; os._exit(0)", "ended before its tests: status 0"),
        ("print(open('tests.py').read())", FILE_GONE),
        ("x = bytearray(10**10)", "the program: MemoryError: "),
    ],
)  # fmt: skip
def test_code_in_the_sandbox(unit_tests: SliceGraders, code: str, reason: str) -> None:
    case = Case("c", "s", (), {"tests": TESTS})
    found = unit_tests.grade(case, Answer(f"Try this:\n```python\n{code}\n```\n"))
    assert found.grades["unit_tests"].reason == reason
    assert found.success is (not reason)


def test_code_that_never_ends_has_failed_and_a_broken_sandbox_has_not() -> None:
    data = {"kind": "unit_tests", "sandbox": {"wall_seconds": 0.5}}
    spec = SliceSpec("s", "", (), (data,), ("unit_tests",))
    graders = SliceGraders(spec)
    case = Case("c", "s", (), {"tests": TESTS})
    found = graders.grade(case, Answer("```python\nwhile True: pass\n```"))
    assert (found.success, found.reason) == (False, "unit_tests: stopped by wall clock")
    assert graders.grade(case, Answer("No code, sorry.")).reason == "unit_tests: no code"
    graders.close()
    broken = SliceGraders(spec, GradingResources(sandbox=NoSandbox()))
    found = broken.grade(case, Answer("```python\nx = 3\n```"))
    assert found.success is None
    assert found.metrics == {"unit_tests_pass": None}
    assert "no room" in found.reason


class NoSandbox(Sandbox):
    """A sandbox on a machine that is out of resources."""

    def run(self, program: Program) -> SandboxRun:
        return SandboxRun(None, "the sandbox failed: no room")


def test_the_pass_rule() -> None:
    spec = SliceSpec(
        "s",
        "",
        (),
        (
            {"kind": "regex", "name": "a", "pattern": "a"},
            {"kind": "exact", "name": "none", "expects": "missing"},
            {"kind": "regex", "name": "extra", "pattern": "z"},
        ),
        ("a", "none"),
    )
    graders = SliceGraders(spec)
    case = Case("c", "s", (), {})
    missing = graders.grade(case, Answer("a"))
    assert missing.success is None
    assert missing.grades["none"].reason == "the grader raised KeyError: 'missing'"
    assert missing.metrics == {"a_pass": True, "none_pass": None, "extra_pass": False}
    assert graders.grade(case, Answer("b")).success is False
    assert graders.grade(Case("c", "s", (), {"missing": "a"}), Answer("a")).success is True


@pytest.mark.parametrize(
    ("data", "says", "hint"),
    [
        ({"kind": "numerics"}, "unknown kind of grader 'numerics'", "did you mean 'numeric'?"),
        ({}, "unknown kind of grader None", ""),
        ({"kind": "numeric", "tolerence": 1}, "the grader 'numeric': tolerence", "did you mean 'tolerance'?"),
        ({"kind": "numeric", "tolerance": -1}, "greater than or equal to 0", "change `tolerance`"),
        ({"kind": "regex", "pattern": "("}, "is not a regular expression", "change `pattern`"),
        ({"kind": "json_schema", "schema": {"type": "thing"}}, "not a JSON schema", "change `schema`"),
        ({"kind": "word_limit", "max_words": 1, "min_words": 2}, "lower min_words", ""),
        ({"kind": "rule_set"}, "the rule set is empty", ""),
        ({"kind": "version_match", "version": "v3"}, "version", ""),
        ({"kind": "llm_judge"}, "judge", ""),
    ],
)
def test_a_config_says_what_is_wrong(data: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_grader(data)
    assert says in str(caught.value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("graders", "required", "says"),
    [
        ([{"kind": "exact"}, {"kind": "exact"}], ["exact"], "two graders are called 'exact'"),
        ([{"kind": "exact"}], [], "requires no grader"),
        ([{"kind": "exact"}], ["exakt"], "has no grader 'exakt'"),
        (
            [{"kind": "numeric"}, {"kind": "numeric", "name": "b"}],
            ["b"],
            "two graders fill the column 'math_correct'",
        ),
        ([{"kind": "unit_tests", "files": ["x"]}], ["unit_tests"], "has no file 'x'"),
        ([{"kind": "rule_set", "counts": ["nobody"]}], ["rule_set"], "has no grader 'nobody'"),
        ([{"kind": "reward_model"}], ["reward_model"], "needs a reward model"),
        ([{"kind": "llm_judge", "judge": {"kind": "model"}}], ["llm_judge"], "needs a judge model"),
    ],
)
def test_a_slice_says_what_is_wrong(graders: list[dict[str, Any]], required: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SliceGraders(SliceSpec("s", "", (), tuple(graders), tuple(required)))


def test_every_kind_is_built() -> None:
    assert len(KINDS) == 16


def test_fences() -> None:
    text = "a\n```python\nx\n```\nb\n~~~\n```\ny\n~~~\n````py\n```\nz\n````\n```sh\nopen to the end"
    split = split_code(text)
    assert [(block.language, block.code) for block in split.blocks] == [
        ("python", "x\n"),
        ("", "```\ny\n"),
        ("py", "```\nz\n"),
        ("sh", "open to the end\n"),
    ]
    assert split.prose == "a\nb"
    assert split.python == "x\n\n```\nz\n"
    assert split_code("```\nx\n```").python == "x\n"


@pytest.mark.parametrize(
    ("text", "language", "passed"),
    [
        ("<think>Start with 3. Add 3+2=5.</think><answer>5</answer>", "en", True),
        ("<think>Start with 3. 买更多的东西应该是叠加的。</think><answer>5</answer>", "en", False),
        ("<think>现在有3个。加3+2=5。</think><answer>5</answer>", "zh", True),
        ("<think>3+2=5</think><answer>5</answer>", "zh", True),
        ("<think>Start with 3.</think><answer>5</answer>", "", None),
    ],
)
def test_reasoning_in_one_language(text: str, language: str, passed: bool | None) -> None:
    tags = {"language": language} if language else {}
    case = Case("c", "alone", ({"role": "user", "content": "Alice has 3 apples."},), tags=tags)
    found = build_grader({"kind": "one_language"}).grade(case, Answer(text))
    assert found.passed is passed
    assert found.metrics == {"one_language": passed}
