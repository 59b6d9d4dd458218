"""The generated part of ``docs/contracts.md``, made again by ``python -m posttrain.promotion._docs docs/contracts.md``.

A test compares the page with what this makes, so the tables and the code cannot drift apart. What stands between the
marks is made here; the rest of the page is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path

from posttrain.promotion import grammar
from posttrain.promotion.metrics import BETTER_TEXT, METRICS
from posttrain.promotion.rules import Options

_MARK = re.compile(r"(<!-- made: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """The page with every marked part made anew."""
    parts = {"grammar": _grammar, "options": _options, "metrics": _metrics}
    return _MARK.sub(lambda match: f"{match[1]}{parts[match['name']]()}\n{match[3]}", page)


def _grammar() -> str:
    """The grammar as the parser's own docstring has it."""
    text = inspect.getdoc(grammar) or ""
    lines = text.split("\n\n", 1)[1].split("\n\nHere:", 1)[0].split("\n")
    return "```text\n" + "\n".join(line.removeprefix("    ") for line in lines) + "\n```"


def _options() -> str:
    """Every option with its default and the docstring under its field."""
    source = inspect.getsource(Options)
    printed = Options().as_text()
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in fields(Options):
        match = re.search(rf'^    {option.name}: .*?\n    """(.*?)"""$', source, re.MULTILINE | re.DOTALL)
        name = "margin.SLICE" if option.name == "margins" else option.name
        default = printed.get(option.name, "the contract's `margin`")
        rows.append(f"| `{name}` | {default} | {_one_line(match[1] if match else '')} |")
    return "\n".join(rows)


def _metrics() -> str:
    rows = ["| metric | better | lanes | reads |", "|---|---|---|---|"]
    for metric in METRICS:
        lanes = "live only" if metric.live else "any"
        rows.append(
            f"| `{metric.name}` | {BETTER_TEXT[metric.better]} | {lanes} | {_one_line(metric.meaning)} |"
        )
    return "\n".join(rows)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text("utf-8")), "utf-8")
