"""Figures of a training run and of an evaluation, as SVG and PNG with the same bytes for the same data.

Here: drawing from rows of trainer metrics and from outcome counts. Not here: where the numbers come from
(``training``, ``measures``), the page around them (``report``). To add a training figure: one ``_Panel`` in
``_PANELS``.

Text stays text in the SVG (the reader's fonts; nothing is embedded or fetched), colours are CSS variables
with a light fallback, so the page can recolour them at night. Labels must be Latin: a machine may lack any
other glyphs.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MAX_OUTCOMES = 7
"""Outcomes drawn by name; the rarest of more are drawn together as one."""

MAX_POINTS = 600
"""Points of a curve; longer logs are drawn as means of neighbouring rows, which keeps the page small."""

_COLOURS = {
    "ink": "#23282f",
    "muted": "#68707b",
    "grid": "#dde1e6",
    "s1": "#1f6fb4",
    "s2": "#c2571a",
    "s3": "#6b4fa0",
    "good": "#2a8a6b",
    "e1": "#d9822b",
    "e2": "#b8475a",
    "e3": "#7a6bb0",
    "e4": "#4f86b0",
    "e5": "#a08a3c",
    "e6": "#8a8f98",
    "e7": "#c3c7cd",
    "on": "#ffffff",
}
"""CSS variable (``--fig-…``) to its light value; a page overrides the variables."""

_STYLE = {
    "axes.edgecolor": _COLOURS["grid"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _COLOURS["muted"],
    "axes.labelsize": 9,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.8,
    "path.simplify": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": _COLOURS["ink"],
    "xtick.color": _COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.color": _COLOURS["muted"],
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure in both forms."""

    name: str
    """Short and unique in a report; prefix of every id in the SVG."""
    title: str
    caption: str
    """One sentence that says how to read it, and the values at both ends."""
    svg: str
    """A complete SVG document without time, host or font."""
    png: bytes
    """The same at 160 dots an inch on white."""

    def inline_svg(self) -> str:
        """The SVG element alone, ready to stand inside HTML: no declaration, no namespace, no fixed size."""
        opening, rest = self.svg[self.svg.index("<svg") :].split(">", 1)
        opening = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", opening)
        return f"{opening}>{rest}".replace("xlink:href", "href")


@dataclass(frozen=True, slots=True)
class _Panel:
    """One training figure."""

    name: str
    title: str
    axis: str
    """Label of the value axis."""
    series: Mapping[str, str]
    """Legend text to metric key, or to the start of it where a reward function's own name follows."""
    share: bool = False
    """Whether values are shares, drawn from 0 to 100%."""


_PANELS = (
    _Panel("reward", "Reward", "mean reward", {"reward": "reward"}),
    _Panel(
        "accuracy",
        "Accuracy and format in training",
        "share of completions",
        {"accuracy": "rewards/accuracy", "format": "rewards/*format"},
        share=True,
    ),
    _Panel("length", "Response length", "tokens", {"mean tokens": "completions/mean_length"}),
    _Panel("entropy", "Entropy of the policy", "nats a token", {"entropy": "entropy"}),
    _Panel(
        "signal",
        "No reward spread, cut-off answers",
        "share",
        {"groups without spread": "frac_reward_zero_std", "cut off": "completions/clipped_ratio"},
        share=True,
    ),
    _Panel("kl", "Distance from the reference policy", "KL, nats a token", {"KL": "kl"}),
)


def draw_training(metrics: Sequence[Mapping[str, Any]], *, run: str = "") -> list[Drawing]:
    """The training figures for which ``metrics`` has at least two points, in a fixed order.

    ``run`` sets the names of one run's figures apart from those of another on the same page.

    ``metrics`` are rows as in TRL's ``log_history``: ``step`` and any of ``reward``, ``rewards/<name>/mean``,
    ``completions/mean_length``, ``entropy``, ``frac_reward_zero_std``, ``completions/clipped_ratio``, ``kl``.
    Rows without a step, and values that are not finite numbers, are passed over.
    """
    drawings = []
    for panel in _PANELS:
        series = {label: _points(metrics, key) for label, key in panel.series.items()}
        series = {label: points for label, points in series.items() if len(points) >= 2}
        if series:
            drawings.append(_draw_lines(replace(panel, name=f"{run}{panel.name}"), series))
    return drawings


