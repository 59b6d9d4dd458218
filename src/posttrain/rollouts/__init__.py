"""rollout: how a candidate meets traffic in stages, as pure logic.

``records`` what is written down before it starts; ``registered`` triggers from a contract; ``events``, ``journal`` and
``fold`` what happened and what it adds up to; ``observe`` counts of traffic; ``triggers`` what they mean; ``steps``
what may and should be done; ``snapshots`` what workers then serve; ``detection`` and ``plan`` what N requests can show.
No clock, no socket and no thread in here: ``serving.control`` has those.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "RolloutSpec": "records",
    "Stage": "records",
    "Trigger": "records",
    "decision_event": "registered",
    "register": "registered",
    "spec_from_contract": "registered",
    "triggers_from_contract": "registered",
    "Entry": "events",
    "Event": "events",
    "RolloutJournal": "journal",
    "RolloutState": "fold",
    "Observation": "observe",
    "Observer": "observe",
    "TriggerReport": "triggers",
    "evaluate": "triggers",
    "Facts": "steps",
    "Permission": "steps",
    "Step": "steps",
    "allowed": "steps",
    "facts_at": "steps",
    "next_step": "steps",
    "snapshot_for": "snapshots",
    "Plan": "plan",
    "make_plan": "plan",
}

# ``fold`` and ``observe`` are named like their modules, so they are imported from there.
__all__ = [
    "Entry",
    "Event",
    "Facts",
    "Observation",
    "Observer",
    "Permission",
    "Plan",
    "RolloutJournal",
    "RolloutSpec",
    "RolloutState",
    "Stage",
    "Step",
    "Trigger",
    "TriggerReport",
    "allowed",
    "decision_event",
    "evaluate",
    "facts_at",
    "make_plan",
    "next_step",
    "register",
    "snapshot_for",
    "spec_from_contract",
    "triggers_from_contract",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
