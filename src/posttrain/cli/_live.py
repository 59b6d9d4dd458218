"""The live drawing of a run on a terminal: the list of stages, a bar for the one that runs, and its figures.

Here: rich renderables over ``RunView``. Not here: what the events mean (``_progress``).
"""

from __future__ import annotations

from collections import deque

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from posttrain.cli._progress import (
    RunView,
    StageLine,
    describe_run_event,
    describe_stage_event,
    duration,
    figure_texts,
)
from posttrain.core.canonical import short
from posttrain.core.events import Event

_FRAMES_PER_SECOND = 4
_NOTES_KEPT = 4
_BAR_WIDTH = 24
_MARKS = {
    "waiting": Text("·", style="dim"),
    "reused": Text("✓", style="cyan"),
    "finished": Text("✓", style="green"),
    "failed": Text("✗", style="red"),
    "interrupted": Text("■", style="yellow"),
}


class LiveDisplay:
    """Redraws a few times a second; what the libraries print appears above the drawing."""

    def __init__(self, console: Console | None = None) -> None:
        self.view = RunView()
        self.notes: deque[Text] = deque(maxlen=_NOTES_KEPT)
        self.spinner = Spinner("dots")
        self.live = Live(
            self, console=console or Console(highlight=False), refresh_per_second=_FRAMES_PER_SECOND
        )

    def __enter__(self) -> LiveDisplay:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        line = self.view.apply(event)
        if event.kind == "run_finished":
            self.live.update(self, refresh=True)
        if event.kind in ("note", "warning"):
            text = describe_stage_event(event, line, 0.0) if line else describe_run_event(event)
            name = f"{line.name}: " if line else ""
            style = "yellow" if event.kind == "warning" else "dim"
            self.notes.append(Text(f"{name}{text}", style=style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = self.view.clock()
        title = Text.assemble(
            (self.view.recipe, "bold"), f"  {self.view.run}  ", (duration(now - self.view.started), "dim")
        )
        table = Table.grid(padding=(0, 1))
        for line in self.view.lines.values():
            runs = line.status == "running"
            mark = self.spinner if runs else _MARKS[line.status]
            table.add_row(mark, Text(line.name, style="bold" if runs else ""), _state(line))
        yield Group(title, table, *self._running(now), *self.notes)

    def _running(self, now: float) -> list[Table]:
        rows = []
        for line in self.view.lines.values():
            if line.status != "running" or not line.total:
                continue
            left = line.seconds_left(now)
            grid = Table.grid(padding=(0, 1))
            grid.add_row(
                "   ",
                ProgressBar(total=line.total, completed=line.step, width=_BAR_WIDTH),
                f"{line.step}/{line.total}",
                Text("  ".join(figure_texts(line))),
                Text(f"{duration(left)} left" if left is not None else "", style="dim"),
            )
            rows.append(grid)
        return rows


def _state(line: StageLine) -> Text:
    match line.status:
        case "reused":
            return Text(f"reused  {short(line.key)}", style="dim")
        case "finished":
            return Text("  ".join([duration(line.seconds or 0.0), *figure_texts(line)]), style="dim")
        case "running":
            return Text(line.phase, style="dim")
        case _:
            return Text(line.status, style="dim")
