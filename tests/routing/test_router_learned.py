"""The learned router: trained on pairs with a planted rule, judged on held-out ones, kept as a file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.cli import main
from posttrain.core.errors import ConfigError, DataError
from posttrain.routing import Asked, LearnedRouter, Router, RouterModel, read_router
from posttrain.routing.evaluate import RouterReport, evaluate_router
from posttrain.routing.model import features, pack, platt, unpack
from posttrain.routing.rows import PairRow, part_of, read_rows
from posttrain.routing.train import CostWeight, QualityFloor, TrainConfig, train_router

_EASY = "say hello to my friend and tell them a nice short story about the sea please".split()  # noqa: SIM905
_HARD = "prove the theorem by induction and derive the integral of each matrix equation".split()  # noqa: SIM905
_BANKING = next(
    (
        path
        for folder in Path(__file__).parents[2:5]
        if (path := folder / "shared" / "data" / "banking77" / "train.csv.gz").exists()
    ),
    None,
)


def _rows(count: int, *, noise: float = 0.1, seed: int = 0) -> list[PairRow]:
    """Hard questions are won by the big one, easy ones are ties or won by the small one; some are turned round."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        hard = draw.random() < 0.5
        words = draw.choices(_HARD if hard else _EASY, k=8)
        lost = hard != (draw.random() < noise)
        outcome = "big" if lost else draw.choice(["small", "tie"])
        rows.append(
            PairRow(prompt=f"{' '.join(words)} {number}", outcome=outcome, slice="hard" if hard else "easy")
        )
    return rows


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"small": "s", "big": "b", "buckets": 4096, **changes})


_ROWS = _rows(1500)


@pytest.fixture(scope="module")
def router_model() -> RouterModel:
    return train_router(_config(policy=QualityFloor(floor=0.85)), _ROWS)


@pytest.fixture(scope="module")
def router_report(router_model: RouterModel) -> RouterReport:
    return evaluate_router(router_model, part_of(_ROWS, "test"))


def test_it_learns_the_planted_rule(router_report: RouterReport) -> None:
    lines = {line.name: line for line in router_report.policies}
    assert lines["router"].quality > 0.8
    assert lines["router"].low > max(lines["always big"].high, lines["always small"].high)
    assert lines["router"].mean_cost < lines["always big"].mean_cost
    assert lines["oracle"].quality == 1.0
    value, low, high = router_report.against_big
    assert low < value < high
    assert low > 0
    assert value == pytest.approx(lines["router"].quality - lines["always big"].quality)
    assert router_report.area_random < router_report.area < router_report.area_oracle
    assert router_report.gain > 0.5
    assert router_report.auc is not None
    assert router_report.auc > 0.85
    assert router_report.brier < router_report.brier_constant
    assert router_report.ece < 0.1
    assert {line.slice: line.big_share > 0.5 for line in router_report.slices} == {
        "hard": True,
        "easy": False,
    }
    assert RouterReport.from_json(router_report.to_bytes()) == router_report


def test_the_curve_ends_at_always_small_and_always_big(router_report: RouterReport) -> None:
    lines = {line.name: line for line in router_report.policies}
    first, last = router_report.curve[0], router_report.curve[-1]
    assert (first.big_share, first.quality, first.mean_cost) == (0.0, lines["always small"].quality, 1.0)
    assert (last.big_share, last.quality, last.mean_cost) == (1.0, lines["always big"].quality, 10.0)


def test_nothing_to_learn_is_seen_as_nothing() -> None:
    rows = _rows(1500, noise=0.5)
    report = evaluate_router(
        train_router(_config(policy=CostWeight(weight=0.0)), rows), part_of(rows, "test")
    )
    assert abs(report.gain) < 0.25
    assert report.brier > report.brier_constant - 0.02


def test_the_threshold_follows_its_policy(router_model: RouterModel) -> None:
    shares = []
    for policy in (QualityFloor(floor=0.6), QualityFloor(floor=0.85)):
        report = evaluate_router(train_router(_config(policy=policy), _ROWS), part_of(_ROWS, "choose"))
        assert report.policies[0].quality >= policy.floor
        shares.append(report.policies[0].big_share)
    assert shares[0] < shares[1]
    dear = train_router(_config(policy=CostWeight(weight=10.0)), _ROWS)
    assert evaluate_router(dear, _ROWS).policies[0].big_share == 0.0
    free = train_router(_config(policy=CostWeight(weight=0.0)), _ROWS)
    assert evaluate_router(free, part_of(_ROWS, "choose")).policies[0].quality >= 0.85
    with pytest.raises(ConfigError, match=r"no threshold keeps 0\.999"):
        train_router(_config(policy=QualityFloor(floor=0.999)), _ROWS)


def test_training_again_gives_the_same_bytes_and_never_looks_at_the_test_part(
    router_model: RouterModel,
) -> None:
    config = _config(policy=QualityFloor(floor=0.85))
    assert train_router(config, _ROWS).to_bytes() == router_model.to_bytes()
    turned = [
        row.model_copy(update={"outcome": "small" if row.outcome == "big" else "big"})
        if row.part == "test"
        else row
        for row in _ROWS
    ]
    other = train_router(config, turned)
    assert other.model_copy(update={"rows": router_model.rows}) == router_model


def test_parts_are_of_the_prompt_and_of_the_promised_size() -> None:
    rows = _rows(4000)
    shares = {part: len(part_of(rows, part)) / len(rows) for part in ("train", "choose", "test")}  # type: ignore[arg-type]
    assert shares == pytest.approx({"train": 0.6, "choose": 0.2, "test": 0.2}, abs=0.03)
    assert rows[0].part == rows[0].model_copy(update={"outcome": "tie", "slice": "x"}).part


