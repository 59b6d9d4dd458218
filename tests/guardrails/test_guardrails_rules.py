"""Blocked terms, injection markers, JSON schemas, requests, and rules as data."""

from __future__ import annotations

import copy
import json
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError
from posttrain.guardrails import ScanEnd, compile_guardrails, read_guardrails
from posttrain.guardrails.fold import fold
from posttrain.guardrails.phrases import INJECTION_MARKERS


def _terms(text: str, *terms: str) -> list[str]:
    plan = compile_guardrails(
        read_guardrails(
            {"rules": [{"kind": "blocked_terms", "where": "request", "action": "report", "terms": terms}]}
        )
    )
    return [text[f.start : f.end] for f in plan.request(text).findings]


@pytest.mark.parametrize(
    ("text", "term", "found"),
    [
        ("Bomb!", "bomb", ["Bomb"]),
        ("a bombastic claim", "bomb", []),
        ("b\u200bo\u2060m\u00adb", "bomb", ["b\u200bo\u2060m\u00adb"]),
        ("ｂｏｍｂ 𝐛𝐨𝐦𝐛 bömb", "bomb", ["ｂｏｍｂ", "𝐛𝐨𝐦𝐛", "bömb"]),
        ("bоmb", "bomb", ["bоmb"]),  # a Cyrillic o
        ("Project   X\nnow", "project x now", ["Project   X\nnow"]),
        ("project x", "Project-X", []),
        ("STRASSE", "straße", ["STRASSE"]),
        ("МОСКВА и москва", "Москва", ["МОСКВА", "москва"]),
        ("这是敏感词吗", "敏感词", ["敏感词"]),
        ("c++ and c+++", "c++", ["c++", "c++"]),
        ("under_bomb", "bomb", []),
    ],
)
def test_blocked_terms(text: str, term: str, found: list[str]) -> None:
    assert _terms(text, term) == found


def test_of_two_terms_at_one_place_the_longer_is_named() -> None:
    assert _terms("a b, a b c, a b cd", "a b", "a b c") == ["a b", "a b c", "a b"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab c.", min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=5),
    st.text("ab c."),
)
def test_terms_are_found_as_by_comparing_at_every_place(terms: list[str], text: str) -> None:
    words = sorted({" ".join(term.split()) for term in terms}, key=len, reverse=True)
    flat = " ".join(text.split())
    expected, place = [], 0
    while place < len(flat):
        for word in words:
            end = place + len(word)
            left = word[0].isalnum() and place and flat[place - 1].isalnum()
            right = word[-1].isalnum() and flat[end : end + 1].isalnum()
            if flat.startswith(word, place) and not left and not right:
                expected.append(word)
                place = end
                break
        else:
            place += 1
    assert _terms(flat, *terms) == expected


@given(st.text(max_size=50))
def test_folding_does_not_depend_on_where_a_text_is_cut(text: str) -> None:
    for cut in range(len(text) + 1):
        assert fold(text[:cut]) + fold(text[cut:]) == fold(text)


def _ask(prompt: Any, *rules: dict[str, Any]) -> Any:
    return compile_guardrails(read_guardrails({"rules": list(rules)})).request(prompt)


@pytest.mark.parametrize("marker", INJECTION_MARKERS[::9] + INJECTION_MARKERS[-20:])
def test_injection_markers(marker: str) -> None:
    rule = {"kind": "prompt_injection", "action": "block"}
    for role in ("user", "tool"):
        asked = _ask([{"role": role, "content": f"Hello. {marker.upper()} Now."}], rule)
        assert asked.action == "block"
        assert asked.findings[0].place == "messages[0].content"
    assert _ask([{"role": "system", "content": marker}], rule).action == "pass"
    assert _ask([{"role": "user", "content": marker}], {**rule, "sources": ["tool"]}).action == "pass"


def test_ordinary_talk_is_no_injection() -> None:
    text = (
        "Please follow the previous instructions, do not ignore the rules of chess, and forget your worries."
    )
    assert _ask(text, {"kind": "prompt_injection"}).action == "pass"


_PERSONAL = {"kind": "personal_data", "where": "request"}


def test_requests_are_redacted_in_every_place_and_the_original_is_left_alone() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "I am ann@example.com"},
        {"role": "user", "content": [{"type": "text", "text": "or bob@example.com"}, {"type": "image_url"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a":"c@d.org"}'}}]},
        {"role": "tool", "content": "from 203.0.113.9"},
    ]  # fmt: skip
    before = copy.deepcopy(messages)
    asked = _ask(messages, _PERSONAL)
    assert messages == before
    assert asked.prompt[0] is messages[0]
    assert [m["content"] for m in asked.prompt[1:2]] == ["I am [EMAIL]"]
    assert asked.prompt[2]["content"][0]["text"] == "or [EMAIL]"
    assert json.loads(asked.prompt[3]["tool_calls"][0]["function"]["arguments"]) == {"a": "[EMAIL]"}
    assert asked.prompt[4]["content"] == "from [IP]"
    assert [f.place for f in asked.findings] == [
        "messages[1].content",
        "messages[2].content[0]",
        "messages[3].tool_calls[0]",
        "messages[4].content",
    ]
    assert "example.com" not in json.dumps(asked.audit)


def test_a_clean_request_is_the_same_object() -> None:
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]
    asked = _ask(messages, _PERSONAL)
    assert asked.prompt is messages
    assert asked.action == "pass"
    assert _ask(["a", "b@c.org"], _PERSONAL).prompt == ["a", "[EMAIL]"]
    assert _ask([1, 2, 3], _PERSONAL).prompt == [1, 2, 3]  # token ids


def test_length_of_a_request() -> None:
    rule = {"kind": "length", "where": "request", "max_characters": 10, "action": "block"}
    assert (
        _ask([{"role": "user", "content": "12345"}, {"role": "user", "content": "67890"}], rule).action
        == "pass"
    )
    assert (
        _ask([{"role": "user", "content": "12345"}, {"role": "user", "content": "67890-"}], rule).action
        == "block"
    )


_JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


_BOTH = compile_guardrails(read_guardrails({"rules": [_PERSONAL, {"kind": "prompt_injection"}]}))
_MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": _JSON_VALUES | st.just("user"), "content": _JSON_VALUES, "tool_calls": _JSON_VALUES}
)


