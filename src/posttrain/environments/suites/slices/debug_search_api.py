"""debug_search_api: trouble with a client library of which some methods are out of date.

An answer's Python has to run with the bundled ``search_sdk`` 3.2.1, the answer cites that version pinned, and uses no
deprecated method. Tools: ``search_api`` (the documentation) and ``read_file`` (the code base), with recorded replies.
Calls that are valid by the tools' schemas, and the number of steps, are measured and not required: promotion rules look
at them by themselves. Here: the generator, its rule, its scripted answers. Kinds of trouble are in ``_debug_topics``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from posttrain.environments.records import Answer, Case
from posttrain.environments.suites.slice_records import SliceSpec, ToolSpec, call_key
from posttrain.environments.suites.slices._debug_topics import TOPICS, Topic, filled
from posttrain.environments.suites.slices._parts import (
    Ask,
    SliceSource,
    called,
    case_id,
    make_cases,
    pick,
    said,
    user,
)

NAME = "debug_search_api"
VERSION = "3.2.1"
PACKAGE = "search-sdk"
SDK_FILE = "search_sdk.py"
_SERVICES = ("checkout", "billing", "catalog", "profiles", "reports", "mobile-api", "support", "partner-feed")
_PLANS = ("free", "team", "business", "trial")
_REGIONS = ("eu-west", "us-east", "us-west", "ap-south", "sa-east", "af-north")
_REPORTS = ("weekly-usage", "churn", "latency", "revenue", "errors-by-team", "cold-queries")
_WHEN = ("this morning", "last night", "Monday", "the 14:00 deploy", "the upgrade", "9 am")
_BY_NAME: Mapping[str, Topic] = {topic.name: topic for topic in TOPICS}


def build(seed: int, count: int) -> SliceSpec:
    """The slice."""
    files = _files()
    return SliceSpec(
        name=NAME,
        summary="Client library trouble: code that runs, v3.2.1 pinned, no deprecated method",
        cases=make_cases(NAME, seed, count, _case),
        graders=GRADERS,
        required=("unit_tests", "version", "deprecation"),
        tools=_tools(files),
        files=files,
        documents={f"{PACKAGE}-{VERSION}/{topic.name}": topic.document for topic in TOPICS},
    )


GRADERS: tuple[Mapping[str, object], ...] = (
    {
        "kind": "unit_tests",
        "name": "unit_tests",
        "files": [SDK_FILE],
        "title": "Unit tests",
        "check": "Code runs/compiles",
        "pass_note": "Mock environment works",
    },
    {
        "kind": "version_match",
        "name": "version",
        "version": VERSION,
        "package": PACKAGE,
        "title": "Version reference check",
        "check": f'Must include "v{VERSION}"',
        "pass_note": "Version pinned",
    },
    {
        "kind": "deprecation",
        "name": "deprecation",
        "names": [f"SearchClient.{topic.deprecated}" for topic in TOPICS],
        "title": "Deprecation check",
        "check": "No deprecated API",
        "pass_note": "None found",
    },
    {
        "kind": "rule_set",
        "name": "rule_summary",
        "counts": ["version", "deprecation"],
        "title": "Rule violation summary",
        "check": "Aggregated",
        "pass_note": "0 rule violations",
    },
    {"kind": "tool_call_schema", "name": "tool_calls"},
    {"kind": "steps", "name": "steps", "max_steps": 5},
)
"""Graders of the slice; the first four are the table of the specification."""


def _case(rng: random.Random, number: int) -> Case:
    topic = TOPICS[number % len(TOPICS)]
    facts = {
        "service": rng.choice(_SERVICES),
        "when": rng.choice(_WHEN),
        "count": str(rng.randint(12, 999)),
        "user": f"u-{rng.randint(1000, 9999)}",
        "plan": rng.choice(_PLANS),
        "region": rng.choice(_REGIONS),
        "report": rng.choice(_REPORTS),
    }
    # The specification's own question stands once, as the first case.
    question = (
        topic.questions[0] if number == 0 else rng.choice(topic.questions[1 if topic.name == NAME else 0 :])
    )
    return Case(
        id=case_id(NAME, number),
        slice=NAME,
        messages=user(filled(question, facts)),
        expected={
            "version": VERSION,
            "tests": filled(topic.tests, facts),
            "topic": topic.name,
            "facts": facts,
        },
        tools=("search_api", "read_file"),
        tags={"topic": topic.name, "service": facts["service"]},
    )


@lru_cache(maxsize=1)
def _files() -> dict[str, bytes]:
    sdk = (Path(__file__).parent / "bundled" / SDK_FILE).read_bytes().replace(b"\r\n", b"\n")
    changes = "\n".join(
        f"- SearchClient.{t.deprecated}() is deprecated: use SearchClient.{t.current}()" for t in TOPICS
    )
    files = {
        SDK_FILE: sdk,
        "my_codebase/requirements.txt": f"{PACKAGE}=={VERSION}\n".encode(),
        "my_codebase/CHANGELOG-search-sdk.md": f"# {PACKAGE} {VERSION}\n\n## 3.2\n{changes}\n".encode(),
    }
    for service in _SERVICES:
        lines = (
            filled(t.log, {"service": service, "user": "u-1", "region": "eu-west", "report": "churn"})
            for t in TOPICS
        )
        files[f"my_codebase/logs/{service}.log"] = ("\n".join(lines) + "\n").encode()
    return files


def _tools(files: Mapping[str, bytes]) -> tuple[ToolSpec, ...]:
    text = {"type": "string", "minLength": 1}
    pages = {topic.name: topic.document for topic in TOPICS}
    pages |= {topic.deprecated: f"Deprecated since 3.2. {topic.document}" for topic in TOPICS}
    pages |= {topic.current: topic.document for topic in TOPICS}
    pages["version"] = f"The current version of {PACKAGE} is {VERSION}: pip install {PACKAGE}=={VERSION}"
    replies = {}
    for query, page in pages.items():
        for asked in ({"query": query}, {"query": query, "version": VERSION}):
            replies[call_key(asked)] = page
    return (
        ToolSpec(
            "search_api",
            f"Search the documentation of {PACKAGE}.",
            {
                "type": "object",
                "properties": {"query": text, "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}},
                "required": ["query"],
                "additionalProperties": False,
            },
            replies,
        ),
        ToolSpec(
            "read_file",
            "Read a file of the code base.",
            {
                "type": "object",
                "properties": {"path": text},
                "required": ["path"],
                "additionalProperties": False,
            },
            {call_key({"path": path}): data.decode() for path, data in files.items()},
        ),
    )


def _right(case: Case, ask: Ask) -> Answer:
    """Reads, looks up, and says what to pin and what to call."""
    topic = _BY_NAME[case.expected["topic"]]
    facts: dict[str, str] = dict(case.expected["facts"])
    calls = (
        called(ask, "read_file", {"path": f"my_codebase/logs/{facts['service']}.log"}),
        called(ask, "search_api", {"query": topic.name, "version": VERSION}),
    )
    text = (
        f"Plan (SDK v{VERSION}):\n1. Pin the SDK:\n```bash\npip install {PACKAGE}=={VERSION}\n```\n"
        f"2. Use `SearchClient.{topic.current}`; `SearchClient.{topic.deprecated}()` is deprecated since 3.2:\n"
        f"```python\n{filled(topic.right_code, facts)}```\n3. Run the tests to confirm the fix."
    )
    return said(case, text, calls)


def _wrong(case: Case, ask: Ask) -> Answer:
    """Helpful in tone, and it even runs: no version, and a deprecated method."""
    topic = _BY_NAME[case.expected["topic"]]
    facts: dict[str, str] = dict(case.expected["facts"])
    calls = (called(ask, "search_api", {"query": topic.name}),)
    opening = pick(
        case, "wrong", ("Happy to help with this!", "Good question.", "Let's get this sorted out together.")
    )
    text = (
        f"{opening} Three steps usually resolve this:\n1. Reinstall the SDK:\n```bash\npip install {PACKAGE}\n```\n"
        f"2. Verify with the lookup method:\n```python\n{filled(topic.wrong_code, facts)}```\n"
        "3. Run your tests to confirm the fixes. Let me know how it goes!"
    )
    return said(case, text, calls)


SOURCE = SliceSource(build, _right, _wrong)
