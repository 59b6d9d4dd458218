"""``posttrain router train`` and ``posttrain router evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import json_option, print_json

if TYPE_CHECKING:
    from posttrain.routing.evaluate import RouterReport


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(short_help="Train and judge a router between a small and a big model.")
def router() -> None:
    """A learned router: which requests the small model answers as well as the big one.

    ROWS is a file of JSON lines, each a judged pair: {"prompt": ..., "outcome": "small" | "tie" | "big", "slice": ...}.
    A fifth of them, told by a hash of the prompt, is held out and never trained on.
    """


@router.command("train", short_help="Train on judged pairs and write the router.")
@click.argument("rows", type=_FILE)
@click.option("--out", required=True, type=_FILE, help="Where the router is written.")
@click.option("--small", required=True, metavar="TARGET", help="What the small model is called.")
@click.option("--big", required=True, metavar="TARGET", help="What the big model is called.")
@click.option(
    "--small-cost", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Of one answer."
)
@click.option(
    "--big-cost", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Of one answer."
)
@click.option(
    "--quality-floor",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Share of answers that must be no worse than the other model's.  [default: 0.9]",
)
@click.option(
    "--cost-weight",
    type=click.FloatRange(min=0),
    help="Instead of a floor: what a unit of cost is worth in quality.",
)
@json_option
def train(
    rows: Path, out: Path, quality_floor: float | None, cost_weight: float | None, **options: Any
) -> None:
    """Train a router, and judge it on the held-out rows."""
    if quality_floor is not None and cost_weight is not None:
        raise click.UsageError("--quality-floor and --cost-weight exclude each other")
    from posttrain.routing.evaluate import evaluate_router
    from posttrain.routing.rows import part_of, read_rows
    from posttrain.routing.train import CostWeight, QualityFloor, TrainConfig, train_router

    as_json = options.pop("as_json")
    policy = (
        QualityFloor(floor=0.9 if quality_floor is None else quality_floor)
        if cost_weight is None
        else CostWeight(weight=cost_weight)
    )
    found = read_rows(rows)
    model = train_router(TrainConfig(policy=policy, **options), found)
    model.write(out)
    report = evaluate_router(model, part_of(found, "test"))
    if as_json:
        print_json(report.to_json())
        return
    click.echo(f"wrote {out} ({model.digest})")
    _show(report)


@router.command("evaluate", short_help="Judge a router on judged pairs.")
@click.argument("model", type=_FILE)
@click.argument("rows", type=_FILE)
@click.option("--all", "everything", is_flag=True, help="Use all rows, for rows that it was not trained on.")
@json_option
def evaluate(model: Path, rows: Path, everything: bool, as_json: bool) -> None:
    """Judge a router on the held-out part of ROWS: beside always-big, always-small and an oracle."""
    from posttrain.routing.evaluate import evaluate_router
    from posttrain.routing.model import RouterModel
    from posttrain.routing.rows import part_of, read_rows

    found = read_rows(rows)
    report = evaluate_router(RouterModel.read(model), found if everything else part_of(found, "test"))
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)


def _show(report: RouterReport) -> None:
    click.echo(f"{report.rows} rows, {report.unsure} unsure")
    for line in report.policies:
        click.echo(
            f"  {line.name:13} quality {line.quality:6.1%} ({line.low:.1%} to {line.high:.1%})"
            f"  cost {line.mean_cost:.3g}  to the big one {line.big_share:.0%}"
        )
    value, low, high = report.against_big
    click.echo(f"  against always big {value:+.1%} ({low:+.1%} to {high:+.1%})")
    auc = "-" if report.auc is None else f"{report.auc:.3f}"
    click.echo(
        f"  area {report.area:.3f} (lots {report.area_random:.3f}, oracle {report.area_oracle:.3f}: "
        f"gain {report.gain:.2f})  AUC {auc}\n"
        f"  Brier {report.brier:.3f} (constant {report.brier_constant:.3f})  ECE {report.ece:.3f}"
    )
    for part in report.slices:
        click.echo(
            f"  slice {part.slice or '-'}: {part.rows} rows, quality {part.quality:.1%} "
            f"({part.low:.1%} to {part.high:.1%}), to the big one {part.big_share:.0%}"
        )
