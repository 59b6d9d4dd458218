"""What a training stage leaves beside its model: the metrics as a table, and figures of them.

Here: rows of numbers to Parquet and to SVG, with everything that depends on the clock or the machine taken out, so
that a resumed run writes the same bytes. Not here: the live progress line (events), reports (``evaluation``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageContext

METRICS_FILE = "metrics.parquet"
SAMPLES_FILE = "samples.parquet"
_CLOCK = re.compile(r"(time|runtime|per_second|flos|memory)", re.IGNORECASE)


def without_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` without wall-clock, speed and memory columns."""
    return {name: value for name, value in row.items() if not _CLOCK.search(name)}


def write_table(
    context: StageContext, rows: Sequence[Mapping[str, Any]], output: str = "metrics"
) -> Artifact:
    """Rows of one training run as ``metrics.parquet``; a column that a row lacks is null."""
    import pyarrow
    import pyarrow.parquet

    clean = [without_clock(row) for row in rows]
    columns = sorted({name for row in clean for name in row}, key=lambda name: (name != "step", name))
    table = pyarrow.table({name: [row.get(name) for row in clean] for name in columns})
    with context.writer("metrics", output, meta={"rows": len(clean), "columns": columns}) as writer:
        pyarrow.parquet.write_table(table, writer.path(METRICS_FILE))
        return writer.commit()


def write_figures(
    context: StageContext,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    output: str = "figures",
) -> Artifact:
    """One SVG a column against steps; ``columns`` maps column name to title. Columns without numbers are skipped."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "posttrain"
    from matplotlib import pyplot

    with context.writer("figures", output, meta={"columns": sorted(columns)}) as writer:
        for column, title in columns.items():
            points = [(row["step"], row[column]) for row in rows if isinstance(row.get(column), int | float)]
            if not points:
                continue
            figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
            axes.plot(*zip(*points, strict=True), linewidth=1.5)
            axes.set(xlabel="step", title=title)
            axes.grid(alpha=0.3)
            name = re.sub(r"[^a-z0-9]+", "-", column.lower()).strip("-")
            figure.savefig(writer.path(f"{name}.svg"), metadata={"Date": None})
            pyplot.close(figure)
        return writer.commit()


def merge_samples(context: StageContext, folder: Path, output: str = "samples") -> Artifact:
    """The completions that TRL logged step by step, as one table: prompt, completion, parts, advantage."""
    import pyarrow
    import pyarrow.parquet

    tables = []
    for path in sorted(folder.glob("completions_*.parquet")):
        table = pyarrow.parquet.read_table(path)
        for name in ("prompt", "completion"):
            texts = [_last_content(value) for value in table[name].to_pylist()]
            table = table.set_column(
                table.schema.get_field_index(name), name, pyarrow.array(texts, pyarrow.string())
            )
        tables.append(table.replace_schema_metadata(None))
    return _write_samples(context, pyarrow.concat_tables(tables, promote_options="permissive"), output)


def write_samples(
    context: StageContext, rows: Sequence[Mapping[str, Any]], output: str = "samples"
) -> Artifact:
    """Rows as ``samples.parquet``."""
    import pyarrow

    return _write_samples(context, pyarrow.Table.from_pylist([dict(row) for row in rows]), output)


def _write_samples(context: StageContext, table: Any, output: str) -> Artifact:
    import pyarrow.parquet

    with context.writer(
        "samples", output, meta={"rows": table.num_rows, "columns": table.column_names}
    ) as writer:
        pyarrow.parquet.write_table(table, writer.path(SAMPLES_FILE), compression="zstd")
        return writer.commit()


def _last_content(value: Any) -> str:
    """Text of a plain completion, or of the last message of a conversation."""
    return value if isinstance(value, str) else str(value[-1]["content"])
