"""A streamed answer is scanned exactly as the whole text would be, and the audit says what was done."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.guardrails import GuardrailPlan, compile_guardrails, read_guardrails

_TERMS = ["bad word", "ass", "a b c d", "мир", "敏感", "<|x|>", "aaa", "aaab"]
_FRAGMENTS = [
    *(
        "ann@example.com",
        "@",
        ".",
        "b.co",
        "x" * 70,
        "GB82 WEST 1234 5698 7654 32",
        "GB82WEST",
        "DE",
        "4",
        "4242 4242 ",
    ),
    *(
        "4242424242424242",
        "+49 30 1234 5678",
        "(978)645-9740",
        "x11144",
        "219-09-9999",
        "ssn ",
        "219099999",
        "1.2.3.4",
    ),
    *(
        "2001:db8:0:0::7",
        "::",
        "passport ",
        "C01X00T47",
        "A1234567",
        "help@example.com",
        "+49 30 99",
        "call ",
        "9493 7477",
    ),
    *(
        "bad",
        "word",
        " ",
        "\n",
        "  ",
        "ass",
        "class",
        "aaa",
        "b",
        "м",
        "мир",
        "敏",
        "敏感",
        "\u200b",
        "é",
        "\ufb01",
        "４２",
    ),
    *("<|", "x|>", "a b  c", " d", "-", "/", "(", "1 1 1 1 1", "hello there, ", "2024-01-05"),
]
_TEXTS = st.lists(
    st.one_of(st.sampled_from(_FRAGMENTS), st.text(alphabet="ab@.1-: \u200bé", max_size=6)), max_size=14
).map("".join)
_ACTIONS = st.sampled_from(["report", "redact", "block"])


def _plan(personal: str, terms: str, stream: str = "window", *more: dict[str, Any]) -> GuardrailPlan:
    return compile_guardrails(
        read_guardrails(
            {
                "stream": stream,
                "rules": [
                    {
                        "kind": "personal_data",
                        "action": personal,
                        "allow": ["help@example.com", "+49 30 99 4242 4242"],
                    },
                    {"kind": "blocked_terms", "action": terms, "terms": _TERMS},
                    *more,
                ],
            }
        )
    )


def _stream(plan: GuardrailPlan, chunks: list[str]) -> tuple[str, Any]:
    scan = plan.start(stream=True)
    assert scan is not None
    sent = "".join([scan.feed(chunk) for chunk in chunks])
    end = scan.finish()
    return sent + end.tail, end


def _cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


_PLANS = {(a, b): _plan(a, b) for a in ("report", "redact", "block") for b in ("report", "redact", "block")}


@settings(max_examples=400, deadline=None)
@given(_TEXTS, st.lists(st.integers(0, 2000), max_size=12), _ACTIONS, _ACTIONS)
def test_any_chunks_give_what_the_whole_text_gives(
    text: str, cuts: list[int], personal: str, terms: str
) -> None:
    plan = _PLANS[personal, terms]
    whole, expected = _stream(plan, [text])
    for chunks in (_cut(text, cuts), list(text)):
        sent, end = _stream(plan, chunks)
        assert (sent, end.findings, end.action) == (whole, expected.findings, expected.action)
        assert end.audit["sent_characters"] == expected.audit["sent_characters"]
    scan = plan.start(stream=False)
    assert scan is not None
    scan.feed(text)
    buffered = scan.finish()
    assert buffered.findings == expected.findings
    assert buffered.tail == ("" if expected.action == "block" else whole)


@settings(max_examples=100, deadline=None)
@given(_TEXTS, st.lists(st.integers(0, 2000), max_size=12))
def test_nothing_that_was_found_ever_leaves(text: str, cuts: list[int]) -> None:
    sent, end = _stream(_PLANS["redact", "redact"], _cut(text, cuts))
    kept = [text[f.start : f.end] for f in end.findings]
    rest, place = [], 0
    for finding in sorted(end.findings, key=lambda f: f.start):
        rest.append(text[place : max(place, finding.start)])
        place = max(place, finding.end)
    rest.append(text[place:])
    for plain in rest:  # what no finding covers is sent as it came, in order
        assert plain in sent
    assert end.audit["sent_characters"] == sum(map(len, rest))
    assert all(kept)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab c\u200b", min_size=0, max_size=3000), st.integers(1, 9))
def test_long_texts_forget_what_they_sent(text: str, step: int) -> None:
    plan = _plan("redact", "redact")
    chunks = [text[i : i + step] for i in range(0, len(text), step)]
    assert _stream(plan, chunks)[0] == _stream(plan, [text])[0]


def test_memory_of_a_stream_does_not_grow() -> None:
    plan = _plan("redact", "redact")
    scan = plan.start(stream=True)
    assert scan is not None
    for number in range(20_000):
        scan.feed(f"word {number} é ann@example.com, ")
        assert len(scan._raw) < 4_000
        assert len(scan._folded) < 4_000
    assert len(scan.finish().findings) == 20_000


def test_prose_is_held_back_by_a_word_only() -> None:
    plan = _plan("redact", "redact")
    scan = plan.start(stream=True)
    assert scan is not None
    held, most = 0, 0
    for character in "The committee will meet on the first Monday of every month; lunch is provided. " * 5:
        held += 1 - len(scan.feed(character))
        most = max(most, held)
    assert most <= len(" committee ")
    assert plan.window_characters > 200  # what it would be if it were held for the longest thing there is


def test_a_value_across_chunks_is_redacted() -> None:
    sent, end = _stream(
        _PLANS["redact", "report"], ["mail me: ann@exa", "mple.", "com", " or not. ann@example", ".com"]
    )
    assert sent == "mail me: [EMAIL] or not. [EMAIL]"
    assert [(f.kind, f.start, f.end) for f in end.findings] == [("email", 9, 24), ("email", 33, 48)]
    assert "example" not in str(end.audit)


def test_a_block_sends_what_stands_before_it_and_nothing_after() -> None:
    scan = _PLANS["redact", "block"].start(stream=True)
    assert scan is not None
    out = scan.feed("This is a b") + scan.feed("ad w") + scan.feed("ord, and more") + scan.feed(" and more")
    assert scan.blocked
    end = scan.finish()
    assert out + end.tail == "This is a "
    assert end.action == "block"
    assert end.audit["blocked"]
    assert end.audit["received_characters"] == len("This is a bad word, and more and more")
    assert end.audit["sent_characters"] == len("This is a ")


def test_audit_mode_sends_at_once_and_says_so() -> None:
    plan = _plan("redact", "block", "audit")
    scan = plan.start(stream=True)
    assert scan is not None
    assert scan.feed("ann@example.com bad") == "ann@example.com bad"
    assert scan.feed(" word") == " word"
    end = scan.finish()
    assert end.tail == ""
    assert end.action == "report"
    assert {f.kind for f in end.findings} == {"email", "blocked_terms"}
    assert end.audit["left_before_scan"]
    assert end.audit["scanned_characters"] == end.audit["sent_characters"] == 24
    assert not scan.blocked


@pytest.mark.parametrize("mode", ["buffer", "window"])
def test_other_modes_never_send_before_scanning(mode: str) -> None:
    plan = _plan("redact", "redact", mode)
    _, end = _stream(plan, ["some text ", "ann@example.com"])
    assert not end.audit["left_before_scan"]
    assert end.audit["mode"] == mode
    assert end.audit["rules"] == ["personal_data", "blocked_terms"]


def test_buffer_sends_nothing_before_the_end() -> None:
    scan = _plan("redact", "redact", "buffer").start(stream=True)
    assert scan is not None
    assert scan.feed("hello ") + scan.feed("world, this is long enough to be settled") == ""
    assert scan.finish().tail == "hello world, this is long enough to be settled"


@pytest.mark.parametrize("step", [1, 3, 100])
def test_length_cuts_a_stream_at_the_same_place(step: int) -> None:
    rule = {"kind": "length", "action": "block", "max_characters": 20}
    text = "one two three four five six seven"
    plan = _plan("redact", "redact", "window", rule)
    sent, end = _stream(plan, [text[i : i + step] for i in range(0, len(text), step)])
    assert sent == text[:20]
    assert [f.kind for f in end.findings] == ["length"]


def test_rules_about_the_whole_say_when_they_came_late() -> None:
    rules = (
        {"kind": "length", "name": "short", "min_characters": 10},
        {"kind": "length", "name": "tokens", "action": "block", "max_tokens": 3},
        {"kind": "length", "name": "two", "max_characters": 2},
        {"kind": "length", "name": "three", "max_characters": 3},
    )
    scan = _plan("redact", "redact", "window", *rules).start(stream=True)
    assert scan is not None
    sent = scan.feed("four. wo")
    end = scan.finish(tokens=4)
    assert sent
    assert end.tail == ""  # blocked at the end: what was still held back stays
    assert [f.rule for f in end.findings] == ["two", "three", "short", "tokens"]
    assert end.audit["late_rules"] == ["short", "tokens"]
    assert end.audit["left_before_scan"]
    whole = _plan("redact", "redact", "window", *rules).start(stream=False)
    assert whole is not None
    whole.feed("four. wo")
    assert whole.finish(tokens=4).audit["sent_characters"] == 0


def test_no_rule_for_answers_means_no_scan() -> None:
    plan = compile_guardrails(read_guardrails({"rules": [{"kind": "prompt_injection"}]}))
    assert plan.start(stream=True) is None
    assert compile_guardrails(read_guardrails({})).request([{"role": "user", "content": "x"}]).audit is None


def test_a_long_list_of_findings_is_counted() -> None:
    _, end = _stream(_PLANS["redact", "redact"], ["a@b.co " * 150])
    assert len(end.audit["findings"]) == 100
    assert end.audit["findings_not_listed"] == 50
    assert len(end.findings) == 150
