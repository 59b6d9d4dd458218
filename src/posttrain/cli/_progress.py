"""What a run looks like while it goes: the state that its events add up to, plain lines, and JSON lines.

Here: everything that needs no terminal. Not here: drawing on one (``_live``). Both drawings read the same
``RunView``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from posttrain.cli._errors import drop_stdout
from posttrain.core.canonical import short
from posttrain.core.events import Event

PLAIN_EVERY_SECONDS = 5.0
PLAIN_EVERY_FRACTION = 0.1

LineStatus: TypeAlias = Literal["waiting", "running", "reused", "finished", "failed", "interrupted"]
Clock: TypeAlias = Callable[[], float]


class Display(Protocol):
    """Shows a run's events; a context manager around the run."""

    def __call__(self, event: Event) -> None: ...
    def __enter__(self) -> Display: ...
    def __exit__(self, *exception: object) -> None: ...


@dataclass(slots=True)
class StageLine:
    """One stage of the run."""

    name: str
    status: LineStatus = "waiting"
    step: int = 0
    total: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """Latest reward, accuracy, loss and tokens per second."""
    phase: str = ""
    started: float = 0.0
    """On the view's clock."""
    first: tuple[int, float] | None = None
    """Step and time of the first progress event of this phase: the base of the rate."""
    seconds: float | None = None
    """Known when it finished."""
    key: str = ""

    def seconds_left(self, now: float) -> float | None:
        """From the rate since the first progress event; None while there is no rate."""
        if self.first is None or self.step <= self.first[0] or not self.total:
            return None
        per_step = (now - self.first[1]) / (self.step - self.first[0])
        return per_step * max(self.total - self.step, 0)


class RunView:
    """The state of a run, from its events alone."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.run = ""
        self.recipe = ""
        self.lines: dict[str, StageLine] = {}
        self.started = clock()

    def apply(self, event: Event) -> StageLine | None:
        """Take in one event; returns the line of its stage."""
        data = event.data
        if event.kind == "run_started":
            self.run, self.recipe = str(data["run"]), str(data["recipe"])
            self.lines = {name: StageLine(name) for name in data["stages"]}
            self.started = self.clock()
        if event.stage is None:
            return None
        line = self.lines.setdefault(event.stage, StageLine(event.stage))
        match event.kind:
            case "stage_started":
                line.status, line.started, line.key = "running", self.clock(), str(data.get("key", ""))
            case "stage_reused":
                line.status, line.key = "reused", str(data.get("key", ""))
            case "stage_finished":
                line.status, line.seconds = "finished", data.get("seconds")
            case "stage_failed":
                line.status = "interrupted" if data.get("interrupted") else "failed"
            case "progress":
                self._progress(line, data)
            case _:
                pass
        return line

    def _progress(self, line: StageLine, data: Mapping[str, Any]) -> None:
        phase, step = str(data.get("phase", "")), data.get("step", line.step)
        if phase != line.phase or step < line.step or line.first is None:
            line.phase, line.first = phase, (step, self.clock())
        line.step, line.total = step, data.get("total", line.total)
        line.figures.update({name: data[name] for name in FIGURES if isinstance(data.get(name), int | float)})


FIGURES: Mapping[str, Callable[[float], str]] = {
    "reward": lambda value: f"reward {value:.3f}",
    "accuracy": lambda value: f"accuracy {value:.1%}",
    "loss": lambda value: f"loss {value:.4f}",
    "tokens_per_second": lambda value: f"{value:,.0f} tokens/s",
}
"""Values of a progress event that are shown, in order."""


def figure_texts(line: StageLine) -> list[str]:
    """The latest figures of a stage, for people."""
    return [write(line.figures[name]) for name, write in FIGURES.items() if name in line.figures]


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3m12s``, ``1h04m``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}h{minutes_left:02d}m" if hours else f"{minutes}m{rest:02d}s"


class PlainDisplay:
    """One line for each thing that happens; progress at most every few seconds or every tenth of the way."""

    def __init__(self, write: Callable[[str], None] | None = None, clock: Clock = time.monotonic) -> None:
        self.view = RunView(clock)
        self.write = write or _print_line
        self.last_line: dict[str, tuple[float, float]] = {}
        """Stage to the time and the fraction of its last progress line."""

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __call__(self, event: Event) -> None:
        line = self.view.apply(event)
        if line is None:
            text = describe_run_event(event)
            if text:
                self.write(text)
            return
        if event.kind == "progress" and not self._is_due(line):
            return
        text = describe_stage_event(event, line, self.view.clock())
        position = list(self.view.lines).index(line.name) + 1
        self.write(f"[{position}/{len(self.view.lines)}] {line.name}: {text}")

    def _is_due(self, line: StageLine) -> bool:
        now, fraction = self.view.clock(), line.step / line.total if line.total else 0.0
        at, shown = self.last_line.get(line.name, (line.started, 0.0))
        due = (
            now - at >= PLAIN_EVERY_SECONDS
            or abs(fraction - shown) >= PLAIN_EVERY_FRACTION
            or line.step == line.total
        )
        if due:
            self.last_line[line.name] = (now, fraction)
        return due


class JsonDisplay:
    """One JSON object a line for each event."""

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def __call__(self, event: Event) -> None:
        from posttrain.pipelines.eventlog import event_line

        _print_line(event_line(event))


def describe_run_event(event: Event) -> str:
    """The line for an event of the run as a whole; empty for none."""
    data = event.data
    match event.kind:
        case "run_started":
            return f"run {data['run']}: {data['recipe']}, {len(data['stages'])} stages"
        case "run_finished" if data["status"] != "finished":
            return f"run {data['run']}: {data['status']} after {duration(data['seconds'])}"
        case "note":
            return str(data["text"])
        case "warning":
            return _warning(data)
        case _:
            return ""


def describe_stage_event(event: Event, line: StageLine, now: float) -> str:
    """The line for an event of one stage, without the stage's name."""
    data = event.data
    match event.kind:
        case "stage_started":
            return "started"
        case "stage_reused":
            return f"reused, same configuration, inputs and code (key {short(line.key)})"
        case "stage_resumed":
            return f"resumed from step {data['from_step']}"
        case "stage_finished":
            return f"done in {duration(data['seconds'])}"
        case "stage_failed":
            return "stopped" if data.get("interrupted") else f"failed: {data['error']}"
        case "progress":
            left = line.seconds_left(now)
            parts = [
                f"{line.phase + ' ' if line.phase else ''}step {line.step}/{line.total}",
                *figure_texts(line),
            ]
            return "  ".join([*parts, f"{duration(left)} left"] if left is not None else parts)
        case "warning":
            return _warning(data)
        case _:
            return str(data.get("text", event.kind))


def _warning(data: Mapping[str, Any]) -> str:
    hint = data.get("hint")
    return f"warning: {data['text']}" + (f" ({hint})" if hint else "")


def _print_line(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:  # the reader went away; hours of work do not end for that
        drop_stdout()


def choose_display(*, as_json: bool) -> Display:
    """JSON where asked for, a live drawing on a terminal, else plain lines."""
    if as_json:
        return JsonDisplay()
    if sys.stdout.isatty():
        from posttrain.cli._live import LiveDisplay  # rich loads only where it draws

        return LiveDisplay()
    return PlainDisplay()
