"""``python -m benchmarks [NAME…] [--list] [--json] [--rounds N] [--size smallest]``: run them and print one table.

Exit code 0 where every comparison held (equal loss curves, equal scores), 1 where one did not, 2 for a name that is not
known. Speed alone never fails the command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from benchmarks import BENCHMARKS, Benchmark, Outcome, machine

_COLUMNS = ("benchmark", "what", "peer", "ours", "theirs", "ratio", "min-max", "target")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        for benchmark in BENCHMARKS:
            print(f"{benchmark.name:12} {benchmark.summary} ({benchmark.rounds} rounds)")
        return 0
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in options.names] or list(BENCHMARKS)
    before = machine()
    outcomes = [(benchmark, _run(benchmark, options.size, options.rounds)) for benchmark in chosen]
    after = machine()["load"]
    if options.json:
        print(
            json.dumps({"machine": before, "load_after": after, "benchmarks": _as_json(outcomes)}, indent=1)
        )
    else:
        _print_table(outcomes)
        _print_machine(before, after)
    return 1 if any(outcome.faults for _, outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {benchmark.name:12} {benchmark.summary}" for benchmark in BENCHMARKS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="posttrain beside its peers; ratios ours/peer, below 1 is better",
        epilog=f"benchmarks:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; default all")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and stop")
    parser.add_argument("--json", action="store_true", help="every measurement, as JSON")
    parser.add_argument("--rounds", type=_positive, help="pairs of runs; default as listed")
    parser.add_argument(
        "--size", choices=("smallest", "default"), default="default", help="how much work a run does"
    )
    return parser


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _run(benchmark: Benchmark, size: str, rounds: int | None) -> Outcome:
    print(f"{benchmark.name}: {benchmark.summary}", file=sys.stderr)
    outcome: Outcome = import_module(f"benchmarks.{benchmark.name}").run(size, rounds or benchmark.rounds)
    return outcome


def _as_json(outcomes: Sequence[tuple[Benchmark, Outcome]]) -> list[dict[str, Any]]:
    return [
        {
            "name": benchmark.name,
            "rows": [row.to_json() for row in outcome.rows],
            "notes": list(outcome.notes),
            "facts": outcome.facts,
            "faults": list(outcome.faults),
        }
        for benchmark, outcome in outcomes
    ]


def _print_table(outcomes: Sequence[tuple[Benchmark, Outcome]]) -> None:
    lines = [
        (benchmark.name, row["what"], row["peer"], *_cells(row))
        for benchmark, outcome in outcomes
        for row in (row.to_json() for row in outcome.rows)
    ]
    widths = [max(len(line[i]) for line in (_COLUMNS, *lines)) for i in range(len(_COLUMNS))]
    for line in (_COLUMNS, tuple("-" * width for width in widths), *lines):
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    for benchmark, outcome in outcomes:
        for note in outcome.notes:
            print(f"{benchmark.name}: {note}")
        for fault in outcome.faults:
            print(f"{benchmark.name}: FAULT: {fault}")


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    unit = row["unit"]
    return (
        f"{row['ours_median']:.4g} {unit}",
        f"{row['theirs_median']:.4g} {unit}",
        f"{row['ratio_median']:.3f}",
        f"{row['ratio_min']:.3f}-{row['ratio_max']:.3f}",
        "" if row["target"] is None else f"<= {row['target']:g}",
    )


def _print_machine(before: Mapping[str, Any], after: Sequence[float]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in before["versions"].items() if version)
    print("ours, theirs: medians over the rounds; ratio: median of the ratios of the pairs, and their range")
    print(
        f"machine: {before['cores']} cores ({before['processor']}, {before['system']}), load {before['load'][0]} "
        f"before and {after[0]} after, torch threads {before['torch_threads']}, Python {before['python']}, {versions}"
    )


if __name__ == "__main__":
    sys.exit(main())
