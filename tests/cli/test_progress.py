"""What a run looks like: the state from its events, plain lines and their pace, the live drawing."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.cli._live import LiveDisplay
from posttrain.cli._progress import PlainDisplay, RunView, duration
from posttrain.core.events import Event
from tests.cli.test_command_line import _ROOT
from tests.pipelines.toy_stages import TOY_RECIPE


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(*stages: str) -> Event:
    return Event(
        "run_started", None, {"run": "20261123-150405-ab12", "recipe": "toy", "stages": list(stages)}
    )


def progress(step: int, total: int = 100, **figures: object) -> Event:
    return Event("progress", "rl", {"step": step, "total": total, **figures})


def test_time_left_counts_from_the_first_step_seen() -> None:
    clock = Clock()
    view = RunView(clock)
    view.apply(started("rl"))
    view.apply(Event("stage_started", "rl", {"key": "sha256:" + "0" * 64}))
    line = view.apply(progress(40))  # taken up at step 40: the first 40 steps took no time here
    assert line is not None
    assert line.seconds_left(clock.now) is None
    clock.now += 10
    view.apply(progress(45))
    assert line.seconds_left(clock.now) == pytest.approx(110)
    view.apply(progress(0, 10, phase="evaluation"))
    assert line.seconds_left(clock.now) is None


def test_plain_lines_keep_a_pace() -> None:
    clock, lines = Clock(), list[str]()
    display = PlainDisplay(lines.append, clock)
    display(started("data", "rl"))
    display(Event("stage_started", "rl", {"key": "k"}))
    for step in range(1, 1001):
        clock.now += 0.001
        display(progress(step, 1000, reward=0.5, accuracy=0.25, tokens_per_second=1234.4))
    shown = [line for line in lines if " step " in line]
    assert len(shown) == 10
    assert shown[0].startswith("[2/2] rl: step 100/1000  reward 0.500  accuracy 25.0%  1,234 tokens/s  ")
    assert shown[-1].startswith("[2/2] rl: step 1000/1000")
    lines.clear()
    display(Event("stage_started", "rl", {"key": "k"}))
    for step in range(1, 61):
        clock.now += 1.0
        display(progress(step, 100_000))
    assert len(lines) - 1 == 12  # slow work: one line in five seconds


def test_plain_lines_of_everything_else() -> None:
    lines = list[str]()
    display = PlainDisplay(lines.append, Clock())
    display(started("data", "rl"))
    display(Event("stage_reused", "data", {"key": "sha256:" + "ab" * 32, "outputs": {}}))
    display(Event("stage_resumed", "rl", {"key": "k", "from_step": 20}))
    display(Event("warning", "rl", {"text": "many clipped", "hint": "raise max_tokens"}))
    display(Event("note", None, {"text": "quiet"}))
    display(Event("stage_failed", "rl", {"error": "no", "hint": None}))
    display(Event("run_finished", None, {"run": "r", "status": "failed", "outputs": {}, "seconds": 75.0}))
    assert lines == [
        "run 20261123-150405-ab12: toy, 2 stages",
        "[1/2] data: reused, same configuration, inputs and code (key abababababab)",
        "[2/2] rl: resumed from step 20",
        "[2/2] rl: warning: many clipped (raise max_tokens)",
        "quiet",
        "[2/2] rl: failed: no",
        "run r: failed after 1m15s",
    ]


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 9.96, 10, 59.6, 192, 3840)] == [
        "0.0 s",
        "10.0 s",
        "10 s",
        "1m00s",
        "3m12s",
        "1h04m",
    ]


def test_live_drawing() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with LiveDisplay(console) as display:
        display(started("data", "base", "rl", "report"))
        display(Event("stage_reused", "data", {"key": "sha256:" + "ab" * 32, "outputs": {}}))
        display(Event("stage_started", "base", {"key": "k"}))
        display(Event("stage_finished", "base", {"key": "k", "outputs": {}, "seconds": 42.0}))
        display(Event("stage_started", "rl", {"key": "k"}))
        display(progress(10, 80, reward=0.75, accuracy=0.5, tokens_per_second=900, phase="training"))
        display(Event("warning", "rl", {"text": "entropy is low", "hint": "raise temperature"}))
        display.live.refresh()
    text = re.sub(r"\[[0-9;?]*[A-Za-z]", "", stream.getvalue().replace("\x1b", ""))
    parts = [
        "toy  20261123-150405-ab12",
        "✓ data",
        "reused  abababababab",
        "✓ base",
        "42 s",
        "training",
        "· report",
    ]
    parts += ["10/80", "reward 0.750  accuracy 50.0%  900 tokens/s", "entropy is low (raise temperature)"]
    assert [part for part in parts if part not in text] == []


def test_a_terminal_gets_the_live_drawing(tmp_path: Path) -> None:
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(TOY_RECIPE)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.toy_main", "run", str(recipe), "--home", str(tmp_path / "home")],
        stdout=theirs,
        stderr=theirs,
        cwd=_ROOT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "✓ second" in text
    assert "4 stages, 0 reused" in text
