"""The benchmarks run at their smallest size and say what they should; no figure in seconds is judged here."""

from __future__ import annotations

import copy
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import BENCHMARKS, Row, measure, pair
from benchmarks.grpo_vs_trl import CURVE, differences

ROOT = Path(__file__).parents[2]


def run_benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def smallest(name: str, rounds: int) -> dict[str, Any]:
    """The benchmark's JSON, with everything checked that holds for each of them."""
    done = run_benchmarks(name, "--size", "smallest", "--rounds", str(rounds), "--json")
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout)
    assert [found for benchmark in answer["benchmarks"] for found in benchmark["faults"]] == []
    assert done.returncode == 0
    assert answer["machine"]["cores"] >= 1 and len(answer["machine"]["load"]) == 3
    (benchmark,) = answer["benchmarks"]
    assert benchmark["name"] == name and benchmark["notes"]
    assert benchmark["rows"]
    for row in benchmark["rows"]:
        assert len(row["ours"]) == len(row["theirs"]) >= rounds
        ratios = [ours / theirs for ours, theirs in zip(row["ours"], row["theirs"], strict=True)]
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios), row
        assert row["ratio_median"] == statistics.median(ratios)
        assert (row["ratio_min"], row["ratio_max"]) == (min(ratios), max(ratios))
    return benchmark


@pytest.mark.parametrize("name", ["cli_start", "gate", "runner", "store"])
def test_benchmark_runs_at_its_smallest_size(name: str) -> None:
    smallest(name, rounds=2)


def test_the_gateway_is_measured_at_fixed_rates_too() -> None:
    facts = smallest("gateway", rounds=2)["facts"]
    assert len(facts["rss_mb"]) == 2
    for target in ("direct", "ours"):
        for values in facts["measured"][target]:
            assert {"cpu_us_1", "wall_us_16", "p99_ms_64", "chunk_us", "stream_ms"} <= values.keys()
            assert {"paced_p50_ms_1000", "paced_p99_ms_4000", "paced_waited_4000"} <= values.keys()
            assert all(0 < values[f"paced_kept_{rate}"] <= 1 for rate in (1000, 4000))
    assert [line["rate"] for line in facts["paced"] if line["target"] == "no gateway"] == [1000, 4000]
    assert ("gateway (interpreted)" in {line["target"] for line in facts["paced"]}) is facts["compiled"]


def test_both_sides_of_the_rewards_benchmark_give_the_same_scores() -> None:
    benchmark = smallest("rewards", rounds=1)
    # Scores that are all 0 or all 1 would agree whatever was read.
    assert all(0.2 < share < 0.9 for share in benchmark["facts"]["right"].values())


@pytest.mark.slow
def test_the_stage_and_a_bare_trl_script_train_the_same_model() -> None:
    facts = smallest("grpo_vs_trl", rounds=1)["facts"]
    ours, bare = facts["ours"]["curve"], facts["bare"]["curve"]
    assert len(ours) == len(bare) == 4
    assert ours == bare
    assert facts["ours"]["weights"] == facts["bare"]["weights"]
    # And there was something to differ in: rewards of both kinds, and gradients that moved the model.
    assert len({row["reward"] for row in ours}) > 1
    assert any(row["rewards/accuracy/mean"] > 0 for row in ours)
    assert all(0 < row["rewards/format/mean"] < 1 and row["grad_norm"] > 0 for row in ours)


def test_a_difference_between_the_curves_or_the_weights_is_found() -> None:
    result = {"curve": [dict.fromkeys(CURVE, 0.5), dict.fromkeys(CURVE, 0.25)], "weights": "a"}
    assert differences([result, result], [result, result]) == []
    for column in CURVE:
        other = copy.deepcopy(result)
        other["curve"][1][column] = math.nextafter(0.25, 1)
        (found,) = differences([result, other], [result])
        assert "step 2" in found and column in found
    assert differences([{**result, "weights": "b"}], [result]) == ["the final weights of the stage differ"]
    assert differences([result], [result, {**result, "weights": "b"}])
    with pytest.raises(ValueError, match="zip"):
        differences([{**result, "curve": result["curve"][:1]}], [result])


def test_pairs_alternate_and_are_compared_round_by_round() -> None:
    order: list[str] = []

    def side(name: str, seconds: list[float]) -> Any:
        def run(number: int) -> dict[str, float]:
            order.append(f"{name}{number}")
            return {"wall": seconds[number]}

        return run

    pairs = pair(3, side("a", [1.0, 6.0, 10.0]), side("b", [2.0, 2.0, 5.0]))
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    row = pairs.row("work", "wall", "peer", unit="ms", scale=1000.0).to_json()
    # The median of the ratios 0.5, 3 and 2, not the ratio of the medians 6 and 2.
    assert (row["ratio_median"], row["ratio_min"], row["ratio_max"]) == (2.0, 0.5, 3.0)
    assert (row["ours_median"], row["theirs_median"]) == (6000.0, 2000.0)


def test_processor_time_counts_child_processes_that_live_and_that_have_ended() -> None:
    spin = (
        "import time\n"
        "end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\n"
        "print(1, flush=True)\n"
        "input()"
    )
    living: list[subprocess.Popen[bytes]] = []

    def work() -> None:
        for ends in (True, False):
            child = subprocess.Popen(
                [sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            child.stdout.readline()
            if ends:
                child.communicate(b"\n")
            else:
                living.append(child)

    try:
        seconds = measure(work)
    finally:
        for child in living:
            child.communicate(b"\n")
    assert seconds["cpu"] >= 0.55
    assert seconds["wall"] >= 0.55


def test_rows_with_different_numbers_of_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        Row("work", "peer", [1.0, 2.0], [1.0]).to_json()


def test_the_benchmarks_are_listed_and_an_unknown_name_is_refused() -> None:
    listed = run_benchmarks("--list")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [b.name for b in BENCHMARKS]
    assert {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")} == {b.name for b in BENCHMARKS}
    unknown = run_benchmarks("stores")
    assert unknown.returncode == 2 and "'stores'" in unknown.stderr and "store" in unknown.stderr
    assert run_benchmarks("store", "--rounds", "0").returncode == 2


def test_the_table_names_every_column_and_the_machine() -> None:
    done = run_benchmarks("store", "--size", "smallest", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    header, rule, *rows = done.stdout.splitlines()
    assert header.split() == ["benchmark", "what", "peer", "ours", "theirs", "ratio", "min-max", "target"]
    assert set(rule) == {"-", " "}
    assert sum(line.startswith("store  ") for line in rows) == 5
    assert rows[-1].startswith("machine: ") and "torch threads 1" in rows[-1] and "load" in rows[-1]
