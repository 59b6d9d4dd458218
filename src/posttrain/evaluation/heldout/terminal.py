"""The end of a run in a terminal: the same words and table as the page, and the examples.

Here: drawing ``ReportData`` with rich, and as plain text. Not here: the words and the table (``summary``),
the page (``report``), progress while a run is going (``cli``).
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from posttrain.evaluation.heldout.summary import (
    Example,
    ReportData,
    headline,
    percent,
    summary_table,
    visible,
)

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVES = {"reward": "reward", "completions/mean_length": "tokens a response", "entropy": "entropy"}
MAX_MODELS_WITH_INTERVALS = 2
"""More models than this do not fit beside their intervals into 100 columns."""
_TONES = {"good": "green", "bad": "red", "": ""}


def render_terminal(data: ReportData, *, examples: bool = True) -> RenderableType:
    """Headline, table base → result, curves and examples as one rich renderable.

    Completions are literal text: rich markup and control characters in them have no effect.
    """
    words = headline(data)
    parts: list[RenderableType] = [Text(words.sentence, style="bold"), *(Text(line) for line in words.lines)]
    parts += [Text(f"! {note}", style="yellow") for note in data.notes]
    parts += [Text(), _table(data)]
    for name, metrics in data.training.items():
        curves = _curves(metrics)
        if curves is not None:
            parts += [Text(), *([Text(name, style="bold")] if len(data.training) > 1 else []), curves]
    if examples and data.examples:
        parts += [Text(), Text("The same held-out problems, chosen by hash and not by result", style="bold")]
        parts += [_example(number, example) for number, example in enumerate(data.examples, start=1)]
    return Group(*parts)


def render_text(data: ReportData, *, width: int = 100, examples: bool = True) -> str:
    """The same without colours or control codes, ``width`` columns wide; does not look at the terminal."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
        _environ={},
    )
    console.print(render_terminal(data, examples=examples))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """``values`` as at most ``width`` block characters, each the mean of its part; empty for no values."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def _table(data: ReportData) -> RenderableType:
    """Values and intervals in columns of their own; with many models the intervals are left to the page."""
    intervals = len(data.rows) <= MAX_MODELS_WITH_INTERVALS
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    labels = [row.label for row in data.rows] + (["change"] if data.comparison is not None else [])
    for label in labels:
        table.add_column(Text(f"  {label}"), justify="right")
        if intervals:
            table.add_column("", style="dim", no_wrap=True)
    groups = summary_table(data)
    for group in groups:
        table.add_row(Text(group.name.capitalize(), style="bold"))
        for line in group.lines:
            cells = [*line.cells, *([line.change] if line.change is not None else [])]
            texts = [(Text(cell.value, style=_TONES[cell.tone]), Text(cell.interval)) for cell in cells]
            table.add_row(Text(f"  {line.title}"), *(t for pair in texts for t in pair[: 1 + intervals]))
    level = percent(data.rows[0].report.confidence)
    beside = f"{level} intervals beside the values" if intervals else f"{level} intervals are in the page"
    return Group(table, Text("; ".join([*(group.title for group in groups), beside]) + ".", style="dim"))


def _curves(metrics: Sequence[Mapping[str, Any]]) -> Table | None:
    """One line a curve: first value, shape, last value."""
    table = Table.grid(padding=(0, 2))
    for key, title in _CURVES.items():
        values = [
            row[key] for row in metrics if isinstance(row.get(key), int | float) and math.isfinite(row[key])
        ]
        if len(values) >= 2:
            table.add_row(title, f"{values[0]:.3g}", sparkline(values), f"{values[-1]:.3g}")
    return table if table.row_count else None


def _example(number: int, example: Example) -> RenderableType:
    lines: list[RenderableType] = [
        Rule(style="dim"),
        Text(f"{number}. {visible(example.question)}", style="bold"),
    ]
    lines.append(Text(f"   right answer: {visible(example.reference)}", style="dim"))
    for completion in example.completions:
        mark, colour = {True: ("✓", "green"), False: ("✗", "red"), None: ("?", "yellow")}[completion.correct]
        verdict = completion.outcome.replace("_", " ")
        lines.append(
            Text.assemble("   ", (f"{mark} {completion.label}", f"bold {colour}"), (f"  {verdict}", "dim"))
        )
        lines.append(Padding(Text(visible(completion.text).strip()), (0, 0, 0, 5)))
    return Group(*lines)
