"""The parser of contracts: by hand, one word of look-ahead, no evaluation of anything.

    contract := header* rule+                          one a line; # begins a comment
    header   := name ['.' slice] ':' value             margin: 0.02 · margin.tools: 0.01 · aggregate_weights: a=1, b=3
    rule     := path ['@' int] ['(' arg {',' arg} ')'] '.' stat cmp number
              | 'no_regressions_on' ':' '[' slice {',' slice} ']' option*
    path     := ['delta' '.' | 'canary' '.' | 'aggregate' '.'] name ['.' name]
    arg      := slice | string | name '=' string
    slice    := name | string                          as an argument a bare name only
    stat     := point | lower_ci | upper_ci | p_value | count
    cmp      := >= | <= | == | < | >
    option   := 'margin' '=' number | 'hard' '=' '[' case {',' case} ']'

Here: text to ``Contract``. A contract is a file of such lines, or YAML whose key ``rules: |`` holds them and whose
other keys are the header. Not here: whether a metric or slice exists (``metrics``, ``lint``), since that depends on
what is gated. To add a header option: a field of ``rules.Options`` and a line in ``_READERS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from posttrain.core.errors import ConfigError
from posttrain.core.suggest import did_you_mean
from posttrain.promotion._tokens import Line, Token
from posttrain.promotion.errors import ContractError
from posttrain.promotion.rules import (
    STATS,
    Comparator,
    Contract,
    MetricCall,
    NoRegressionRule,
    Options,
    Place,
    Rule,
    Scope,
    Stat,
    ThresholdRule,
)

_SCOPES = ("aggregate", "delta", "canary")
_NO_REGRESSIONS = "no_regressions_on"
_YAML = re.compile(r"^(rules|\"rules\"|'rules')[ \t]*:", re.MULTILINE)


def read_contract(path: Path) -> Contract:
    """Read a contract file. Raises ContractError, or ConfigError where there is no such file."""
    try:
        return parse_contract(path.read_bytes().decode("utf-8"), origin=path.name)
    except OSError as error:
        raise ConfigError(f"the contract {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ContractError(f"{path.name}:1:1: not UTF-8 text: {error.reason}") from error


def parse_contract(text: str, *, origin: str = "contract") -> Contract:
    """The contract that ``text`` writes, in either form. Raises ContractError with file, line and column."""
    if _YAML.search(text):
        return _parse_yaml(text, origin)
    lines = enumerate(text.split("\n"), start=1)
    options, rules = _parse_lines([Line(line, origin=origin, number=number) for number, line in lines])
    return _contract(text, options, rules, origin)


def parse_rule(text: str) -> Rule:
    """One rule by itself, for Python."""
    return parse_contract(text, origin="rule").rules[0]


def _contract(text: str, options: Options, rules: list[Rule], origin: str) -> Contract:
    if not rules:
        raise ContractError(
            f"{origin}:1:1: the contract has no rules",
            hint="a contract without rules would let everything pass; write at least one",
        )
    return Contract(text, tuple(rules), options, origin)


def _parse_lines(lines: list[Line], options: Options | None = None) -> tuple[Options, list[Rule]]:
    options, rules, seen = options or Options(), list[Rule](), set[str]()
    for line in lines:
        if line.next.kind == "end":
            continue
        first = line.expect_kind("name", "a rule or a header option")
        if first.text == _NO_REGRESSIONS:
            rules.append(_no_regressions(line, first))
            continue
        path = [first]
        while line.sign("."):
            path.append(line.expect_kind("name", "a name after '.'"))
        if line.sign(":"):
            if rules:
                raise line.error(f"the option {first.text!r} comes after a rule", "move it up", at=first)
            options = _option(line, path, options, seen)
        else:
            rules.append(_threshold(line, path))
    return options, rules


# -- rules -----------------------------------------------------------------------------------------


def _threshold(line: Line, path: list[Token]) -> ThresholdRule:
    first, names = path[0], path
    scope: Scope = "candidate"
    if names[0].text in _SCOPES and len(names) > 1:
        scope, names = cast(Scope, names[0].text), names[1:]
    at = _whole(line) if line.sign("@") else None
    called = line.next.kind == "sign" and line.next.text == "("
    arguments = _arguments(line) if called else MetricCall("")
    if called or at is not None:
        line.expect(".", f"and one of {', '.join(STATS)}")
        stat_token = line.expect_kind("name", f"one of {', '.join(STATS)}")
    elif len(names) > 1:
        *names, stat_token = names
    else:
        raise line.error(f"expected '.' and one of {', '.join(STATS)}, found {line.next}")
    if stat_token.text not in STATS:
        raise line.error(
            f"no statistic {stat_token.text!r}", did_you_mean(stat_token.text, STATS), at=stat_token
        )
    if len(names) > 2:
        raise line.error("a metric has one name and at most one part", at=names[2])
    stat: Stat = stat_token.text
    metric = replace(arguments, name=names[0].text, part=names[1].text if len(names) == 2 else None, at=at)
    compare = line.expect_kind("compare", "one of >= <= == < >")
    comparator = cast(Comparator, compare.text)
    number = line.expect_kind("number", "a number")
    line.end()
    if comparator == "==" and stat not in ("point", "count"):
        raise line.error(f"'==' compares a point or a count, not a {stat}", "use >= or <=", at=compare)
    return ThresholdRule(
        text=line.source(),
        place=Place(line.number, line.column_of(first)),
        scope=scope,
        metric=metric,
        stat=stat,
        comparator=comparator,
        threshold=Decimal(number.text),
    )


def _arguments(line: Line) -> MetricCall:
    """The arguments in parentheses, as a call without a name."""
    line.expect("(", "before the arguments")
    found: str | None = None
    texts, options = [], {}
    while True:
        token = line.take()
        if token.kind == "string":
            texts.append(token.text)
        elif token.kind == "name" and line.sign("="):
            options[token.text] = line.expect_kind("string", "a quoted text").text
        elif token.kind == "name" and found is None:
            found = token.text
        elif token.kind == "name":
            raise line.error(
                f"two slices, {found!r} and {token.text!r}", "quote it if it is no slice", at=token
            )
        else:
            raise line.error(f"expected a slice or a quoted text, found {token}", at=token)
        if not line.sign(","):
            break
    line.expect(")", "after the arguments")
    return MetricCall("", slice=found, arguments=tuple(texts), options=tuple(sorted(options.items())))


def _no_regressions(line: Line, first: Token) -> NoRegressionRule:
    line.expect(":", f"after {_NO_REGRESSIONS}")
    slices = _names(line, "a slice")
    margin: Decimal | None = None
    hard: tuple[str, ...] = ()
    while line.next.kind != "end":
        option = line.expect_kind("name", "margin=NUMBER, hard=[CASES] or the end of the line")
        if option.text not in ("margin", "hard"):
            raise line.error(
                f"no option {option.text!r} of {_NO_REGRESSIONS}",
                did_you_mean(option.text, ("margin", "hard")),
                at=option,
            )
        line.expect("=", f"after {option.text}")
        if option.text == "margin":
            token = line.expect_kind("number", "a number")
            margin = _share(line, token, least_is_fine=True)
        else:
            hard = _names(line, "a case id")
    return NoRegressionRule(line.source(), Place(line.number, line.column_of(first)), slices, margin, hard)


def _names(line: Line, what: str) -> tuple[str, ...]:
    line.expect("[", f"and {what}")
    names = []
    while True:
        token = line.take()
        if token.kind not in ("name", "string") or not token.text:
            raise line.error(f"expected {what}, found {token}", at=token)
        if token.text in names:
            raise line.error(f"{token.text!r} is listed twice", at=token)
        names.append(token.text)
        if not line.sign(","):
            break
    line.expect("]", "or ',' and another name")
    return tuple(names)


# -- the header ------------------------------------------------------------------------------------


def _whole(line: Line) -> int:
    token = line.expect_kind("number", "a whole number above 0")
    if not token.text.isdecimal() or int(token.text) < 1:
        raise line.error(f"expected a whole number above 0, found {token}", at=token)
    return int(token.text)


def _share(line: Line, token: Token, *, least_is_fine: bool = False) -> Decimal:
    value = Decimal(token.text)
    if value >= 1 or value < 0 or (value == 0 and not least_is_fine):
        raise line.error(f"expected a number between 0 and 1, found {token}", at=token)
    return value


def _read_share(line: Line) -> Decimal:
    return _share(line, line.expect_kind("number", "a number between 0 and 1"))


def _read_margin(line: Line) -> Decimal:
    return _share(line, line.expect_kind("number", "a number from 0 to below 1"), least_is_fine=True)


def _read_positive(line: Line) -> Decimal:
    token = line.expect_kind("number", "a number of 0 or more")
    if Decimal(token.text) < 0:
        raise line.error(f"expected a number of 0 or more, found {token}", at=token)
    return Decimal(token.text)


def _one_of(field: str) -> Callable[[Line], str]:
    choices = {
        "estimator": ("clopper-pearson", "korn-graubard"),
        "alternative": ("one-sided", "two-sided"),
    }[field]

    def read(line: Line) -> str:
        token = line.expect_kind("name", f"one of {', '.join(choices)}")
        if token.text not in choices:
            raise line.error(f"no {field} {token.text!r}", did_you_mean(token.text, choices), at=token)
        return token.text

    return read


def _read_weights(line: Line) -> str | Mapping[str, Decimal]:
    token = line.expect_kind("name", "micro, macro, or weights: slice=1, slice=3")
    if line.next.kind == "end" and token.text in ("micro", "macro"):
        return token.text
    weights = {}
    while True:
        line.expect("=", f"and the weight of {token.text!r} (or micro, or macro)")
        number = line.expect_kind("number", "a weight")
        if Decimal(number.text) <= 0 or token.text in weights:
            raise line.error(f"the weight of {token.text!r} is not above 0, or is given twice", at=number)
        weights[token.text] = Decimal(number.text)
        if not line.sign(","):
            return MappingProxyType(weights)
        token = line.expect_kind("name", "another slice")


_READERS: Mapping[str, Callable[[Line], Any]] = MappingProxyType(
    {
        "confidence": _read_share,
        "margin": _read_margin,
        "alpha_rollback": _read_share,
        "min_n": _whole,
        "canary_min_n": _whole,
        "canary_hours": _read_positive,
        "srm_p": _read_share,
        "estimator": _one_of("estimator"),
        "alternative": _one_of("alternative"),
        "aggregate_weights": _read_weights,
    }
)
"""Option to the reader of its value."""


def _option(line: Line, path: list[Token], options: Options, seen: set[str]) -> Options:
    name = path[0].text
    written = ".".join(token.text for token in path)
    if name not in _READERS or len(path) > (2 if name == "margin" else 1):
        raise line.error(f"no option {written!r}", did_you_mean(written, _READERS), at=path[0])
    if written in seen:
        raise line.error(f"the option {written!r} is given twice", at=path[0])
    seen.add(written)
    value = _READERS[name](line)
    line.end()
    if len(path) == 2:
        margins = MappingProxyType({**options.margins, path[1].text: value})
        return replace(options, margins=margins)
    changed: dict[str, Any] = {name: value}
    return replace(options, **changed)


# -- YAML ------------------------------------------------------------------------------------------


def _parse_yaml(text: str, origin: str) -> Contract:
    """A contract in YAML: ``rules: |`` holds the rules, the other keys are the header."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ContractError(f"{origin}:{place}: not readable as YAML: {error.problem}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ContractError(f"{origin}:1:1: expected keys, rules among them")
    file_lines = text.split("\n")
    header, body, seen = [], None, set[str]()
    for key, value in node.value:
        mark = key.start_mark
        if key.value in seen:
            raise ContractError(f"{origin}:{mark.line + 1}:{mark.column + 1}: {key.value!r} is given twice")
        seen.add(key.value)
        if key.value == "rules":
            body = value
            continue
        source = file_lines[mark.line]
        header.append(Line(source, origin=origin, number=mark.line + 1))
    if not isinstance(body, yaml.ScalarNode) or body.style != "|":
        at = body.start_mark if body is not None else node.start_mark
        raise ContractError(
            f"{origin}:{at.line + 1}:{at.column + 1}: the rules are no block of text",
            hint="write `rules: |` and the rules below it, indented",
        )
    options, none = _parse_lines(header)
    if none:
        raise ContractError(f"{origin}:{none[0].place.line}:1: a rule outside `rules: |`")
    first = body.start_mark.line + 1
    lines = []
    for offset, content in enumerate(body.value.split("\n")):
        written = file_lines[first + offset] if first + offset < len(file_lines) else content
        indent = max(0, len(written.rstrip("\r")) - len(content))
        lines.append(Line(content, origin=origin, number=first + offset + 1, indent=indent))
    options, rules = _parse_lines(lines, options)
    return _contract(text, options, rules, origin)
