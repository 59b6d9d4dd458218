"""A small suite with everything in it: recorded and computed tools, files, documents, two slices."""

from __future__ import annotations

from posttrain.environments.records import Case
from posttrain.environments.suites.slice_records import SliceSpec, ToolSpec, call_key
from posttrain.environments.suites.suite import SuiteSettings

LOOKUP = ToolSpec(
    "lookup",
    "Looks a release up.",
    {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    {
        call_key({"name": "search-sdk"}): "3.2.1",
        call_key({"name": "search-cli"}): "1.0",
        call_key({"name": "search-sdk", "exact": True}): "exactly 3.2.1",
    },
)
TEXT = {"type": "object", "properties": {"query": {"type": "string"}}}
SETTINGS = SuiteSettings.model_validate(
    {
        "name": "small",
        "clock": "2026-03-04T05:06:07Z",
        "computed_tools": {
            "docs": {"kind": "search", "limit": 2},
            "read": {"kind": "file"},
            "now": {"kind": "clock"},
        },
    }
)


def small_slices() -> list[SliceSpec]:
    cases = tuple(
        Case(
            f"debug-{n}",
            "debug",
            ({"role": "user", "content": f"Which version, {n}?"},),
            {"version": "3.2.1"},
            ("lookup", "docs", "read", "now"),
            {"level": "easy" if n % 2 else "hard"},
        )
        for n in range(4)
    )
    debug = SliceSpec(
        "debug",
        "names the version",
        cases,
        ({"kind": "regex", "name": "cites", "pattern": "3\\.2\\.1"},),
        ("cites",),
        (LOOKUP, *(ToolSpec(name, name, TEXT) for name in ("docs", "read", "now"))),
        {"sdk/README.md": b"# SDK\nPin 3.2.1.\n", "sdk/data.bin": bytes(range(256))},
        {
            "migration": "Version 3 drops legacy lookup.",
            "release": "Version 3.2.1 pins the cache.",
            "用户": "更新 API",
        },
    )
    sums = SliceSpec(
        "sums",
        "adds",
        tuple(
            Case(f"sum-{n}", "sums", ({"role": "user", "content": f"{n} + 1?"},), {"answer": str(n + 1)})
            for n in range(3)
        ),
        ({"kind": "exact", "name": "right", "expects": "answer"},),
        ("right",),
    )
    return [sums, debug]
