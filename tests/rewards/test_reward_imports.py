"""What the room loads, and what it exports."""

from __future__ import annotations

import json
import subprocess
import sys

import posttrain.rewards as room

HEAVY = ("torch", "transformers", "trl", "numpy", "sympy", "math_verify", "pyarrow", "pydantic")


def loaded_by(statement: str) -> set[str]:
    code = f"import json, sys; {statement}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_the_room_and_the_worker_load_nothing_heavy() -> None:
    assert loaded_by("import posttrain.rewards") == set()
    assert loaded_by("import posttrain.rewards.worker") == set()
    assert loaded_by("from posttrain.rewards import Accuracy, ThinkFormat, Sample") == set()


def test_configuration_and_pool_load_pydantic_only() -> None:
    assert loaded_by("from posttrain.rewards import RewardConfig") == {"pydantic"}
    assert loaded_by("from posttrain.rewards import VerifierPool, as_trl_rewards, check_gold") == {"pydantic"}


def test_every_exported_name_is_there() -> None:
    for name in room.__all__:
        assert getattr(room, name) is not None
