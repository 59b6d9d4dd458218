"""``posttrain compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json, print_table


@click.command(short_help="Put runs side by side: configuration, measures, paired differences.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option(
    "--column", metavar="LABEL", help="Column of the runs' reports to compare.  [default: the last one]"
)
@json_option
@home_option
def compare(*, runs: tuple[str, ...], column: str | None, as_json: bool, home: Path | None) -> None:
    """Put RUNs side by side; differences are to the first one.

    First what differs in their recipes, then what was measured, then the paired differences with their 95 %
    intervals, over the held-out cases that both have.
    """
    from posttrain.pipelines.compare_runs import compare_runs

    record = compare_runs(home_of(home), runs, column)
    if as_json:
        print_json(record)
        return
    heads = [f"{run['id']}" for run in record["runs"]]
    print_table([["", *heads], ["column", *(run["column"] for run in record["runs"])], *_config_rows(record)])
    click.echo()
    print_table([["", *heads], *_measure_rows(record)])
    for comparison, run in zip(record["comparisons"], record["runs"][1:], strict=True):
        click.echo()
        if comparison is None:
            click.echo(f"{run['id']} was evaluated on another held-out set: no paired differences")
        else:
            click.echo(f"{run['id']} against {record['runs'][0]['id']}, paired, 95% intervals")
            print_table(_difference_rows(comparison), indent="  ")


def _config_rows(record: dict[str, Any]) -> list[list[str]]:
    rows = [[entry["key"], *(_short(value) for value in entry["values"])] for entry in record["config"]]
    return rows or [["configuration", *("the same" for _ in record["runs"])]]


def _short(value: Any, width: int = 40) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _measure_rows(record: dict[str, Any]) -> list[list[str]]:
    from posttrain.evaluation.heldout.measures import measure_info

    by_run = [{measure["name"]: measure for measure in measures} for measures in record["measures"]]
    names = dict.fromkeys(name for measures in by_run for name in measures)
    rows = []
    for name in names:
        unit = measure_info(name).unit
        cells = [_value(measures.get(name), unit) for measures in by_run]
        rows.append([name, *cells])
    return rows


def _value(measure: dict[str, Any] | None, unit: str) -> str:
    if measure is None or measure["value"] is None:
        return "–"
    scale, sign = (100, "%") if unit == "share" else (1, "")
    text = f"{scale * measure['value']:.1f}{sign}"
    if measure["low"] is not None:
        text += f"  {scale * measure['low']:.1f} to {scale * measure['high']:.1f}"
    return text


def _difference_rows(comparison: dict[str, Any]) -> list[list[str]]:
    from posttrain.evaluation.heldout.measures import measure_info

    rows = []
    for difference in comparison["differences"]:
        if difference["difference"] is None:
            continue
        scale = 100 if measure_info(difference["name"]).unit == "share" else 1
        low, high = difference["low"], difference["high"]
        interval = "" if low is None else f"{scale * low:+.1f} to {scale * high:+.1f}"
        rows.append([difference["name"], f"{scale * difference['difference']:+.1f}", interval])
    return rows
