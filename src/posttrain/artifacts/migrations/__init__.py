"""The registry's schema, as numbered SQL files that are applied once, in order.

Here: reading them, and those of any other package of such files. To add one: ``NNNN_what.sql`` with the next
number; never edit one that was released.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    """From 1, without gaps."""
    name: str
    text: str
    """The whole file."""

    def statements(self, dialect: str) -> list[str]:
        """The statements for ``sqlite`` or ``postgresql``, in order."""
        found = []
        for paragraph in re.split(r"\n\s*\n", self.text):
            lines = paragraph.strip().splitlines()
            only = [line.removeprefix("-- only:").strip() for line in lines if line.startswith("-- only:")]
            code = "\n".join(line for line in lines if not line.startswith("--"))
            if code and (not only or dialect in only):
                found.append(code)
        return found


def load_migrations(package: str = __package__) -> list[Migration]:
    """All migrations of this version, by number."""
    found = []
    for entry in resources.files(package).iterdir():
        if match := _NAME.fullmatch(entry.name):
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.number)
