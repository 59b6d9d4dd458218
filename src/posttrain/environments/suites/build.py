"""Making a suite: from slices, or from a folder that somebody wrote.

Here: putting a suite's files together. Not here: what each file is (``suite_files``), the slices that ship.
A folder has the layout of a built suite without ``suite.json``; whatever is derived (the search index, the digests of
the code) is made anew, texts for retrieval may also stand as files in ``slices/<slice>/documents/``, and
``settings.json`` needs no more than a name. Lines and keys may stand in any order: a built suite is canonical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.core.canonical import canonical_json
from posttrain.core.errors import ConfigError, DataError
from posttrain.environments.suites.files import SUITE_FILE, Contents, parse_contents, suite_files
from posttrain.environments.suites.slice_records import SliceSpec
from posttrain.environments.suites.suite import SuiteSettings

_HIDDEN = "."


def build_from_slices(
    settings: SuiteSettings,
    slices: Sequence[SliceSpec],
    *,
    code: Mapping[str, str],
    prompts: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """A suite's files. Raises DataError where the slices do not fit together."""
    ordered = sorted(slices, key=lambda spec: spec.name)
    return suite_files(Contents(settings, ordered, prompts or {}, None, code))


def build_from_folder(
    source: Path, *, code: Mapping[str, str], changes: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """A suite's files from a folder written by hand. Raises DataError that names the file and the line.

    ``changes`` replaces settings by their dotted names: ``{"decoding.temperature": 0.7}``.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder", hint="name a folder with settings.json and slices/")
    files = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(name.startswith(_HIDDEN) for name in path.relative_to(source).parts)
    }
    files = {p: data for p, data in _with_documents(files).items() if p != SUITE_FILE}
    contents = parse_contents(files)
    settings = change_settings(contents.settings, changes or {})
    return suite_files(contents._replace(settings=settings, code=code))


def change_settings(settings: SuiteSettings, changes: Mapping[str, Any]) -> SuiteSettings:
    """``settings`` with values replaced by dotted name. Raises ConfigError that names the key."""
    data = settings.model_dump(mode="json")
    for key, value in changes.items():
        place = data
        *folders, last = key.split(".")
        for name in folders:
            if not isinstance(place.get(name), dict):
                raise ConfigError(f"a suite has no setting {key!r}", hint=f"there are: {', '.join(data)}")
            place = place[name]
        place[last] = value
    try:
        return SuiteSettings.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"settings.{where}: {first['msg']}", hint=f"there are: {', '.join(data)}"
        ) from error


def _with_documents(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """``slices/<slice>/documents/<id>`` as lines of ``documents.jsonl``."""
    kept, found = dict[str, bytes](), dict[str, list[bytes]]()
    for path, data in files.items():
        parts = path.split("/")
        if len(parts) > 3 and parts[0] == "slices" and parts[2] == "documents":
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8 text: {error.reason}") from error
            line = canonical_json({"id": "/".join(parts[3:]), "text": text}) + b"\n"
            found.setdefault("/".join([*parts[:2], "documents.jsonl"]), []).append(line)
        else:
            kept[path] = data
    for path, lines in found.items():
        kept[path] = kept.get(path, b"") + b"".join(lines)
    return kept
