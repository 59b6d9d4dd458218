"""environments: the frozen world in which a model is judged: cases, tools with recorded replies, files, an index.

Here: what a case and an answer are (``records``), and what answers run against. Not here: grading an answer and running
a suite (``evaluation``).
"""

from __future__ import annotations

from posttrain.core.lazy import lazy_names
from posttrain.environments.records import Answer, Case, ToolCall
from posttrain.environments.suites.slice_records import SliceSpec, ToolSpec, call_key

__all__ = [
    "SOURCES",
    "SUITE_FILE",
    "SYSTEM_PROMPT",
    "Answer",
    "Case",
    "Endpoint",
    "FrozenTools",
    "PolicyConfig",
    "Program",
    "RunResult",
    "Sandbox",
    "SandboxConfig",
    "SliceSpec",
    "Suite",
    "SuiteDiff",
    "SuiteSettings",
    "ToolCall",
    "ToolMiss",
    "ToolSpec",
    "build_from_folder",
    "build_from_slices",
    "build_policy",
    "build_slice",
    "call_key",
    "change_settings",
    "check_files",
    "close_network",
    "closed_network",
    "diff_suites",
    "endpoint_of",
    "frozen_environment",
    "frozen_zone",
    "parse_contents",
    "parse_suite",
    "read_files",
    "read_suite",
    "suite_files",
    "write_suite",
]

_HOMES = {
    "sandbox": ("Program", "RunResult", "Sandbox", "SandboxConfig"),
    "suites.build": ("build_from_folder", "build_from_slices", "change_settings"),
    "suites.diff": ("diff_suites",),
    "suites.files": (
        "SUITE_FILE",
        "check_files",
        "parse_contents",
        "parse_suite",
        "read_files",
        "read_suite",
        "suite_files",
        "write_suite",
    ),
    "suites.freeze": (
        "Endpoint",
        "close_network",
        "closed_network",
        "endpoint_of",
        "frozen_environment",
        "frozen_zone",
    ),
    "suites.policies": ("PolicyConfig", "build_policy"),
    "suites.slices": ("SOURCES", "build_slice"),
    "suites.suite": ("SYSTEM_PROMPT", "Suite", "SuiteDiff", "SuiteSettings"),
    "tools": ("FrozenTools", "ToolMiss"),
}


__getattr__ = lazy_names(__name__, _HOMES)
