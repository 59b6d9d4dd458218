"""The room's public names, and that naming them loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import posttrain.evaluation as room


def test_every_public_name_resolves():
    for name in room.__all__:
        assert getattr(room, name) is not None
    assert sorted(room.__all__) == sorted({n for names in room._HOMES.values() for n in names})


def test_importing_the_room_loads_no_engine():
    program = (
        "import sys, posttrain.evaluation;"
        "heavy = ('scipy', 'matplotlib', 'jinja2', 'pydantic', 'torch', 'numpy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"


def test_records_are_free_of_the_engines():
    program = (
        "import sys, posttrain.evaluation.heldout.records;"
        "print([m for m in ('scipy', 'matplotlib', 'jinja2', 'torch', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"
