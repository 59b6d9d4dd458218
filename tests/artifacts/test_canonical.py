"""Canonical JSON: RFC 8785's published examples, and what hashing must not depend on."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.artifacts.records import Artifact, FileEntry, Producer, Provenance, parse_canonical
from posttrain.core.canonical import canonical_json, digest_bytes, digest_json

# RFC 8785, appendix B: IEEE 754 double in hex, its JSON.
_NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_DIGESTS = st.binary(max_size=4).map(digest_bytes)
_PATHS = st.lists(st.text("abc.-_ 文", min_size=1, max_size=4), min_size=1, max_size=3).map("/".join)


@pytest.mark.parametrize(("bits", "text"), _NUMBERS.items())
def test_numbers_of_appendix_b(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number).decode() == text
    assert canonical_json(parse_canonical(text)).decode() == text


@pytest.mark.parametrize("bits", ["7fffffffffffffff", "7ff0000000000000", "fff0000000000000"])
def test_numbers_that_json_does_not_have(bits: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    with pytest.raises(ValueError, match="canonical JSON"):
        canonical_json({"number": number})


def test_sample_of_section_3_2_2() -> None:
    text = r"""{
        "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]
    }"""
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_json(json.loads(text)).decode() == expected


def test_sorting_of_section_3_2_3() -> None:
    text = r"""{
        "\u20ac": "Euro Sign", "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
        "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis"
    }"""
    ordered = [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]
    assert list(json.loads(canonical_json(json.loads(text))).values()) == ordered


@pytest.mark.parametrize("value", [2**53, -(2**53), {1: "x"}, {"x": {1, 2}}, "\ud800", b"x", object()])
def test_what_json_cannot_carry_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical_json({"value": value})


@given(_VALUES, st.randoms(use_true_random=False))
def test_order_of_keys_does_not_matter(value: Any, random: Any) -> None:
    def shuffled(part: Any) -> Any:
        if isinstance(part, dict):
            items = [(key, shuffled(inner)) for key, inner in part.items()]
            random.shuffle(items)
            return dict(items)
        return [shuffled(inner) for inner in part] if isinstance(part, list) else part

    assert digest_json(shuffled(value)) == digest_json(value)


@given(_VALUES)
def test_writing_what_was_read_gives_the_same_bytes(value: Any) -> None:
    raw = canonical_json(value)
    assert canonical_json(parse_canonical(raw)) == raw
    assert parse_canonical(raw) == value


@given(_VALUES, _VALUES)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    # Python takes 1, 1.0 and True for equal; JSON takes only the first two.
    assert (digest_json(one) == digest_json(other)) == (canonical_json(one) == canonical_json(other))
    if one != other:
        assert digest_json(one) != digest_json(other)


_FILES = st.builds(
    FileEntry,
    path=_PATHS.filter(lambda path: ".." not in path.split("/")),
    digest=_DIGESTS,
    size_bytes=st.integers(0, 2**40),
)
_PROVENANCES = st.builds(
    Provenance,
    inputs=st.dictionaries(_TEXT, _DIGESTS, max_size=3),
    producer=st.none() | st.builds(Producer, stage=_TEXT, key=_DIGESTS, output=_TEXT),
    facts=st.dictionaries(_TEXT, _VALUES, max_size=3),
)
_ARTIFACTS = st.builds(
    Artifact,
    kind=st.sampled_from(["model", "dataset", "report"]),
    files=st.lists(_FILES, max_size=3).map(tuple),
    meta=st.dictionaries(_TEXT, _VALUES, max_size=3),
    about=st.dictionaries(_TEXT, _DIGESTS, max_size=3),
    provenance=st.lists(_PROVENANCES, max_size=2).map(tuple),
)
_FIRST_ARTIFACTS = st.builds(
    Artifact,
    kind=st.sampled_from(["model", "dataset", "report"]),
    files=st.lists(_FILES, max_size=3).map(tuple),
    meta=st.dictionaries(_TEXT, _VALUES, max_size=3),
    provenance=st.lists(
        _PROVENANCES.map(lambda kept: Provenance(kept.inputs, kept.producer)), min_size=1, max_size=1
    ).map(tuple),
    schema=st.just(1),
)


@given(_ARTIFACTS | _FIRST_ARTIFACTS)
def test_a_manifest_reads_back(artifact: Artifact) -> None:
    raw = canonical_json(artifact.manifest())
    beside = [
        Provenance.from_document(parse_canonical(canonical_json(p.document()))) for p in artifact.beside
    ]
    again = Artifact.from_manifest(parse_canonical(raw), beside)
    assert again == artifact
    assert again.provenance == artifact.provenance
    assert again.digest == artifact.digest == digest_bytes(raw)


@given(st.sampled_from(["", "/a", "a/../b", "..", "a\\b"]))
def test_file_paths_stay_inside(path: str) -> None:
    with pytest.raises(ValueError):
        FileEntry(path, digest_bytes(b""), 0)
