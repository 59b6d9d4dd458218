"""Figures: the same bytes for the same data, colours that a page can change, and logs as they really come."""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from posttrain.evaluation.heldout.figures import (
    MAX_OUTCOMES,
    MAX_POINTS,
    draw_outcomes,
    draw_training,
    smooth,
)

LOG = [
    {
        "step": step,
        "loss": 0.1,
        "reward": 0.2 + step / 100,
        "rewards/accuracy_reward/mean": min(1.0, step / 60),
        "rewards/accuracy_reward/std": 0.3,
        "rewards/think_format/mean": min(1.0, 0.5 + step / 90),
        "completions/mean_length": 40 + step % 5,
        "completions/clipped_ratio": 0.0,
        "entropy": 1.2 - step / 100,
        "frac_reward_zero_std": 0.25,
    }
    for step in range(1, 61)
]
COUNTS = {
    "base": {"correct": 20, "wrong_number": 50, "no_answer_tag": 30},
    "R1-Zero": {"correct": 80, "wrong_number": 20},
}
SVG = "{http://www.w3.org/2000/svg}"


def test_a_training_log_gives_one_figure_a_quantity():
    drawings = draw_training(LOG)
    assert [d.name for d in drawings] == ["reward", "accuracy", "length", "entropy", "signal"]
    for drawing in drawings:
        assert ET.fromstring(drawing.svg).tag == f"{SVG}svg"
        assert drawing.png.startswith(b"\x89PNG")
        assert drawing.title and drawing.caption.endswith(".")
    accuracy = drawings[1]
    assert "accuracy" in accuracy.caption and "format" in accuracy.caption
    assert "100%" in accuracy.caption


def test_the_same_data_give_the_same_bytes_in_another_process(tmp_path):
    program = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[1]); import test_figures as t;"
        "from posttrain.evaluation.heldout.figures import *;"
        "print(*[hashlib.sha256(d.svg.encode() + d.png).hexdigest()"
        " for d in [*draw_training(t.LOG), draw_outcomes(t.COUNTS)]])"
    )
    # A matplotlibrc of the user's own must not change the figures either.
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 31\naxes.grid: False\n")
    digests = set()
    for seed, extra in (("1", {}), ("2", {"MATPLOTLIBRC": str(tmp_path)})):
        environment = {**os.environ, "PYTHONHASHSEED": seed, **extra}
        command = [sys.executable, "-c", program, str(Path(__file__).parent)]
        digests.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(digests) == 1


def test_an_svg_names_no_time_font_or_address():
    for drawing in [*draw_training(LOG), draw_outcomes(COUNTS)]:
        inline = drawing.inline_svg()
        assert inline.startswith("<svg ") and inline.rstrip().endswith("</svg>")
        assert "http" not in inline and "<style" not in inline and "<metadata" not in inline
        assert "DejaVu" not in drawing.svg
        assert not re.search(r"\b(19|20)\d\d-\d\d-\d\d\b", drawing.svg)
        assert "viewBox" in inline and not re.match(r"<svg[^>]* width=", inline)
        assert 'role="img"' in inline


def test_ids_of_two_figures_on_one_page_differ():
    ids = [
        found
        for drawing in [*draw_training(LOG), draw_outcomes(COUNTS)]
        for found in re.findall(r'\bid="([^"]+)"', drawing.svg)
    ]
    assert len(ids) == len(set(ids)) > 50
    for drawing in draw_training(LOG):
        own = set(re.findall(r'\bid="([^"]+)"', drawing.svg))
        assert set(re.findall(r"url\(#([^)]+)\)", drawing.svg)) <= own
        assert set(re.findall(r'href="#([^"]+)"', drawing.svg)) <= own


def test_every_colour_can_be_changed_by_the_page():
    for drawing in [*draw_training(LOG), draw_outcomes(COUNTS)]:
        without_variables = re.sub(r"var\(--fig-\w+, #[0-9a-f]{6}\)", "", drawing.svg)
        assert not re.search(r"#[0-9a-fA-F]{6}\b", without_variables)


def test_rows_that_a_trainer_really_logs_are_passed_over():
    log = [
        {"step": 1, "reward": 0.1},
        {"step": 2, "reward": float("nan"), "loss": 1.0},
        {"step": 3, "reward": None},
        {"step": 4, "reward": 0.4},
        {"step": 4, "reward": 0.5},  # Logged again after a resume: the later row counts.
        {"eval_reward": 3.0, "step": 4},
        {"train_runtime": 12.0, "step": 4, "reward": "n/a"},
        {"reward": 9.9},
    ]
    (drawing,) = draw_training(log)
    assert "reward 0.1 to 0.5" in drawing.caption
    assert draw_training([]) == [] == draw_training([{"step": 1, "reward": 1.0}])


def test_a_long_log_stays_a_small_figure():
    log = [{"step": step, "reward": math.sin(step / 500)} for step in range(20_000)]
    (drawing,) = draw_training(log)
    assert len(drawing.svg) < 100 * MAX_POINTS


def test_smoothing_keeps_constants_and_lengths():
    assert smooth([2.0] * 9, 5) == [2.0] * 9
    assert smooth([0.0, 3.0, 0.0], 3) == [1.5, 1.0, 1.5]
    assert smooth([1.0, 2.0, 4.0], 1) == [1.0, 2.0, 4.0]
    assert smooth([], 5) == []


def test_outcomes_are_shares_with_correct_first():
    svg = draw_outcomes(COUNTS).svg
    texts = [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]
    assert {"20", "50", "30", "80"} <= set(texts)
    assert texts.index("correct") < texts.index("wrong number") < texts.index("no answer tag")


def test_many_outcomes_are_drawn_as_few():
    counts = {"base": {f"kind_{index:02d}": 20 - index for index in range(12)}}
    texts = [element.text for element in ET.fromstring(draw_outcomes(counts).svg).iter(f"{SVG}text")]
    kinds = [text for text in texts if text and (text.startswith("kind ") or text == "everything else")]
    assert len(kinds) == MAX_OUTCOMES and kinds[-1] == "everything else"


def test_labels_are_text_and_never_markup():
    svg = draw_outcomes({"<b> & $x$": {"_hidden": 3, "correct": 1}, "empty": {}}).svg
    texts = [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]
    assert "<b> & $x$" in texts and " hidden" in texts


@pytest.mark.parametrize("name", ["reward", "accuracy"])
def test_a_png_is_an_image_of_the_stated_size(name):
    from PIL import Image

    drawing = next(d for d in draw_training(LOG) if d.name == name)
    image = Image.open(io.BytesIO(drawing.png))
    assert image.size == (704, 432)
    assert image.getpixel((0, 0))[:3] == (255, 255, 255)
    assert len(image.convert("L").getcolors()) > 10
