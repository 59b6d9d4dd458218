"""Whether an answer is the JSON that was asked for, in bounded time.

Here: validators made from schemas that clients send, so neither a schema nor an answer may make them run for long or
fetch anything. Not here: when it is checked (``scan``). ``pattern`` and ``patternProperties`` are passed over, because
a regular expression can be made to run for ever; references lead inside of the schema only; a check stops after
``MAX_STEPS``. What was passed over is said in the outcome.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from posttrain.core.errors import MissingDependencyError

MAX_STEPS = 10_000
"""Keywords applied in one check: about 30 kB of nested JSON. The worst schema found takes a tenth of a second for them.
A check that is not finished is a finding like any other, so a rule that blocks blocks it."""
MAX_DEPTH = 100
"""Of nested JSON."""
_CACHED = 64
_PASSED_OVER = ("pattern", "patternProperties")


class Outcome(NamedTuple):
    """What came of a check; no words of the answer are in it."""

    kind: str
    """Empty where the answer is fine; else ``not_json``, ``not_schema``, ``bad_schema`` or ``unfinished``."""
    passed_over: bool = False
    """Whether the schema has keywords that are not checked here."""


class _TooLong(Exception):
    """A check took too many steps."""


class SchemaChecks:
    """Checks answers; keeps the validators of the last schemas."""

    def __init__(self) -> None:
        self._steps = 0
        try:
            import jsonschema
            from referencing import Registry
        except ImportError as error:
            raise MissingDependencyError(
                "guardrails: the rule json_schema needs jsonschema", hint="pip install 'jsonschema>=4.23'"
            ) from error
        base = jsonschema.Draft202012Validator
        self._class = jsonschema.validators.extend(
            base,
            {
                name: self._passed_over if name in _PASSED_OVER else self._counted(name, check)
                for name, check in base.VALIDATORS.items()
            },
        )
        self._registry: Any = Registry()  # empty: nothing is fetched
        self._validators: OrderedDict[str, Any] = OrderedDict()

    def is_valid(
        self, text: str, response_format: Mapping[str, Any] | None, own: Mapping[str, Any] | None
    ) -> Outcome:
        """Whether ``text`` is what the rule's ``own`` schema or the request's ``response_format`` wants."""
        schema = own
        if schema is None and response_format is not None and response_format.get("type") == "json_schema":
            asked = response_format.get("json_schema")
            schema = asked.get("schema") if isinstance(asked, Mapping) else None
            if schema is not None and not isinstance(schema, Mapping):
                return Outcome("bad_schema")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return Outcome("not_json")
        if schema is None:
            return Outcome("" if isinstance(value, dict) else "not_json")
        return self._check(value, schema)

    def _check(self, value: Any, schema: Mapping[str, Any]) -> Outcome:
        import jsonschema
        from referencing.exceptions import Unresolvable

        try:
            key = json.dumps(schema, sort_keys=True)
            validator = self._validator(key, schema)
            passed_over = any(f'"{name}"' in key for name in _PASSED_OVER)
            if _deeper(value, MAX_DEPTH):
                return Outcome("unfinished", passed_over)
            self._steps = 0
            return Outcome("" if validator.is_valid(value) else "not_schema", passed_over)
        except _TooLong:
            return Outcome("unfinished")
        except (
            jsonschema.SchemaError,
            Unresolvable,
            RecursionError,
            TypeError,
            ValueError,
            AttributeError,
            KeyError,
        ):
            return Outcome("bad_schema")

    def _validator(self, key: str, schema: Mapping[str, Any]) -> Any:
        validator = self._validators.get(key)
        if validator is None:
            # No check_schema: it would take long for a schema made for that; a keyword of a wrong type raises above.
            validator = self._class(json.loads(key), registry=self._registry)
            self._validators[key] = validator
            if len(self._validators) > _CACHED:
                self._validators.popitem(last=False)
        else:
            self._validators.move_to_end(key)
        return validator

    @staticmethod
    def _passed_over(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        return iter(())

    def _counted(self, name: str, check: Callable[..., Any]) -> Callable[..., Any]:
        def run(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            # `uniqueItems` compares all with all, `enum` with each; their steps are counted as what they cost.
            size = len(instance) if name == "uniqueItems" and isinstance(instance, list) else 1
            size = len(value) if name == "enum" and isinstance(value, list) else size * size
            self._steps += max(1, size // 10)
            if self._steps > MAX_STEPS:
                raise _TooLong
            return check(validator, value, instance, schema)

        return run


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True
