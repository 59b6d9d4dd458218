"""The code in an answer: its fenced blocks, and the prose between them.

Here: reading Markdown's fences by line. Not here: what the code does. A fence that is never closed ends with the text,
as Markdown has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$")
_PYTHON = frozenset({"python", "py", "python3"})


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """One fenced block."""

    language: str
    """In lower case; empty where the fence does not say it."""
    code: str

    @property
    def is_python(self) -> bool:
        """Whether the fence says so."""
        return self.language in _PYTHON


@dataclass(frozen=True, slots=True)
class Split:
    """A text taken apart."""

    blocks: tuple[CodeBlock, ...]
    prose: str
    """What stands outside all blocks, one line for each of the text."""

    @property
    def python(self) -> str:
        """All blocks of Python, in order, as one program; where no block says its language, all of them."""
        marked = [block.code for block in self.blocks if block.is_python]
        return "\n".join(marked or [block.code for block in self.blocks if not block.language])


def split_code(text: str) -> Split:
    """Take ``text`` apart."""
    blocks: list[CodeBlock] = []
    prose: list[str] = []
    opened: tuple[str, str] | None = None
    code: list[str] = []
    for line in text.splitlines():
        found = _FENCE.match(line)
        if opened is None and found:
            opened, code = (found[1], found[2].lower()), []
        elif opened is None:
            prose.append(line)
        elif found and not found[2] and found[1].startswith(opened[0]):
            blocks.append(CodeBlock(opened[1], "\n".join(code) + "\n"))
            opened = None
        else:
            code.append(line)
    if opened is not None:
        blocks.append(CodeBlock(opened[1], "\n".join(code) + "\n"))
    return Split(tuple(blocks), "\n".join(prose))
