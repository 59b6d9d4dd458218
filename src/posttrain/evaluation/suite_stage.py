"""Stage ``suite``: a frozen suite as an artifact, so that a recipe can end with an evaluation.

Here: the shipped suite and building one from a folder. Not here: what a suite is (``environments.suite``), its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult

if TYPE_CHECKING:
    from posttrain.artifacts.writer import ArtifactWriter

STANDARD = "standard"
"""The suite that ships: the four slices of the specification."""
STANDARD_CASES = 400
"""Of each slice: a lower bound of 0.99, which the specification asks for, takes 368 cases that all pass."""
_STANDARD_SETTINGS = {
    "name": STANDARD,
    "title": "safety triage, format and arithmetic, reasoning accuracy, tool correctness",
    # Whatever a model asks the documentation has an answer; recorded ones come first.
    "computed_tools": {"search_api": {"kind": "search", "query": "query", "limit": 3}},
}


class SuiteConfig(StageConfig):
    """Config of the ``suite`` stage."""

    source: str = STANDARD
    """``standard``, or a folder in the layout of a suite."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Settings to change, by dotted name: ``decoding.temperature: 0.7``."""

    def external_files(self) -> Mapping[str, Path]:
        """See :class:`StageConfig`. The code that a suite freezes counts, too: with other code it is another suite."""
        from posttrain.evaluation.frozen_code import code_files

        code = {f"code/{name}": path for name, path in code_files().items()}
        return code if self.source == STANDARD else {**code, "source": Path(self.source)}


def run_suite(config: SuiteConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Build a suite. No inputs. Output: ``suite``."""
    files = build_files(config)
    with context.writer("suite", "suite") as writer:
        artifact = keep_files(writer, files)
    context.emit("note", text=f"{artifact.meta['cases']} cases, identity {artifact.meta['identity']['root']}")
    return StageResult({"suite": artifact}, {"cases": artifact.meta["cases"]})


def build_files(config: SuiteConfig) -> dict[str, bytes]:
    """The files of the suite that a config asks for. Raises DataError or ConfigError."""
    from posttrain.environments.slices import SOURCES, build_slice
    from posttrain.environments.suite import SuiteSettings
    from posttrain.environments.suite_build import build_from_folder, build_from_slices, change_settings
    from posttrain.evaluation.frozen_code import frozen_code

    sources = frozen_code()
    if config.source == STANDARD:
        settings = change_settings(SuiteSettings.model_validate(_STANDARD_SETTINGS), config.settings)
        slices = [build_slice(name, cases=STANDARD_CASES) for name in SOURCES]
        return build_from_slices(settings, slices, code=sources)
    return build_from_folder(Path(config.source), code=sources, changes=config.settings)


def keep_files(writer: ArtifactWriter, files: Mapping[str, bytes]) -> Artifact:
    """Commit a suite's files as an artifact; they are checked first."""
    from posttrain.environments.suite_files import parse_suite

    suite = parse_suite(files)
    for path, data in files.items():
        writer.add_bytes(path, data)
    writer.meta.update(
        name=suite.settings.name,
        identity=suite.identity.to_json(),
        cases=len(suite.cases),
        slices={spec.name: len(spec.cases) for spec in suite.slices},
    )
    return writer.commit()
