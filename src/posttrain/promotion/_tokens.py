"""The words of a contract line. To add one: a line in ``_TOKENS``."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from posttrain.promotion.errors import ContractError

Kind: TypeAlias = Literal["name", "number", "string", "compare", "sign", "end"]

_TOKENS = (
    ("space", r"[ \t\r]+|#.*"),
    ("string", r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""),
    ("number", r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_])"),
    ("name", r"[A-Za-z_](?:[A-Za-z0-9_]|-(?=[A-Za-z0-9_]))*"),
    ("compare", r">=|<=|==|<|>"),
    ("sign", r"[.@(),:=\[\]]"),
)
_PATTERN = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _TOKENS))
_ESCAPED = re.compile(r"\\(.)")


class Token(NamedTuple):
    """One word."""

    kind: Kind
    text: str
    """As written; without quotes and escapes for a string."""
    column: int
    """From 1."""

    def __str__(self) -> str:
        return "the end of the line" if self.kind == "end" else repr(self.text)


class Line:
    """The words of one line, read from left to right with one word of look-ahead."""

    def __init__(self, text: str, *, origin: str, number: int, indent: int = 0) -> None:
        """``indent`` is how far the text stands in from the left edge of its file."""
        self._origin, self.number, self._indent = origin, number, indent
        self.text = text
        self._tokens = self._split(text)
        self._at = 0

    @property
    def next(self) -> Token:
        """The word that :meth:`take` gives."""
        return self._tokens[self._at]

    def take(self) -> Token:
        """The next word; the end of the line stays where it is."""
        token = self.next
        self._at += token.kind != "end"
        return token

    def sign(self, text: str) -> bool:
        """Take ``text`` where it comes next."""
        found = self.next.kind == "sign" and self.next.text == text
        self._at += found
        return found

    def expect(self, text: str, why: str) -> Token:
        """Take the sign ``text``, which must come next."""
        if self.next.kind == "sign" and self.next.text == text:
            return self.take()
        raise self.error(f"expected {text!r} {why}, found {self.next}")

    def expect_kind(self, kind: Kind, what: str) -> Token:
        """Take a word of that kind, which must come next."""
        if self.next.kind == kind:
            return self.take()
        raise self.error(f"expected {what}, found {self.next}")

    def end(self) -> None:
        """Nothing may come any more."""
        if self.next.kind != "end":
            raise self.error(f"unexpected {self.next} after the end of this line's meaning")

    def column_of(self, token: Token) -> int:
        """The column of a word in the file, from 1."""
        return self._indent + token.column

    def source(self) -> str:
        """The line without its comment."""
        return self.text[: self._tokens[-1].column - 1].strip()

    def error(self, what: str, hint: str | None = None, *, at: Token | None = None) -> ContractError:
        """An error at a word, the next one by default."""
        column = self.column_of(at or self.next)
        return ContractError(f"{self._origin}:{self.number}:{column}: {what}", hint)

    def _split(self, text: str) -> list[Token]:
        tokens, at, end = list[Token](), 0, 0
        while at < len(text):
            match = _PATTERN.match(text, at)
            if match is None or match.lastgroup is None:
                column = self._indent + at + 1
                what = "a text without its closing quote" if text[at] in "'\"" else repr(text[at])
                raise ContractError(
                    f"{self._origin}:{self.number}:{column}: {what} has no meaning in a contract"
                )
            if match.lastgroup != "space":
                tokens.append(_token(match.lastgroup, match[0], at + 1))
                end = match.end()
            at = match.end()
        return [*tokens, Token("end", "", end + 1)]


def _token(kind: str, text: str, column: int) -> Token:
    match kind:
        case "string":
            return Token("string", _ESCAPED.sub(r"\1", text[1:-1]), column)
        case "number":
            return Token("number", text, column)
        case "name":
            return Token("name", text, column)
        case "compare":
            return Token("compare", text, column)
        case _:
            return Token("sign", text, column)
