"""How errors print: one line and a hint for what a user can fix, a traceback for a bug. All on stderr."""

from __future__ import annotations

import os
import sys


def print_error(message: str, hint: str | None) -> None:
    """``error: …`` and, below it, what to change."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)


def drop_stdout() -> None:
    """Send stdout nowhere: its reader (`| head`) went away, and flushing at exit would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_bug(error: BaseException) -> None:
    """A traceback and the line that says whose fault it is."""
    import traceback  # only for a bug

    traceback.print_exception(error, file=sys.stderr)
    print(
        "error: this is a bug in posttrain, not in what you did; please report it with the lines above",
        file=sys.stderr,
    )
