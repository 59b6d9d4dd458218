"""Graders of what an answer says: rule sets, versions, deprecated names.

*Covered* by ``deprecation``: calls, attributes, imports and ``getattr`` with a constant, in code that parses; the bare
name in code that does not; in prose a name that is recommended. *Not covered*: a name that is put together at run time;
an attribute of that name on an object of another library (it counts); prose that recommends a name in a sentence that
also warns (it does not count).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from posttrain.environments.records import Answer, Case
from posttrain.evaluation.graders import config as c
from posttrain.evaluation.graders.code_blocks import split_code
from posttrain.evaluation.graders.records import Grade, Grader, Metric
from posttrain.evaluation.graders.texts import Verdict

_WARNING = re.compile(
    r"\b(?:deprecated?|deprecation|avoid|instead of|rather than|don'?t|do not|never|no longer|removed?|replaces?"
    r"|replaced|replacing|migrate from|obsolete|not use|stop using|without)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n")
_INSTALL = re.compile(
    r"\b(?:pip3?|uv pip|poetry|pipenv|conda|mamba)\s+(?:install|add)\b([^\n`]*)", re.IGNORECASE
)


class RuleSet(Verdict):
    """Broken rules are few enough."""

    usual_metric = "rules_kept"
    meaning = "No more rules are broken than allowed."
    config: c.RuleSetConfig

    def __init__(self, config: c.RuleSetConfig, counted: Sequence[Grader] = ()) -> None:
        super().__init__(config)
        self._counted = tuple(counted)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict, whether any rule is broken, and how many."""
        return (
            *super().metrics,
            Metric("rule_violation", "bool", "At least one rule is broken."),
            Metric("rule_violations", "int64", "Broken rules."),
        )

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Count what is broken; None where a counted grader could not tell."""
        broken = [rule.name for rule in self.config.rules if is_broken(rule, answer.text)]
        for grader in self._counted:
            grade = grader.grade(case, answer)
            if grade.passed is None:
                return self.verdict(
                    None, f"{grader.name}: {grade.reason}", rule_violation=None, rule_violations=None
                )
            if not grade.passed:
                broken.append(grader.name)
        count = len(broken)
        named = ", ".join(broken) if not self._counted else ""
        reason = (
            f"{count} rule violation{'s' * (count != 1)}" + (f": {named}" if named else "") if count else ""
        )
        return self.verdict(
            count <= self.config.allowed, reason, rule_violation=count > 0, rule_violations=count
        )


class VersionMatch(Verdict):
    """The version is cited, and pinned wherever it is installed."""

    meaning = "The version is cited, and pinned wherever the package is installed."
    config: c.VersionMatchConfig

    def __init__(self, config: c.VersionMatchConfig) -> None:
        super().__init__(config)
        self.column = config.metric or f"api_version_match('{config.version}')"
        self._cited = re.compile(rf"(?<![\w.])(?:[=~<>!]=+|v|V)?{re.escape(config.version)}(?![\w]|[.-]\w)")

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Look for citations, installs and pins."""
        if not self._cited.search(answer.text):
            return self.verdict(False, "Missing version string")
        if self.config.package:
            for given in _pins(self.config.package, answer.text):
                if given != self.config.version:
                    return self.verdict(
                        False, f"Pins {given}" if given else "Installs without a pinned version"
                    )
        return self.verdict(True, "")


class Deprecation(Verdict):
    """No deprecated name is used."""

    usual_metric = "deprecation_free"
    meaning = "No deprecated name is used."
    config: c.DeprecationConfig

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The verdict and the number of uses."""
        return (*super().metrics, Metric("deprecated_uses", "int64", "Uses of deprecated names."))

    def grade(self, case: Case, answer: Answer) -> Grade:
        """Look through code and prose."""
        names = {name.rpartition(".")[2]: name for name in self.config.names}
        split = split_code(answer.text)
        used = [name for block in split.blocks for name in _used_in_code(block.code, names)]
        used += _recommended(split.prose, names)
        reason = "Found " + ", ".join(f"`{name}()`" for name in dict.fromkeys(used)) if used else ""
        return self.verdict(not used, reason, deprecated_uses=len(used))


def is_broken(rule: c.Rule, text: str) -> bool:
    """Whether ``text`` breaks ``rule``. Patterns ignore case."""
    if rule.must and not any(re.search(pattern, text, re.IGNORECASE) for pattern in rule.must):
        return True
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in rule.must_not)


def _pins(package: str, text: str) -> Iterator[str]:
    """The version of every pin of ``package``, and an empty one for each install without one."""
    name = "[-_.]+".join(re.escape(part) for part in re.split("[-_.]+", package))
    requirement = re.compile(
        rf"(?<![\w-]){name}(?:\[[\w, ]*\])?(?:\s*===?\s*v?([\w.]+))?(?![\w-])", re.IGNORECASE
    )
    for install in _INSTALL.finditer(text):
        for found in requirement.finditer(install[1]):
            yield (found[1] or "").rstrip(".")
    for found in requirement.finditer(_INSTALL.sub("", text)):
        if found[1]:
            yield found[1].rstrip(".")


def _used_in_code(code: str, names: dict[str, str]) -> list[str]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        bare = "\n".join(line.split("#", 1)[0] for line in code.splitlines())
        return [name for name in names for _ in re.finditer(rf"\b{re.escape(name)}\b", bare)]
    return [name for node in ast.walk(tree) for name in _names_of(node) if name in names]


def _names_of(node: ast.AST) -> list[str]:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return [name]
        case ast.ImportFrom(names=aliases):
            return [alias.name for alias in aliases]
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            return [name]
    return []


def _recommended(prose: str, names: dict[str, str]) -> list[str]:
    found = []
    for sentence in _SENTENCE.split(prose):
        if not _WARNING.search(sentence):
            found += [name for name in names for _ in re.finditer(rf"\b{re.escape(name)}\b", sentence)]
    return found
