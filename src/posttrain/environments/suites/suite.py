"""A suite: slices with everything that they need to be played again, frozen, and known by one digest.

Here: the records, torch-free. Not here: the folder that holds a suite (``suite_files``), making one (``suite_build``),
comparing two (``suite_diff``), asking a model (``evaluation.suite_runner``). To add a kind of computed tool: a config
in ``ComputedTool`` and its branch in ``tools``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from posttrain.core.clock import FixedClock
from posttrain.environments.records import Case
from posttrain.environments.retrieval import Index
from posttrain.environments.suites.identity import Identity
from posttrain.environments.suites.slice_records import SliceSpec

SUITE_SCHEMA = 1
SYSTEM_PROMPT = "system"
"""The prompt that stands before every case's messages, where the suite has one of this name."""


def _time(text: str) -> str:
    return FixedClock(text).at


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Decoding(_Settings):
    """How replies are drawn."""

    temperature: float = Field(0.0, ge=0)
    """0 takes the most likely token each time."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0 for no limit; servers are not told, since the field is not in OpenAI's form."""
    max_new_tokens: int = Field(512, ge=1)
    """Of one turn."""


class SearchTool(_Settings):
    """Answers from the slice's documents, by exact search; any query has an answer."""

    kind: Literal["search"] = "search"
    query: str = "query"
    """Which argument holds what is looked for."""
    limit: int = Field(3, ge=1)
    """Documents in a reply."""


class FileTool(_Settings):
    """Answers with one of the slice's files."""

    kind: Literal["file"] = "file"
    path: str = "path"
    """Which argument names the file."""


class ClockTool(_Settings):
    """Answers with the suite's time, which stands still."""

    kind: Literal["clock"] = "clock"


ComputedTool: TypeAlias = Annotated[SearchTool | FileTool | ClockTool, Field(discriminator="kind")]
"""A tool whose replies follow from frozen data; a recorded reply to the same arguments comes first."""


class SuiteSettings(_Settings):
    """What holds for the whole suite: the file ``settings.json``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str = ""
    """One line for people."""
    clock: Annotated[str, AfterValidator(_time)] = "2026-01-01T00:00:00Z"
    """What time it is, all through an evaluation."""
    seed: int = Field(0, ge=0)
    """The seed of every draw is made of this, the case and the sample."""
    samples: int = Field(1, ge=1)
    """Answers to each case, unless the evaluation asks for another number."""
    max_turns: int = Field(8, ge=1)
    """Times that a model is asked before it must have answered: rounds of tool calls, and the answer."""
    decoding: Decoding = Decoding()
    computed_tools: Mapping[str, ComputedTool] = Field(default_factory=dict)
    """Tool name to how its replies are computed, for the tools that are not only recorded."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A frozen suite, in memory."""

    settings: SuiteSettings
    slices: tuple[SliceSpec, ...]
    """Sorted by name."""
    identity: Identity
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompt texts by name; ``system`` stands before every case."""
    chat_template: str | None = None
    """Replaces the chat template of models that run here; None leaves each model its own."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Source file to its digest, of graders, tools, search and the turn loop: which code decided outcomes is part of
    the identity."""
    indexes: Mapping[str, Index] = field(default_factory=dict)
    """Slice to the search index of its documents."""

    def slice(self, name: str) -> SliceSpec:
        """The slice called ``name``. Raises KeyError."""
        return next(found for found in self.slices if found.name == name)

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every case, by slice and id."""
        return tuple(case for found in self.slices for case in found.cases)


class DiffEntry(BaseModel):
    """One thing in which two suites differ."""

    model_config = ConfigDict(frozen=True)

    where: str
    """Part, file, or file and line: ``math_basic/cases``, ``slices/math_basic/cases.jsonl#apples-3``."""
    what: Literal["added", "removed", "changed"]
    detail: str = ""
    """Before and after, short, where that helps."""


class SuiteDiff(BaseModel):
    """In what two suites differ; nothing where they are the same."""

    model_config = ConfigDict(frozen=True)

    before: str
    """Root of the first."""
    after: str
    parts: tuple[DiffEntry, ...] = ()
    files: tuple[DiffEntry, ...] = ()
    entries: tuple[DiffEntry, ...] = ()
    """Cases, recorded replies and settings that differ, by name."""

    @model_validator(mode="after")
    def _consistent(self) -> SuiteDiff:
        if (self.before == self.after) != (not self.files):
            raise ValueError("two suites differ exactly where a file does")
        return self

    @property
    def same(self) -> bool:
        """Whether the two are one suite."""
        return self.before == self.after
