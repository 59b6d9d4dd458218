"""Stage ``mix_examples``: several example sets as one, at a stated ratio (R1 mixes 600k reasoning with 200k others).

Here: the draw and its card. As many rows as the ratio allows are taken, none twice; what is left over is counted. Not
here: where examples come from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean
from posttrain.data.examples import (
    EXAMPLES_FILE,
    ExampleRow,
    check_examples,
    example_set_facts,
    examples_to_jsonl,
    read_examples,
)


class MixExamplesConfig(StageConfig):
    """Config of the ``mix_examples`` stage."""

    ratio: Mapping[str, float] = Field(default_factory=dict)
    """Parts by input name, for example ``{reasoning: 3, open: 1}``; inputs without an entry count 1."""
    max_rows: int | None = Field(None, ge=1)
    """At most so many rows in all."""
    seed: int = 0


def run_mix_examples(
    config: MixExamplesConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Mix. Inputs: ``sets.<name>`` (example datasets). Output: ``examples``. Raises ConfigError for an unknown name."""
    sets = {
        name.split(".", 1)[1]: read_examples(context.store.view(artifact) / EXAMPLES_FILE)
        for name, artifact in sorted(inputs.items())
    }
    for name in config.ratio:
        if name not in sets:
            raise ConfigError(
                f"`ratio` names {name!r}, which is not among the inputs `sets`", hint=did_you_mean(name, sets)
            )
    parts = {name: config.ratio.get(name, 1.0) for name in sets}
    if min(parts.values(), default=0) <= 0:
        raise ConfigError("every part of `ratio` must be above 0", hint="leave the set out of `inputs.sets`")
    scale = min(len(rows) / parts[name] for name, rows in sets.items())
    if config.max_rows is not None:
        scale = min(scale, config.max_rows / sum(parts.values()))
    taken: list[ExampleRow] = []
    counts: dict[str, dict[str, int]] = {}
    for name, rows in sets.items():
        check_examples(rows, name)
        order = sorted(rows, key=lambda row: row.id)
        random.Random(f"mix/{name}/{config.seed}").shuffle(order)
        wanted = round(scale * parts[name])
        taken += [replace(row, id=f"{name}-{row.id}") for row in order[:wanted]]
        counts[name] = {"taken": min(wanted, len(rows)), "left": max(0, len(rows) - wanted)}
    random.Random(f"mix/{config.seed}").shuffle(taken)
    facts = {**example_set_facts(taken), "parts": counts}
    with context.writer("dataset", "examples", meta={"format": "examples", **facts}) as writer:
        writer.add_bytes(EXAMPLES_FILE, examples_to_jsonl(taken))
        writer.add_bytes("README.md", _card(config, facts).encode())
        artifact = writer.commit()
    text = ", ".join(f"{c['taken']} {name} ({c['left']} left over)" for name, c in counts.items())
    context.emit("note", text=f"{len(taken)} examples: {text}")
    return StageResult({"examples": artifact}, {"examples": len(taken), **counts})


def _card(config: MixExamplesConfig, facts: Mapping[str, object]) -> str:
    lines = [
        "# Examples: a mix",
        "",
        f"{facts['rows']} examples, one JSON object a line in `{EXAMPLES_FILE}`.",
        "",
        f"- stated ratio: {json.dumps(dict(config.ratio), sort_keys=True)}",
        f"- parts: {json.dumps(facts['parts'], sort_keys=True)}",
        f"- tasks: {json.dumps(facts['tasks'], sort_keys=True)}",
        f"- languages: {json.dumps(facts['languages'], sort_keys=True)}",
        f"- sources: {json.dumps(facts['sources'], sort_keys=True)}",
    ]
    return "\n".join(lines) + "\n"
