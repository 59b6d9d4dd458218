"""rollout: how a candidate meets traffic in stages, as pure logic.

``records`` what is written down before it starts; ``registered`` triggers from a contract; ``events``, ``journal`` and
``fold`` what happened and what it adds up to; ``observe`` counts of traffic; ``triggers`` what they mean; ``steps``
what may and should be done; ``snapshots`` what workers then serve; ``detection`` and ``plan`` what N requests can show.
No clock, no socket and no thread in here: ``serving.control`` has those.
"""

from __future__ import annotations

from posttrain.core.lazy import lazy_names

__all__ = [
    "CONTROL",
    "STAGING_RULES",
    "Aborted",
    "Action",
    "Advanced",
    "Cleared",
    "Completed",
    "Created",
    "DecisionAttached",
    "Entry",
    "Event",
    "Facts",
    "Held",
    "Observation",
    "Observer",
    "Permission",
    "Plan",
    "Resumed",
    "RolledBack",
    "RolloutError",
    "RolloutJournal",
    "RolloutSpec",
    "RolloutState",
    "ShadowRule",
    "SnapshotAcked",
    "Stage",
    "Started",
    "Step",
    "Trigger",
    "TriggerReport",
    "Tripped",
    "allowed",
    "decision_event",
    "evaluate",
    "events_of",
    "facts_at",
    "fold",
    "make_plan",
    "next_step",
    "progress",
    "register",
    "render_plan",
    "snapshot_for",
    "spec_from_contract",
    "stage_requests",
    "triggers_from_contract",
]

_HOMES = {
    "": ("fold",),
    "errors": ("RolloutError",),
    "events": (
        "Aborted",
        "Advanced",
        "CONTROL",
        "Cleared",
        "Completed",
        "Created",
        "DecisionAttached",
        "Entry",
        "Event",
        "Held",
        "Resumed",
        "RolledBack",
        "SnapshotAcked",
        "Started",
        "Tripped",
    ),
    "fold": ("RolloutState",),
    "journal": ("RolloutJournal", "events_of"),
    "observe": ("Observation", "Observer"),
    "plan": ("Plan", "STAGING_RULES", "make_plan"),
    "plan_text": ("render_plan",),
    "records": ("RolloutSpec", "ShadowRule", "Stage", "Trigger"),
    "registered": ("decision_event", "register", "spec_from_contract", "triggers_from_contract"),
    "snapshots": ("snapshot_for",),
    "steps": (
        "Action",
        "Facts",
        "Permission",
        "Step",
        "allowed",
        "facts_at",
        "next_step",
        "progress",
        "stage_requests",
    ),
    "triggers": ("TriggerReport", "evaluate"),
}


__getattr__ = lazy_names(__name__, _HOMES)
