"""Personal data: what is found, what is not, how much of a public data set, and that no text takes long."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.core.errors import ConfigError
from posttrain.guardrails import GuardrailPlan, compile_guardrails, read_guardrails
from posttrain.guardrails.personal import iban, luhn

_DATA = next(
    (
        path
        for folder in Path(__file__).parents[2:5]
        if (path := folder / "shared" / "data" / "pii-presidio" / "generated_large.json.gz").exists()
    ),
    None,
)
_KINDS = {
    "CREDIT_CARD": "card",
    "PHONE_NUMBER": "phone",
    "EMAIL_ADDRESS": "email",
    "US_SSN": "us_ssn",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip",
}


def _plan(**fields: object) -> GuardrailPlan:
    return compile_guardrails(
        read_guardrails({"rules": [{"kind": "personal_data", "where": "both", **fields}]})
    )


_PLAN = _plan()


def _found(text: str, plan: GuardrailPlan = _PLAN) -> list[tuple[str, str]]:
    return [(f.kind, text[f.start : f.end]) for f in plan.request(text).findings]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to Ann.Lee+x@mail.example.co.uk, please", "email", "Ann.Lee+x@mail.example.co.uk"),
        ("<ann@example.com>", "email", "ann@example.com"),
        ("a\u200bnn@exa\u00admple.com", "email", "a\u200bnn@exa\u00admple.com"),
        ("ＡＮＮ＠ｅｘａｍｐｌｅ．ｃｏｍ", "email", "ＡＮＮ＠ｅｘａｍｐｌｅ．ｃｏｍ"),
        ("IBAN GB82 WEST 1234 5698 7654 32 is mine", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("de89370400440532013000.", "iban", "de89370400440532013000"),
        ("card 4242-4242-4242-4242!", "card", "4242-4242-4242-4242"),
        ("card 4242–4242–4242–4242!", "card", "4242–4242–4242–4242"),
        ("4\u200b242424242424242", "card", "4\u200b242424242424242"),
        ("card ４２４２４２４２４２４２４２４２", "card", "４２４２４２４２４２４２４２４２"),
        ("amex 3782 822463 10005", "card", "3782 822463 10005"),
        ("on 203.0.113.77:8080", "ip", "203.0.113.77"),
        ("at 2001:db8:0:42::8a2e, or", "ip", "2001:db8:0:42::8a2e"),
        ("SSN 219-09-9999", "us_ssn", "219-09-9999"),
        ("my ssn is 219099999", "us_ssn", "219099999"),
        ("+49 (30) 1234-5678", "phone", "+49 (30) 1234-5678"),
        ("(978)645-9740x11144", "phone", "(978)645-9740x11144"),
        ("833.719.3994", "phone", "833.719.3994"),
        ("please call 785 8949", "phone", "785 8949"),
        ("passport no. C1234567", "passport", "C1234567"),
    ],
)
def test_found(text: str, kind: str, value: str) -> None:
    assert _found(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4.5 and 127.0.0.1",
        "std::vector<int> at 12:30:45, a::b",
        "on 2024-01-05 and 05/01/2024 and 20240105",
        "order 4242424242424241, no card",
        "GB82 WEST 1234 5698 7654 33",
        "pi is 3.14159265358979, speed 299792458",
        "@handle and me@host and x@y..z",
        "000-12-3456, 666-12-3456, 900-12-3456, 219-00-9999",
        "C1234567 and 12345678, not of a passport",
        "1,234,567.89 and 1 234 567",
        "sum = 5551234567 + $833.719.3994",
    ],
)
def test_not_found(text: str) -> None:
    assert _found(text) == []


def test_kinds_and_allow_list() -> None:
    text = "a@b.com help@example.com x@corp.example 203.0.113.7 +49 30 12345678"
    assert [kind for kind, _ in _found(text, _plan(kinds=["ip"]))] == ["ip"]
    plan = _plan(allow=["Help@Example.com", "@corp.example", "203.0.113.7"])
    assert _found(text, plan) == [("email", "a@b.com"), ("phone", "+49 30 12345678")]


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rules\.0\.kinds\.0"):
        _plan(kinds=["emial"])


@given(st.text("0123456789", min_size=1, max_size=25), st.data())
def test_luhn_notices_any_one_wrong_digit(body: str, data: st.DataObject) -> None:
    number = next(body + str(d) for d in range(10) if luhn(body + str(d)))
    assert sum(luhn(body + str(d)) for d in range(10)) == 1
    place = data.draw(st.integers(0, len(number) - 1))
    other = data.draw(st.sampled_from([d for d in "0123456789" if d != number[place]]))
    assert not luhn(number[:place] + other + number[place + 1 :])


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=18, max_size=18), st.data())
def test_iban_notices_any_one_wrong_character(body: str, data: st.DataObject) -> None:
    check = 98 - int("".join(str(int(c, 36)) for c in body + "DE00")) % 97
    number = f"DE{check:02d}{body}"
    assert iban(number)
    assert _found(f"to {number}.") == [("iban", number)]
    place = data.draw(st.integers(4, len(number) - 1))
    same = "0123456789" if number[place].isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    other = data.draw(st.sampled_from([c for c in same if c != number[place]]))
    assert not iban(number[:place] + other + number[place + 1 :])


@pytest.mark.skipif(_DATA is None, reason="the public data set is not here")
def test_recall_and_precision_on_public_data() -> None:
    assert _DATA is not None
    rows = json.loads(gzip.decompress(_DATA.read_bytes()))
    wanted, got, found, right = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        findings = _PLAN.request(row["full_text"]).findings
        gold = [
            (_KINDS[span["entity_type"]], span["start_position"], span["end_position"])
            for span in row["spans"]
            if span["entity_type"] in _KINDS
        ]
        for kind, start, end in gold:
            wanted[kind] += 1
            got[kind] += any(f.kind == kind and f.start <= start and f.end >= end for f in findings)
        for finding in findings:
            found[finding.kind] += 1
            right[finding.kind] += any(
                k == finding.kind and s < finding.end and finding.start < e for k, s, e in gold
            )
    recall = {kind: got[kind] / wanted[kind] for kind in wanted}
    precision = {kind: right[kind] / found[kind] for kind in found}
    assert recall.pop("phone") >= 0.85
    assert min(recall.values()) == 1.0, recall
    assert min(precision.values()) >= 0.97, precision


_UNITS = [
    *(
        "a",
        "@",
        "1",
        "1 ",
        "a@",
        "a.",
        "(",
        "+1 ",
        "1-",
        "a:",
        ":",
        "de89",
        "de89 ",
        "0.",
        "1.1.1.1",
        "a@b.",
        "1/",
    ),
    *(
        "4242 ",
        "phone 1",
        "x\u200b",
        "\u200b",
        " ",
        "ignore all ",
        "ignore  ",
        "<|",
        "d" * 60 + "@",
        "passport a1",
    ),
]
_HOSTILE = compile_guardrails(
    read_guardrails(
        {
            "rules": [
                {"kind": "personal_data", "where": "request"},
                {"kind": "prompt_injection"},
                {
                    "kind": "blocked_terms",
                    "where": "request",
                    "terms": ["a" * n for n in range(1, 60)] + ["d  d d"],
                },
            ]
        }
    )
)


@pytest.mark.parametrize("unit", _UNITS)
def test_no_text_takes_more_than_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size]
        _HOSTILE.request("b" + text)
        best = 9e9
        for _ in range(2):
            start = process_time()
            _HOSTILE.request("b" + text)
            best = min(best, process_time() - start)
        return best

    # Eight times the text: eight times the time if it is linear, sixty-four if it is quadratic.
    assert seconds(80_000) < 28 * seconds(10_000) + 0.02


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    for finding in _PLAN.request(text).findings:
        assert 0 <= finding.start < finding.end <= len(text)
