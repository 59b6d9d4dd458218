"""The text of a stream as it becomes certain, and what importing the drivers costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.engines.drivers.openai_bodies import TextStream


def decode(ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes: characters come in pieces."""
    return bytes(ids).decode(errors="replace")


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="ab\u4e2d\U0001f600", max_size=24),
    st.lists(st.text(alphabet="ab\u4e2d", min_size=1, max_size=3), max_size=3),
)
def test_the_pieces_of_a_stream_are_the_text_up_to_its_first_stop(text: str, stops: list[str]) -> None:
    stream = TextStream(decode, stops)
    sent = ""
    for byte in text.encode():
        sent += stream.add(byte)
        assert text.startswith(sent), "something was sent that is not the text"
        assert not any(stop in sent for stop in stops), "a stop text was sent"
        if stream.stopped:
            break
    sent += stream.rest()
    # The stop that is whole first counts, and of those that are whole together the one that begins first.
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    seen = text[: min(ends)] if ends else text
    places = [place for stop in stops if (place := seen.find(stop)) >= 0]
    assert sent == (seen[: min(places)] if places else text)
    assert stream.stopped == bool(places)


def test_text_is_sent_as_soon_as_it_is_certain() -> None:
    stream = TextStream(decode, ["END"])
    assert [stream.add(byte) for byte in b"aENx"] == ["a", "", "", "ENx"]
    stream = TextStream(decode, [])
    assert [stream.add(byte) for byte in "中".encode()] == ["", "", "中"]


def test_bytes_that_never_become_a_character_are_not_lost() -> None:
    stream = TextStream(decode, [])
    assert stream.add(0xE4) + stream.rest() == "\ufffd"


def test_whoever_starts_engines_loads_no_engine() -> None:
    code = (
        "import sys; import posttrain.engines.drivers.registry, posttrain.engines.drivers.adapters;"
        "heavy = {'torch', 'transformers', 'peft', 'xllamacpp', 'httptools', 'uvloop', 'numpy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
