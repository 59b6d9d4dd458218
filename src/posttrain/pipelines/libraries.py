"""Which installed libraries decide the result of code that imports them, with their versions.

Here: from top-level module names to distributions, closed over what those require (``importlib.metadata``), so that
sympy counts for a stage that uses math-verify. Not here: which modules a stage imports (``codeversion``). To leave a
library out that cannot change a result: one entry in ``CANNOT_DECIDE``, under its reason.

*Not covered*: compiled libraries of the system, plugins that a library finds by itself, requirements of extras.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CANNOT_DECIDE: Mapping[str, tuple[str, ...]] = {
    "reads settings, which stand in the key as values": (
        "annotated-types",
        "click",
        "pydantic",
        "pydantic-core",
        "pyyaml",
        "typer",
        "typing-inspection",
    ),
    "keeps bytes and finds them again": (
        "filelock",
        "fsspec",
        "greenlet",
        "rfc8785",
        "sqlalchemy",
        "psycopg",
        "psycopg-binary",
        "python-dotenv",
    ),
    "asks other machines; an endpoint has a fingerprint of its own": (
        "aiohappyeyeballs",
        "aiohttp",
        "aiosignal",
        "anyio",
        "attrs",
        "certifi",
        "charset-normalizer",
        "frozenlist",
        "h11",
        "hf-xet",
        "httpcore",
        "httpx",
        "httpx2",
        "huggingface-hub",
        "idna",
        "multidict",
        "propcache",
        "requests",
        "sniffio",
        "urllib3",
        "yarl",
    ),
    "draws on a screen or on a page": (
        "colorama",
        "contourpy",
        "cycler",
        "fonttools",
        "jinja2",
        "kiwisolver",
        "markdown-it-py",
        "markupsafe",
        "mdurl",
        "pillow",
        "pyfiglet",
        "pygments",
        "pyparsing",
        "rich",
        "shellingham",
        "tqdm",
        "annotated-doc",
    ),
    "packs, compiles or describes Python itself": (
        "packaging",
        "pip",
        "psutil",
        "setuptools",
        "six",
        "typing-extensions",
        "wheel",
    ),
}
"""Reason to the distributions that it holds for."""
_LEFT_OUT = frozenset(name for names in CANNOT_DECIDE.values() for name in names)


def library_versions(modules: Iterable[str]) -> dict[str, str]:
    """Distribution to version for everything behind these top-level modules; ``absent`` for what is not installed."""
    found: dict[str, str] = {}
    waiting: list[str] = []
    for module in modules:
        if module in sys.stdlib_module_names:
            continue
        waiting += _distributions().get(module, (canonicalize_name(module),))
    while waiting:
        name = waiting.pop()
        if name in found or name in _LEFT_OUT:
            continue
        version, required = _facts(name)
        found[name] = version
        waiting += [other for other in required if _facts(other)[0] != "absent"]
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, tuple[str, ...]]:
    """Top-level module to the distributions that bring it."""
    return {
        module: tuple(sorted({canonicalize_name(name) for name in names}))
        for module, names in metadata.packages_distributions().items()
    }


@lru_cache(maxsize=1024)
def _facts(name: str) -> tuple[str, tuple[str, ...]]:
    """Version, and the names of what it requires here."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return "absent", ()
    required = (Requirement(text) for text in found.requires or ())
    wanted = (r for r in required if r.marker is None or r.marker.evaluate({"extra": ""}))
    # A local part (+cpu) names the build, not the release.
    return found.version.partition("+")[0], tuple(canonicalize_name(r.name) for r in wanted)
