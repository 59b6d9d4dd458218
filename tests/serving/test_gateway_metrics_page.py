"""One page of metrics, whichever worker is asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

from posttrain.serving.gateway.metrics_page import MetricsShelf, merge

A = b'# HELP m_total Things.\n# TYPE m_total counter\nm_total{route="x"} 3\n# HELP g A gauge.\n# TYPE g gauge\ng 1\n'
B = b'# HELP m_total Things.\n# TYPE m_total counter\nm_total{route="x"} 4\nm_total{route="y"} 1\n'


def test_families_stand_together_and_every_sample_says_its_worker() -> None:
    assert merge({"w0": A, "w1": B}).decode().splitlines() == [
        "# HELP m_total Things.",
        "# TYPE m_total counter",
        'm_total{worker="w0",route="x"} 3',
        'm_total{worker="w1",route="x"} 4',
        'm_total{worker="w1",route="y"} 1',
        "# HELP g A gauge.",
        "# TYPE g gauge",
        'g{worker="w0"} 1',
    ]


def test_a_worker_shows_itself_as_it_is_and_others_as_they_were_put(tmp_path: Path) -> None:
    first, second = MetricsShelf(tmp_path / "m", "w0"), MetricsShelf(tmp_path / "m", "w1")
    second.put(B)
    first.put(b"m_total 1\n")
    assert first.page(A) == merge({"w0": A, "w1": B})
    old = time.time() - 60
    os.utime(tmp_path / "m" / "w1.prom", (old, old))  # it is gone
    assert first.page(A) == merge({"w0": A})


def test_what_is_no_sample_is_left_out() -> None:
    assert merge({"w0": b"nonsense here now\n\xff\n# EOF\nx 1\n"}) == b"\n"
