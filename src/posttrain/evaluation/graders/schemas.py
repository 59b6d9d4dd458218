"""JSON Schema, by the ``jsonschema`` library.

Here: checking a schema, and the first complaint about a value. References to other documents are never fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises ValueError for what is not a schema."""
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from error


class Schema:
    """A checked schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        import jsonschema

        check_schema(schema)
        self._validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)

    def fault(self, value: Any) -> str:
        """What is wrong with ``value``, the outermost complaint first; empty where nothing is."""
        errors = sorted(
            self._validator.iter_errors(value), key=lambda error: (len(error.path), error.message)
        )
        if not errors:
            return ""
        place = "".join(f"[{part!r}]" for part in errors[0].path)
        return f"{place}: {errors[0].message}" if place else str(errors[0].message)
