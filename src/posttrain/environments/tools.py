"""Tools in a frozen world: what was recorded, what follows from frozen data, and what was never recorded.

Here: answering a call, and the recorded call that is nearest to one that was not. Not here: how a model writes calls
(``engines``), whether they were good ones (``evaluation.graders``).

Nothing here runs code of a model or of a suite, opens a file or a socket, or knows the time: a reply is looked up, or
computed from the slice's documents and files and the suite's clock. A call that was never recorded fails. The model is
told so and no more, since a hint would be an answer that the world never gave; the person who reads the report is shown
the nearest recorded call.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.core.clock import Clock, FixedClock
from posttrain.core.suggest import did_you_mean
from posttrain.environments.records import ToolCall
from posttrain.environments.suites.slice_records import SliceSpec, ToolSpec, call_key
from posttrain.environments.suites.suite import ClockTool, ComputedTool, FileTool, SearchTool, Suite

UNKNOWN_TOOL = "error: there is no tool of this name"
BAD_ARGUMENTS = "error: the arguments are not a JSON object"
NOT_RECORDED = "error: this tool has no answer to these arguments"
_SHOWN_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class ToolMiss:
    """A call that the frozen world has no reply to."""

    tool: str
    arguments: str
    """As canonical JSON, or as the model wrote them where they are none."""
    why: str
    """One line for a person."""
    nearest: str | None = None
    """The recorded call that is most like it, as canonical JSON of its arguments."""


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What came of a call."""

    call: ToolCall
    """The call with its reply; None in it where there was none."""
    shown: str
    """What the model reads."""
    miss: ToolMiss | None = None


class FrozenTools:
    """The tools of one slice."""

    def __init__(self, suite: Suite, spec: SliceSpec, clock: Clock | None = None) -> None:
        self._tools = {tool.name: tool for tool in spec.tools}
        self._computed = suite.settings.computed_tools
        self._spec = spec
        self._index = suite.indexes.get(spec.name)
        self._clock = clock or FixedClock(suite.settings.clock)

    def answer(self, call: ToolCall, offered: tuple[str, ...]) -> ToolAnswer:
        """Answer ``call``, where the case offers the tools ``offered``."""
        tool = self._tools.get(call.name) if call.name in offered else None
        if tool is None:
            why = f"the case offers no tool {call.name!r}; {did_you_mean(call.name, offered)}"
            return _missed(call, UNKNOWN_TOOL, ToolMiss(call.name, call.raw, why))
        if call.arguments is None:
            why = f"{call.name} was called with what is no JSON object"
            return _missed(call, BAD_ARGUMENTS, ToolMiss(call.name, call.raw, why))
        reply = tool.reply(call.arguments)
        if reply is None and tool.name in self._computed:
            reply = self._compute(self._computed[tool.name], call.arguments)
        if reply is None:
            return _missed(call, NOT_RECORDED, _never_recorded(tool, call))
        answered = ToolCall(call.name, call.arguments, call.raw, reply)
        return ToolAnswer(answered, reply)

    def _compute(self, how: ComputedTool, arguments: Mapping[str, object]) -> str | None:
        match how:
            case ClockTool():
                return self._clock.now()
            case FileTool():
                data = self._spec.files.get(str(arguments.get(how.path, "")))
                return None if data is None else data.decode(errors="replace")
            case SearchTool():
                query = arguments.get(how.query)
                if not isinstance(query, str) or self._index is None:
                    return None
                found = [hit.id for hit in self._index.search(query, how.limit)]
                texts = [f"[{name}]\n{self._spec.documents[name]}" for name in found]
                return "\n\n".join(texts) or "no document matches"


def nearest_call(tool: ToolSpec, key: str) -> str | None:
    """The recorded arguments most like ``key``; of several equally near, the first in order."""
    matcher = difflib.SequenceMatcher(b=key, autojunk=False)

    def likeness(recorded: str) -> float:
        matcher.set_seq1(recorded)
        return matcher.ratio()

    return min(tool.replies, key=lambda recorded: (-likeness(recorded), recorded), default=None)


def _never_recorded(tool: ToolSpec, call: ToolCall) -> ToolMiss:
    try:
        key = call_key(call.arguments or {})
    except ValueError:  # numbers that JSON cannot carry exactly
        key = call.raw
    nearest = nearest_call(tool, key)
    beside = f"; the nearest recorded call is {_cut(nearest)}" if nearest is not None else ""
    return ToolMiss(tool.name, key, f"{tool.name}({_cut(key)}) was never recorded{beside}", nearest)


def _missed(call: ToolCall, shown: str, miss: ToolMiss) -> ToolAnswer:
    return ToolAnswer(ToolCall(call.name, call.arguments, call.raw, None), shown, miss)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
