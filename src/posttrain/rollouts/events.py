"""What happened in a rollout: facts that are appended and never changed.

Here: the events, and the entry that puts one in its place. Not here: keeping them (``journal``), what they add up to
(``fold``), who may cause them (``steps``). An event says what was done, with what was known then; the state is computed
from all of them, so nothing can say one thing in one place and another elsewhere.

To add an event: a record with a ``Literal`` tag, its line in ``Event``, and its branch in ``fold``. A reader that does
not know a kind keeps the entry and skips it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, TypeAdapter, ValidationError

from posttrain.core.documents import Digest, Record
from posttrain.core.errors import DataError

CONTROL = "control"
"""``by`` of what no person did."""


class _Event(Record):
    by: str = CONTROL
    """Who: a person's name, or ``control``."""


class Created(_Event):
    """The rollout was written down."""

    kind: Literal["created"] = "created"
    spec: Digest


class DecisionAttached(_Event):
    """A gate's decision about a candidate; whether it counts for this rollout is the fold's to say."""

    kind: Literal["decision_attached"] = "decision_attached"
    decision: Digest
    outcome: str
    candidate: str
    """What the decision calls the candidate: a digest of its model or release."""
    suite: Digest
    contract: Digest


class Started(_Event):
    """It may meet traffic from now on: gated."""

    kind: Literal["started"] = "started"
    epoch: int = Field(ge=0)
    """First epoch of snapshots in which it is so."""


class Advanced(_Event):
    """It went on to a stage. The last stage is production."""

    kind: Literal["advanced"] = "advanced"
    to: int = Field(ge=1)
    """Index of the stage."""
    epoch: int = Field(ge=1)
    """Written before the snapshot of this epoch is sent to any worker."""
    requests: int = Field(0, ge=0)
    """Answers of the candidate in the stage that it left."""
    seconds: float = Field(0.0, ge=0)


class Held(_Event):
    """It must not go on; its share stays."""

    kind: Literal["held"] = "held"
    reason: str
    trigger: str | None = None
    """Which trigger of health asked for it; None: a person."""
    invalid: bool = False
    """What was seen means nothing (sample ratio): it cannot be resumed, only aborted or rolled back."""


class Resumed(_Event):
    """A hold was lifted."""

    kind: Literal["resumed"] = "resumed"
    reason: str = ""


class Aborted(_Event):
    """A person ended it; production stays as it was before. Not latched."""

    kind: Literal["aborted"] = "aborted"
    reason: str
    epoch: int = Field(0, ge=0)
    """First epoch without the candidate."""


class Tripped(_Event):
    """A trigger fired. From here the state is ROLLED_BACK, whatever else has yet to be done about it."""

    kind: Literal["tripped"] = "tripped"
    trigger: str
    line: str
    """What an engineer on call reads."""
    figures: Mapping[str, Any] = Field(default_factory=dict)
    epoch: int = Field(0, ge=0)
    """First epoch without the candidate."""


class RolledBack(_Event):
    """Production is what it was before.

    Without a trip before it, it is a person's word that it must be. After a trip, or after a person's, it says that
    every worker serves it; a ``snapshot_acked`` of its epoch says so too.
    """

    kind: Literal["rolled_back"] = "rolled_back"
    reason: str
    epoch: int = Field(ge=0)
    """First epoch without the candidate."""


class Cleared(_Event):
    """A person has looked at the rollback; another rollout of the route may start."""

    kind: Literal["cleared"] = "cleared"
    reason: str


class Completed(_Event):
    """The candidate is production, and was watched for as long as was asked."""

    kind: Literal["completed"] = "completed"


class SnapshotAcked(_Event):
    """Workers said that they serve an epoch."""

    kind: Literal["snapshot_acked"] = "snapshot_acked"
    epoch: int = Field(ge=1)
    workers: tuple[str, ...] = ()


Event: TypeAlias = Annotated[
    Created
    | DecisionAttached
    | Started
    | Advanced
    | Held
    | Resumed
    | Aborted
    | Tripped
    | RolledBack
    | Cleared
    | Completed
    | SnapshotAcked,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)
KINDS: frozenset[str] = frozenset(kind.model_fields["kind"].default for kind in get_args(get_args(Event)[0]))
"""Every kind that this posttrain knows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in its place."""

    seq: int
    """Given by the journal: 1, 2, 3…; the order of events is the order of these, whenever they arrive."""
    id: str
    """The same id again is the same event."""
    at_ms: int
    """By the clock of who appended it; never less than the entry's before."""
    event: Event | None
    """None for a kind that a later posttrain wrote."""


def event_from_json(value: Mapping[str, Any]) -> Event | None:
    """Read an event; None for a kind that is not known here. Raises DataError for what is no event."""
    kind = value.get("kind")
    if isinstance(kind, str) and kind not in KINDS:
        return None
    try:
        return _ADAPTER.validate_python(dict(value))
    except ValidationError as error:
        raise DataError(f"not an event of a rollout: {error}") from error