def draw_outcomes(counts: Mapping[str, Mapping[str, int]], *, name: str = "outcomes") -> Drawing:
    """One stacked bar a model: what share of its completions had which outcome.

    ``counts`` maps a label to outcome counts (``EvaluationReport.error_counts[mode]``); ``correct`` comes
    first. Labels and outcomes that are not Latin text are drawn as the machine's fonts allow.
    """
    outcomes = _outcome_order(counts)
    colours = [_COLOURS["good"], *(_COLOURS[f"e{i}"] for i in range(1, 8))]
    with _style(name):
        figure = Figure(figsize=(4.4, 0.75 + 0.46 * len(counts) + 0.21 * math.ceil(len(outcomes) / 2)))
        axes = figure.add_subplot()
        axes.grid(visible=False)
        left = dict.fromkeys(counts, 0.0)
        offset = 0 if "correct" in outcomes else 1
        for index, outcome in enumerate(outcomes):
            shares = {label: _share(counts[label], outcome, outcomes) for label in counts}
            axes.barh(
                [*counts],
                [shares[label] for label in counts],
                left=[left[label] for label in counts],
                height=0.62,
                color=colours[min(index + offset, len(colours) - 1)],
                label=outcome.replace("_", " "),
                linewidth=0,
            )
            for row, label in enumerate(counts):
                if shares[label] >= 0.08:
                    middle = left[label] + shares[label] / 2
                    text = f"{100 * shares[label]:.0f}"
                    axes.text(middle, row, text, ha="center", va="center", color=_COLOURS["on"], fontsize=9)
                left[label] += shares[label]
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", labelsize=9.5, labelcolor=_COLOURS["ink"])
        figure.legend(
            loc="lower left",
            ncols=2,
            frameon=False,
            fontsize=9,
            handlelength=0.9,
            handleheight=0.9,
            columnspacing=1.4,
        )
        figure.tight_layout(
            rect=(0, (0.12 + 0.21 * math.ceil(len(outcomes) / 2)) / figure.get_figheight(), 1, 1)
        )
        caption = "Share of completions by outcome, in percent; parts under 8% carry no number."
        return _finish(figure, name, "What the completions were", caption)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean over ``window`` values; at the ends over as many of them as there are."""
    reach = window // 2
    parts = (values[max(0, index - reach) : index + reach + 1] for index in range(len(values)))
    return [_mean(part) for part in parts]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) in order of steps, long runs as means of neighbours.

    A step logged twice, as after a resume, keeps its last value.
    """
    found: dict[float, float] = {}
    for row in metrics:
        step, value = row.get("step"), _value(row, key)
        if _finite(step) and _finite(value):
            found[float(step)] = float(value)  # type: ignore[arg-type]  # _finite has checked both
    points = sorted(found.items())
    width = math.ceil(len(points) / MAX_POINTS)
    parts = [points[start : start + width] for start in range(0, len(points), width)] if points else []
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in parts]


def _value(row: Mapping[str, Any], key: str) -> Any:
    """``row[key]``; for ``rewards/x`` the mean of the first reward named x… (for ``rewards/*x``: …x…)."""
    if not key.startswith("rewards/"):
        return row.get(key)
    wanted = key.removeprefix("rewards/")
    for name, value in row.items():
        if not (name.startswith("rewards/") and name.endswith("/mean")):
            continue
        function = name.removeprefix("rewards/").removesuffix("/mean")
        if function.startswith(wanted) or (wanted.startswith("*") and wanted[1:] in function):
            return value
    return None


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _draw_lines(panel: _Panel, series: Mapping[str, list[tuple[float, float]]]) -> Drawing:
    with _style(panel.name):
        figure = Figure(figsize=(4.4, 2.7))
        axes = figure.add_subplot()
        ends = []
        for (label, points), colour in zip(series.items(), ("s1", "s2", "s3"), strict=False):
            steps = [step for step, _ in points]
            values = [value for _, value in points]
            line = smooth(values, max(1, len(values) // 20))
            if line != values:
                axes.plot(steps, values, color=_COLOURS[colour], linewidth=0.8, alpha=0.3)
            axes.plot(steps, line, color=_COLOURS[colour], linewidth=2.0, label=label, solid_capstyle="round")
            ends.append(f"{label} {_number(line[0], panel)} to {_number(line[-1], panel)}")
        if panel.share:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.01)
        axes.set_xlabel("step")
        axes.set_ylabel(panel.axis)
        if len(series) > 1:
            axes.legend(
                loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, borderaxespad=0.2
            )
        figure.tight_layout()
        caption = "Moving mean at the first and the last step: " + "; ".join(ends) + "."
        return _finish(figure, panel.name, panel.title, caption)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Our look on matplotlib's own defaults: a reader's matplotlibrc must not change the bytes."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        yield


def _number(value: float, panel: _Panel) -> str:
    return f"{100 * value:.0f}%" if panel.share else f"{value:.3g}"


def _outcome_order(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """``correct`` first, then by frequency over all models; the rarest of too many are one."""
    totals: dict[str, int] = {}
    for by_outcome in counts.values():
        for outcome, count in by_outcome.items():
            totals[outcome] = totals.get(outcome, 0) + count
    errors = sorted((o for o in totals if o != "correct"), key=lambda outcome: (-totals[outcome], outcome))
    kept = errors if len(errors) <= MAX_OUTCOMES else [*errors[: MAX_OUTCOMES - 1], _REST]
    return (["correct"] if "correct" in totals else []) + kept


_REST = "everything else"


def _share(by_outcome: Mapping[str, int], outcome: str, shown: Sequence[str]) -> float:
    total = sum(by_outcome.values())
    count = by_outcome.get(outcome, 0)
    if outcome == _REST:
        count += sum(n for name, n in by_outcome.items() if name not in shown)
    return count / total if total else 0.0


def _finish(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    svg, png = io.StringIO(), io.BytesIO()
    FigureCanvasSVG(figure).print_svg(svg, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    FigureCanvasAgg(figure)
    figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Drawing(name, title, caption, _clean(svg.getvalue(), name, title), png.getvalue())


def _clean(svg: str, name: str, title: str) -> str:
    """Unique ids, colours as variables, the reader's font, a title for screen readers, no metadata block."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # matplotlib's style sheet is for every element (*): inline, that would be the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href=")#|(url\()#', lambda m: f"{m[1] or m[2]}#{name}-", svg)
    for variable, colour in _COLOURS.items():
        svg = re.sub(colour, f"var(--fig-{variable}, {colour})", svg, flags=re.IGNORECASE)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    facts = f'role="img" aria-label="{title}" stroke-linejoin="round"'
    return re.sub(r"(<svg [^>]*)>", rf"\1 {facts}>", svg, count=1)