@settings(max_examples=80, deadline=None)
@given(st.lists(_MESSAGES | _JSON_VALUES, max_size=4))
def test_any_shape_of_a_request_is_survived(messages: list[Any]) -> None:
    asked = _BOTH.request(messages)
    assert asked.prompt == messages or asked.action == "redact"


def _answer(text: str, response_format: Any, **rule: Any) -> ScanEnd:
    plan = compile_guardrails(read_guardrails({"rules": [{"kind": "json_schema", **rule}]}))
    scan = plan.start(True, response_format)
    assert scan is not None
    sent = scan.feed(text)
    end = scan.finish()
    return end._replace(tail=sent + end.tail)


def _format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "response_format", "kind"),
    [
        ('{"a": 1}', _format(_SCHEMA), None),
        ('{"a": "x"}', _format(_SCHEMA), "not_schema"),
        ('{"a": 1', _format(_SCHEMA), "not_json"),
        ("hello", {"type": "json_object"}, "not_json"),
        ("[1]", {"type": "json_object"}, "not_json"),
        ("{}", {"type": "json_object"}, None),
        ("hello", {"type": "text"}, None),
        ("hello", None, None),
        ("{}", _format(7), "bad_schema"),
        ("{}", _format({"type": 7}), "bad_schema"),
        ("{}", _format({"$ref": "#/nowhere"}), "bad_schema"),
        ("{}", _format({"$ref": "http://127.0.0.1:9/x"}), "bad_schema"),
        ("[" * 90_000, _format({}), "not_json"),
        ("[" * 500 + "]" * 500, _format({}), "unfinished"),
    ],
)
def test_json_that_was_asked_for(text: str, response_format: Any, kind: str | None) -> None:
    end = _answer(text, response_format)
    assert [f.kind for f in end.findings] == ([kind] if kind else [])
    assert end.tail == text


def test_a_schema_that_blocks_waits_for_the_whole_answer() -> None:
    end = _answer('{"a": "x"}', _format(_SCHEMA), action="block")
    assert (end.tail, end.action, end.audit["mode"]) == ("", "block", "buffer")
    assert not end.audit["left_before_scan"]
    end = _answer("hello there, you", None, action="block")
    assert (end.audit["mode"], end.action) == ("window", "pass")
    assert _answer('{"a": "x"}', _format(_SCHEMA)).audit["late_rules"] == ["json_schema"]
    assert _answer('{"a": "x"}', None, json_schema=_SCHEMA).findings[0].kind == "not_schema"


def _bomb(depth: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]}
        for n in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{depth}": {}}}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (_bomb(40), "{}"),
        ({"$ref": "#"}, "{}"),
        ({"items": {"not": {"enum": list(range(2_000))}}}, json.dumps(["x"] * 5_000)),
        ({"uniqueItems": True}, json.dumps([{"a": n} for n in range(5_000)])),
    ],
)
def test_a_hostile_schema_is_not_worked_through(schema: dict[str, Any], text: str) -> None:
    start = process_time()
    assert _answer(text, _format(schema)).findings[0].kind in ("unfinished", "bad_schema")
    assert process_time() - start < 20  # worked through, the first would take years


def test_patterns_of_clients_are_passed_over_and_the_audit_says_so() -> None:
    end = _answer(json.dumps("a" * 60 + "!"), _format({"type": "string", "pattern": "^(a+)+$"}))
    assert end.findings == ()
    assert end.audit["schema_keywords_not_checked"]


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ({"rules": [{"kind": "blocked_term"}]}, "unknown kind of rule 'blocked_term'", "blocked_terms"),
        ({"rules": [{"kind": "blocked_terms", "terms": ["a"], "acton": "block"}]}, "acton", "action"),
        ({"rules": [{"kind": "blocked_terms", "terms": [" "]}]}, "characters", "guardrails.rules.0.terms"),
        ({"rules": [{"kind": "length"}]}, "max_characters", "guardrails.rules.0"),
        (
            {"rules": [{"kind": "prompt_injection", "action": "redact"}]},
            "action",
            "guardrails.rules.0.action",
        ),
        ({"rules": [{"kind": "json_schema", "where": "request"}]}, "where", "guardrails.rules.0.where"),
        ({"rules": [{"kind": "personal_data"}] * 2}, "there twice", "guardrails"),
        ({"streams": "window"}, "streams", "stream"),
        ([], "valid dict", "guardrails"),
    ],
)
def test_wrong_rules_are_named(data: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_guardrails(data)
    assert hint in (caught.value.hint or "")


def test_five_thousand_terms_compile_and_run() -> None:
    terms = [f"term {n:x} {n * n:x}" for n in range(5_000)]
    assert _terms("see term 10 100, term 1f 3c1 and term 1f 3c2.", *terms) == ["term 10 100", "term 1f 3c1"]
