"""Tools answer what was recorded or follows from frozen data; all else fails, and the nearest call is shown."""

from __future__ import annotations

import json
from typing import Any

from posttrain.environments.records import ToolCall
from posttrain.environments.suites.suite import Suite
from posttrain.environments.tools import BAD_ARGUMENTS, NOT_RECORDED, UNKNOWN_TOOL, FrozenTools, ToolAnswer

OFFERED = ("lookup", "docs", "read", "now")


def ask(
    suite: Suite, name: str, arguments: dict[str, Any] | None, offered: tuple[str, ...] = OFFERED
) -> ToolAnswer:
    raw = json.dumps(arguments) if arguments is not None else "{oops"
    return FrozenTools(suite, suite.slice("debug")).answer(ToolCall(name, arguments, raw), offered)


def test_recorded_replies_are_found_whatever_the_order_of_the_arguments(suite: Suite) -> None:
    assert ask(suite, "lookup", {"exact": True, "name": "search-sdk"}).call.reply == "exactly 3.2.1"
    answer = ask(suite, "lookup", {"name": "search-sdk"})
    assert (answer.shown, answer.miss) == ("3.2.1", None)


def test_what_was_never_recorded_fails_and_the_nearest_call_is_shown(suite: Suite) -> None:
    answer = ask(suite, "lookup", {"name": "search-sdk2"})
    assert answer.call.reply is None
    assert answer.miss is not None
    assert answer.miss.nearest == '{"name":"search-sdk"}'
    assert 'lookup({"name":"search-sdk2"}) was never recorded; the nearest' in answer.miss.why
    # The model learns that it failed, and not what would have worked.
    assert answer.shown == NOT_RECORDED
    assert "search" not in answer.shown


def test_unknown_tools_and_broken_arguments_fail(suite: Suite) -> None:
    unknown = ask(suite, "lookups", {"name": "x"})
    assert unknown.shown == UNKNOWN_TOOL
    assert unknown.miss is not None and "did you mean 'lookup'" in unknown.miss.why
    assert ask(suite, "lookup", {"name": "search-sdk"}, offered=("docs",)).shown == UNKNOWN_TOOL
    broken = ask(suite, "lookup", None)
    assert (broken.shown, broken.call.raw) == (BAD_ARGUMENTS, "{oops")
    assert ask(suite, "lookup", {"name": 2**60}).miss is not None


def test_computed_tools_follow_from_the_suite(suite: Suite) -> None:
    assert ask(suite, "now", {}).call.reply == "2026-03-04T05:06:07Z"
    assert ask(suite, "read", {"path": "sdk/README.md"}).call.reply == "# SDK\nPin 3.2.1.\n"
    for outside in ("../../etc/passwd", "/etc/passwd", "sdk", ""):
        assert ask(suite, "read", {"path": outside}).miss is not None
    found = ask(suite, "docs", {"query": "version 3"}).call.reply
    assert found is not None and found.startswith("[migration]\n") and "[release]\n" in found
    assert ask(suite, "docs", {"query": "zebra"}).call.reply == "no document matches"
    assert ask(suite, "docs", {"query": 3}).miss is not None
