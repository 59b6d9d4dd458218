"""``docs/releases.md`` cannot drift from the code, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from posttrain.releases._docs import render
from posttrain.releases.create import create_release
from posttrain.releases.lanes import publish_release
from posttrain.releases.records import ReleaseManifest
from posttrain.releases.spec import ReleaseSpec, parse_spec
from tests.releases.release_world import keep_model, release_home

_PAGE = Path(__file__).parents[2] / "docs" / "releases.md"


def test_the_tables_are_those_of_the_code() -> None:
    page = _PAGE.read_text()
    assert page == render(page), "run: python -m posttrain.releases._docs docs/releases.md"
    for model in (ReleaseManifest, ReleaseSpec):
        assert all(f"| `{name}` |" in page for name in model.model_fields)


def test_every_field_is_explained() -> None:
    rows = [row for row in render(_PAGE.read_text()).splitlines() if row.startswith("| `")]
    assert len(rows) > 45
    assert [row for row in rows if row.endswith("|  |")] == []


def test_the_spec_on_the_page_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    spec = parse_spec(yaml.safe_load(text))
    assert spec.rollback is not None and [t.kind for t in spec.rollback.triggers] == [
        "hard_trip",
        "anytime_valid",
        "health",
    ]


def test_the_python_on_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    home = release_home(tmp_path / "home")
    first = create_release(home, {"name": "v1.2", "model": keep_model(home, 1.0).digest})
    publish_release(home, "v1.2", "production")
    (tmp_path / "release.yaml").write_text(f"name: v1.3\nmodel: {keep_model(home, 2.0).digest}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    exec(compile(code, str(_PAGE), "exec"), {})
    current = home.registry.current_release("production")
    assert current is not None and (current.position, current.previous) == (2, first.digest)
