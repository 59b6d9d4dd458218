"""Killed at any moment while releases are made, signed and published: nothing half-done is left."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from posttrain.releases.lanes import list_releases
from posttrain.releases.verify import verify_everything, verify_release
from tests.releases.release_world import release_home

_SCRIPT = textwrap.dedent("""
    import sys
    from pathlib import Path
    from posttrain.releases.create import create_release
    from posttrain.releases.lanes import publish_release
    from tests.releases.release_world import keep_model, release_home

    home, first = release_home(Path(sys.argv[1])), int(sys.argv[2])
    for seed in range(first, first + 1000):
        (Path(sys.argv[3]) / "settings.yaml").write_text(f"seed: {seed}\\n")
        spec = {
            "name": f"v{seed}",
            "model": keep_model(home, float(seed)).digest,
            "configuration": {"settings": {"file": "settings.yaml"}},
        }
        create_release(home, spec, folder=Path(sys.argv[3]))
        publish_release(home, f"v{seed}", "production", actor="loop")
        print(seed, flush=True)
""")


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_lanes_and_journal_agreed(tmp_path: Path) -> None:
    folder, draws = tmp_path / "home", random.Random(0)
    release_home(folder)
    for kill in range(25):
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, folder, str(kill * 1000), tmp_path], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"{kill * 1000}\n".encode()
        time.sleep(draws.uniform(0, 0.1))  # somewhere in the next one
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        home = release_home(folder)
        published = [
            (line.data["release"], line.data["position"])
            for line in home.registry.journal(action="release.published")
        ]
        assert published == [(entry.digest, entry.position) for entry in home.registry.releases("production")]
        assert home.registry.verify_journal() == []
    home = release_home(folder)
    assert verify_everything(home) == []
    releases = list_releases(home)
    assert len(releases) >= 25
    assert all(line.problem is None and verify_release(home, line.digest) == [] for line in releases)
