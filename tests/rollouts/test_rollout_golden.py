"""Every form of a rollout that was ever written is read for ever."""

from __future__ import annotations

from pathlib import Path

from posttrain.rollouts.events import KINDS
from posttrain.rollouts.fold import fold
from posttrain.rollouts.journal import RolloutJournal
from posttrain.rollouts.records import RolloutSpec

GOLDEN = Path(__file__).parent / "golden"


def test_version_1():
    written = (GOLDEN / "rollout-v1.json").read_bytes()
    spec = RolloutSpec.from_json(written)
    assert spec.to_bytes() == written.rstrip(b"\n")
    assert {trigger.kind for trigger in spec.triggers} == {
        "incident",
        "rate",
        "ratio",
        "comparison",
        "no_data",
        "sample_ratio",
        "exposure",
    }
    journal = RolloutJournal(GOLDEN / "rollout-events-v1.jsonl")
    assert {entry.event.kind for entry in journal.entries if entry.event} == KINDS
    state = fold(spec, journal.entries)
    assert state.label(spec) == "ROLLED_BACK: error rate 61 of 410" and not state.latched
    assert journal.tip == "sha256:5353760f6377e64b5181d34c4f205523b9163e0171e7f611a1c41458aff2ffa7"
