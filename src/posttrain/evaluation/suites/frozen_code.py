"""Which code decides what comes of an answer: part of a suite's identity.

Here: the list, the digests of its sources, and refusing a suite that was built with others. Not here: that code.
Loads nothing of it: sources are read, not imported.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.core.errors import DataError
from posttrain.core.sources import SourceModule, SourceTree
from posttrain.environments.suites.suite import Suite

_ROOT = Path(__file__).resolve().parents[2]
FROZEN_CODE = (
    "data/languages.py",
    "environments/retrieval.py",
    "environments/sandbox",
    "environments/tools.py",
    "engines/conversation.py",
    "evaluation/graders",
    "evaluation/suites/grading.py",
    "rewards/formats.py",
    "rewards/parsing.py",
    "rewards/quantities.py",
    "rewards/records.py",
)
"""Files and folders of the package that decide what comes of an answer. A test finds what is missing here."""


def code_files() -> dict[str, Path]:
    """Every source file of ``FROZEN_CODE``, by its path in the package."""
    found = {}
    for place in FROZEN_CODE:
        root = _ROOT / place
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            found[path.relative_to(_ROOT).as_posix()] = path
    return found


def frozen_code() -> dict[str, str]:
    """The digest of each of them, in normal form: a comment, a docstring or a type is no other grader."""
    sources = SourceTree({"posttrain": _ROOT})
    return {name: sources.digest(_module(sources, name)) for name in code_files()}


def _module(sources: SourceTree, name: str) -> SourceModule:
    dotted = name.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    module = sources.module(f"posttrain.{dotted}")
    if module is None:
        raise FileNotFoundError(name)
    return module


def check_code(suite: Suite) -> None:
    """Raise DataError where the suite was built with other code than is installed: its identity names that."""
    here = frozen_code()
    if dict(suite.code) == here:
        return
    names = sorted(here.keys() | suite.code.keys())
    other = next(name for name in names if here.get(name) != suite.code.get(name))
    raise DataError(
        f"the suite {suite.settings.name!r} was built with other code: {other} differs",
        hint="build it again with `posttrain suite build`, and evaluate the baseline on the new suite",
    )
