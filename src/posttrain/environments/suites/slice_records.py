"""What a slice of behaviour is made of: cases, tools with their recorded replies, files, documents, graders.

Here: frozen, torch-free records and the one way to name a recorded call. Not here: the shipped slices (``slices``), how
a suite is built and hashed of them, or what a grader does with its config (``evaluation.graders``).

Graders are plain dicts here, since this room is below the one that grades: each has a ``kind`` and a ``name`` that is
unique in its slice, and the graders whose names stand in ``required`` all have to pass for a case to be a success.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.core.canonical import canonical_json
from posttrain.environments.records import Case


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool that a model may call, frozen: what it may be asked, and what it answered then."""

    name: str
    """What the model calls it."""
    description: str
    """What the model is told that it does."""
    parameters: Mapping[str, Any]
    """JSON schema of its arguments, an object."""
    replies: Mapping[str, str] = field(default_factory=dict)
    """Recorded reply by ``call_key`` of the arguments. Whatever else is asked was never recorded."""

    def reply(self, arguments: Mapping[str, Any]) -> str | None:
        """What the tool answered to these arguments; None where that was never recorded."""
        try:
            return self.replies.get(call_key(arguments))
        except ValueError:  # arguments that JSON cannot carry exactly were never recorded
            return None


@dataclass(frozen=True, slots=True)
class SliceSpec:
    """One slice: a behaviour, its cases and its rule."""

    name: str
    summary: str
    """The behaviour in one line, for reports."""
    cases: tuple[Case, ...]
    """In a stable order, with ids that are unique in the suite."""
    graders: tuple[Mapping[str, Any], ...]
    """Configs of ``evaluation.graders``: ``kind``, ``name`` and what the kind asks for."""
    required: tuple[str, ...]
    """Names of the graders that all have to pass: the slice's pass rule."""
    tools: tuple[ToolSpec, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What the tools and the sandbox may read, by relative path with forward slashes."""
    documents: Mapping[str, str] = field(default_factory=dict)
    """Texts for retrieval, by id."""


def call_key(arguments: Mapping[str, Any]) -> str:
    """The name under which a call's reply is recorded: the arguments as canonical JSON.

    Raises ValueError for what JSON cannot carry exactly.
    """
    return canonical_json(dict(arguments)).decode()