def test_the_file_is_read_as_it_was_written_and_checked(tmp_path: Path, router_model: RouterModel) -> None:
    path = tmp_path / "router.json"
    router_model.write(path)
    again = RouterModel.read(path)
    assert again == router_model
    assert again.digest == router_model.digest
    assert (
        LearnedRouter(again).score("prove it").probability
        == LearnedRouter(router_model).score("prove it").probability
    )
    data = json.loads(path.read_text())
    for change in (
        {"weights": data["weights"][:-8]},
        {"weights": "!"},
        {"idf": pack([float("nan")] * 4096, "f")},
        {"features": 99},
        {"threshold": 2},
        {"schema": 9},
        {"extra": 1},
    ):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(DataError):
            RouterModel.read(path)
    with pytest.raises(DataError, match="cannot read"):
        RouterModel.read(tmp_path / "none")


def test_unsure_and_failing_go_to_the_fallback(router_model: RouterModel) -> None:
    config = read_router({"fallback": "safe"})
    router = Router(config, router_model)
    assert (
        router.choose(Asked("prove theorem derive integral each matrix induction equation 3")).target == "b"
    )
    assert router.choose(Asked("say hello to my friend please nice sea 3")).target == "s"
    choice = router.choose(Asked("Wie spät ist es eigentlich in Ulaanbaatar?"))
    assert (choice.target, choice.by) == ("safe", "unsure")
    assert Router(config, router_model).choose(Asked("")).by == "unsure"
    broken = router_model.model_copy(update={"bias": float("nan"), "slope": "x"})
    choice = Router(config, broken).choose(Asked("prove the theorem"))
    assert (choice.target, choice.by) == ("safe", "failed")


def test_serving_needs_neither_numpy_nor_torch() -> None:
    code = (
        "import sys; import posttrain.routing; "
        "print([m for m in ('numpy', 'scipy', 'torch', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=500))
def test_any_text_is_scored(text: str) -> None:
    seen = features(text, 64)
    assert all(0 <= bucket < 64 and count > 0 for bucket, count in seen.counts.items())
    assert seen == features(text, 64)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_numbers_survive_packing(values: list[float]) -> None:
    assert unpack(pack(values, "f"), "f").tolist() == values


@pytest.mark.parametrize("margin", [-1e6, -1.0, 0.0, 1.0, 1e6])
def test_probabilities_never_overflow(margin: float) -> None:
    assert 0.0 <= platt(margin, 3.0, -0.5) <= 1.0


def test_too_few_rows_and_broken_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        train_router(_config(), _ROWS[:60])
    with pytest.raises(DataError, match="1 kinds of outcome"):
        train_router(_config(), [row.model_copy(update={"outcome": "tie"}) for row in _ROWS])
    with pytest.raises(DataError, match="no rows"):
        evaluate_router(train_router(_config(policy=CostWeight(weight=0.0)), _ROWS), [])
    path = tmp_path / "rows.jsonl"
    for text, message in (
        ('{"prompt": "a", "outcome": "big"}\n\n{"prompt": "a", "outcome": "huge"}', ":3: outcome"),
        ("{", ":1: not JSON"),
        ("[1]", ":1:"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_rows(path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "router.json"
    rows.write_text("".join(row.model_dump_json() + "\n" for row in _ROWS))
    train = ["router", "train", str(rows), "--out", str(out), "--small", "s", "--big", "b"]
    assert main([*train, "--quality-floor", "0.8", "--cost-weight", "1"]) == 2
    capsys.readouterr()
    assert main([*train, "--quality-floor", "0.8"]) == 0
    text = capsys.readouterr().out
    for part in ("always big", "always small", "oracle", "Brier", "slice hard"):
        assert part in text
    assert main(["router", "evaluate", str(out), str(rows), "--json"]) == 0
    report = RouterReport.from_json(capsys.readouterr().out)
    assert report.rows == len(part_of(_ROWS, "test"))
    assert report.model == RouterModel.read(out).digest
    assert main(["router", "evaluate", str(out), str(rows), "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == len(_ROWS)


@pytest.mark.skipif(_BANKING is None, reason="the public data set is not here")
def test_skills_of_real_questions_are_told_apart() -> None:
    assert _BANKING is not None
    with gzip.open(_BANKING) as stream:
        found = list(csv.DictReader(io.TextIOWrapper(stream, "utf-8")))[::3]
    rows = [
        PairRow(prompt=row["text"], outcome="big" if "card" in row["category"] else "small") for row in found
    ]
    report = evaluate_router(
        train_router(_config(policy=QualityFloor(floor=0.8)), rows), part_of(rows, "test")
    )
    assert report.auc is not None
    assert report.auc > 0.93
    assert report.policies[0].quality > 0.8
    assert report.ece < 0.06


def test_golden_files_are_read_and_score_as_they_did() -> None:
    folder = Path(__file__).parent / "golden"
    for name, record in (("router-model-1.json", RouterModel), ("router-report-1.json", RouterReport)):
        text = (folder / name).read_text()
        assert record.from_json(text).to_json() == json.loads(text)
    model = RouterModel.from_json((folder / "router-model-1.json").read_text())
    rows = [
        PairRow(prompt="say hello", outcome="small", slice="a"),
        PairRow(prompt="please prove", outcome="big", slice="b"),
        PairRow(prompt="prove", outcome="tie", slice="b"),
    ]
    report = RouterReport.from_json((folder / "router-report-1.json").read_text())
    assert evaluate_router(model, rows) == report
