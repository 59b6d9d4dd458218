"""A decision as one self-contained HTML page, through ``decision.html.j2``.

The page loads nothing, runs no script, and holds no time, host or path: the same decision gives the same bytes.
"""

from __future__ import annotations

from importlib import resources

from posttrain.promotion.gate import TICKS
from posttrain.promotion.records import Decision
from posttrain.promotion.terminal import MEANING, check_facts, evidence_rows, headline, named, table_rows

_SHOWN_IDS = 200


def render_page(decision: Decision) -> str:
    """The whole page; write it as UTF-8."""
    from jinja2 import Environment, StrictUndefined  # only the page needs it

    template = resources.files("posttrain.promotion").joinpath("decision.html.j2").read_text("utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"facts": check_facts, "named": lambda cases: named(cases, _SHOWN_IDS)}
    return environment.from_string(template).render(
        decision=decision,
        headline=headline(decision),
        meaning=MEANING[decision.outcome],
        evidence=evidence_rows(decision),
        table=table_rows(decision),
        ticks=TICKS,
        digest=decision.digest,
    )
