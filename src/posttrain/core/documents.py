"""Records that are stored by themselves, as canonical JSON with a schema number and a kind.

Here: the two bases. Not here: any record. To add a record: subclass ``Document``, name its ``record_kind``, and keep a
golden file of it beside its tests. A change that an old reader would misread gets a new ``record_schema`` and a reader
for the old one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from posttrain.core.canonical import canonical_json, digest_json, is_digest
from posttrain.core.errors import DataError


def _digest(value: str) -> str:
    if not is_digest(value):
        raise ValueError(f"{value!r} is not a sha256: digest")
    return value


Digest: TypeAlias = Annotated[str, AfterValidator(_digest)]
"""A complete ``sha256:`` digest."""


class Record(BaseModel):
    """Frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Document(Record):
    """A record that is stored by itself, so its JSON carries the schema number and its kind."""

    record_kind: ClassVar[str]
    """What the JSON says it is."""
    record_schema: ClassVar[int] = 1
    """Version of the JSON form."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; :meth:`from_json` is the inverse."""
        return {"schema": self.record_schema, "kind": self.record_kind, **self.model_dump(mode="json")}

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same record gives the same bytes."""
        return canonical_json(self.to_json())

    @property
    def digest(self) -> str:
        """``sha256:`` of :meth:`to_bytes`."""
        return digest_json(self.to_json())

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | bytes | str) -> Self:
        """Read any version ever written. Raises DataError for what is none, or is from a later posttrain."""
        kind, schema = cls.record_kind, cls.record_schema
        try:
            value = json.loads(data) if isinstance(data, bytes | str) else dict(data)
            found = (value.pop("schema"), value.pop("kind"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"not a {kind} record: {error!r}") from error
        if isinstance(found[0], int) and found[0] > schema:
            raise DataError(
                f"this {kind} has schema {found[0]}, newer than {schema}",
                hint="read it with a newer posttrain",
            )
        if found != (schema, kind):
            raise DataError(f"expected a {kind} of schema {schema}, got a {found[1]} of schema {found[0]}")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise DataError(f"not a {kind} record: {error}") from error
