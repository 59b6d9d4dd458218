"""Stage ``suite``: a frozen suite as an artifact, so that a recipe can end with an evaluation.

Here: the shipped suite, building one from a folder, and one slice from a recipe's held-out prompts. Not here: what a
suite is (``environments.suite``), its files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.errors import ConfigError, DataError
from posttrain.data.prompts import PROMPTS_FILE, PromptRow, read_prompts

if TYPE_CHECKING:
    from posttrain.artifacts.writer import ArtifactWriter

STANDARD = "standard"
"""The suite that ships: the four slices of the specification."""
PROMPTS = "prompts"
"""One slice from prompts that a recipe made."""
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
    """``standard``, a folder in the layout of a suite, or ``prompts``: one slice of the input ``prompts``."""
    slice_name: str = Field("problems", pattern=r"^[a-z0-9][a-z0-9_]*$")
    """Of the slice that ``prompts`` become."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Settings to change, by dotted name: ``decoding.temperature: 0.7``."""

    def external_files(self) -> Mapping[str, Path]:
        """See :class:`StageConfig`."""
        return {} if self.source in (STANDARD, PROMPTS) else {"source": Path(self.source)}

    def outside_facts(self) -> Mapping[str, str]:
        """See :class:`StageConfig`. The code that a suite freezes: with other code it is another suite."""
        from posttrain.evaluation.suites.frozen_code import frozen_code

        return frozen_code()


def run_suite(config: SuiteConfig, inputs: Mapping[str, Artifact], context: StageContext) -> StageResult:
    """Build a suite. Input: ``prompts`` (held-out, with answers) for the source of that name. Output: ``suite``."""
    if (config.source == PROMPTS) != ("prompts" in inputs):
        raise ConfigError(
            f"the suite's source is {config.source!r}, and the input `prompts` is "
            f"{'given' if 'prompts' in inputs else 'not given'}",
            hint="set `source: prompts` together with the input `prompts`",
        )
    if "prompts" in inputs:
        rows = read_prompts(context.store.view(inputs["prompts"]) / PROMPTS_FILE)
        files = build_from_prompts(config, rows)
    else:
        files = build_files(config)
    with context.writer("suite", "suite") as writer:
        artifact = keep_files(writer, files)
    context.emit("note", text=f"{artifact.meta['cases']} cases, identity {artifact.meta['identity']['root']}")
    return StageResult({"suite": artifact}, {"cases": artifact.meta["cases"]})


def build_files(config: SuiteConfig) -> dict[str, bytes]:
    """The files of the suite that a config asks for. Raises DataError or ConfigError."""
    from posttrain.environments.suites.build import build_from_folder, build_from_slices, change_settings
    from posttrain.environments.suites.slices import SOURCES, build_slice
    from posttrain.environments.suites.suite import SuiteSettings
    from posttrain.evaluation.suites.frozen_code import frozen_code

    sources = frozen_code()
    if config.source == STANDARD:
        settings = change_settings(SuiteSettings.model_validate(_STANDARD_SETTINGS), config.settings)
        slices = [build_slice(name, cases=STANDARD_CASES) for name in SOURCES]
        return build_from_slices(settings, slices, code=sources)
    return build_from_folder(Path(config.source), code=sources, changes=config.settings)


def build_from_prompts(config: SuiteConfig, rows: Sequence[PromptRow]) -> dict[str, bytes]:
    """The files of a suite whose one slice are prompts with a checkable answer, graded as R1's verifiers do: the right
    number in its tag, the form, one language. Raises DataError where no prompt has an answer."""
    from posttrain.environments.records import Case
    from posttrain.environments.suites.build import build_from_slices, change_settings
    from posttrain.environments.suites.slice_records import SliceSpec
    from posttrain.environments.suites.suite import SuiteSettings
    from posttrain.evaluation.suites.frozen_code import frozen_code

    cases = tuple(
        Case(
            id=f"{config.slice_name}-{row.id}",
            slice=config.slice_name,
            messages=tuple(row.messages()),
            expected={"answer": row.answer},
            tags={"language": row.language, **{key: str(value) for key, value in row.tags.items()}},
        )
        for row in rows
        if row.task == "reasoning"
    )
    if not cases:
        raise DataError("no prompt has an answer to check", hint="give prompts with `task: reasoning`")
    spec = SliceSpec(
        name=config.slice_name,
        summary="Held-out problems: the right number in its tag; form and language are measured",
        cases=cases,
        graders=(
            {"kind": "numeric", "name": "answer", "metric": "answer_correct"},
            {"kind": "answer_tag", "name": "format"},
            {"kind": "one_language", "name": "language"},
        ),
        required=("answer", "format"),
    )
    settings = change_settings(SuiteSettings(name=config.slice_name), config.settings)
    return build_from_slices(settings, [spec], code=frozen_code())


def keep_files(writer: ArtifactWriter, files: Mapping[str, bytes]) -> Artifact:
    """Commit a suite's files as an artifact; they are checked first."""
    from posttrain.environments.suites.files import parse_suite

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
