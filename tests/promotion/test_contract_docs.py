"""``docs/contracts.md``: its tables are those of the code, its examples parse."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import posttrain.promotion as room
from posttrain.promotion._docs import render
from posttrain.promotion.grammar import parse_contract

PAGE = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text()


def test_the_page_is_what_the_code_makes():
    assert render(PAGE) == PAGE, "run: python -m posttrain.promotion._docs docs/contracts.md"


def test_the_example_of_the_page_parses():
    (example, *_) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert len(parse_contract(example).rules) == 7


def test_every_public_name_resolves():
    for name in room.__all__:
        assert getattr(room, name) is not None


def test_naming_the_room_and_its_records_loads_nothing_heavy():
    program = (
        "import sys, posttrain.promotion, posttrain.promotion.records, posttrain.promotion.grammar;"
        "print([m for m in ('scipy', 'numpy', 'pyarrow', 'jinja2', 'torch', 'yaml') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"
