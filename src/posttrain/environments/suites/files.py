"""The folder that holds a suite: what each file is, writing it, and reading it with every byte checked.

Here: records to files and back. Not here: where the slices come from (``suite_build``).

    suite.json                            identity and the digest of every other file; written last
    settings.json                         clock, seed, decoding, turns: ``SuiteSettings``
    prompts/<name>.txt                    ``system`` stands before every case
    chat_template.jinja                   optional
    code.json                             digests of the source files that decided outcomes when it was built
    slices/<slice>/slice.json             behaviour, graders, what is required
    slices/<slice>/cases.jsonl            one case a line, by id
    slices/<slice>/tools.json             tools as a model sees them
    slices/<slice>/replies/<tool>.jsonl   recorded calls, by the canonical JSON of their arguments
    slices/<slice>/files/…                what tools and the sandbox may read
    slices/<slice>/documents.jsonl        texts for retrieval, by id
    slices/<slice>/index.json             their search index

Everything is read once, and what was hashed is what is parsed. *Covered*: a changed, missing or added byte or file
anywhere, ``suite.json`` itself included: DataError that names the file. *Not covered*: a suite built anew with other
content; that is another identity, and it is compared with the one that was meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from posttrain.artifacts.records import parse_canonical
from posttrain.core.atomic import make_folder, write_atomic
from posttrain.core.canonical import canonical_json, digest_bytes
from posttrain.core.errors import DataError
from posttrain.environments.records import Case
from posttrain.environments.retrieval import Index, build_index
from posttrain.environments.suites.identity import SLICES, Identity, identify
from posttrain.environments.suites.slice_records import SliceSpec, ToolSpec, call_key
from posttrain.environments.suites.suite import SUITE_SCHEMA, Suite, SuiteSettings

SUITE_FILE = "suite.json"
_SETTINGS, _CODE, _TEMPLATE, _PROMPTS = "settings.json", "code.json", "chat_template.jinja", "prompts"
_REBUILD = "build the suite again with `posttrain suite build`, or take an undamaged copy"

T = TypeVar("T")


class Contents(NamedTuple):
    """A suite without its identity: what is written, and what is read."""

    settings: SuiteSettings
    slices: Sequence[SliceSpec]
    prompts: Mapping[str, str] = {}
    chat_template: str | None = None
    code: Mapping[str, str] = {}


def suite_files(contents: Contents) -> dict[str, bytes]:
    """Every file of the suite by its path, ``suite.json`` last. Raises DataError for slices that do not fit."""
    check_slices(contents.slices)
    files = {
        _SETTINGS: _json(contents.settings.model_dump(mode="json")),
        _CODE: _json({"sources": dict(contents.code)}),
    }
    files.update({f"{_PROMPTS}/{name}.txt": text.encode() for name, text in contents.prompts.items()})
    if contents.chat_template is not None:
        files[_TEMPLATE] = contents.chat_template.encode()
    for spec in contents.slices:
        files.update(_slice_files(spec))
    leaves = {path: digest_bytes(data) for path, data in sorted(files.items())}
    return {**dict(sorted(files.items())), SUITE_FILE: _head(identify(leaves), leaves)}


def write_suite(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a suite's files into ``folder``, which is made and must hold nothing else. ``suite.json`` comes last."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already", hint="give -o a new or an empty folder")
    make_folder(folder)
    for path, data in files.items():
        if path != SUITE_FILE:
            write_atomic(folder / path, data)
    write_atomic(folder / SUITE_FILE, files[SUITE_FILE])


def read_suite(folder: Path) -> Suite:
    """The suite in ``folder``, every byte checked. Raises DataError that names the file."""
    return parse_suite(read_files(folder))


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its path. Raises DataError where it holds no suite."""
    if not (folder / SUITE_FILE).is_file():
        raise DataError(
            f"{folder} holds no suite: {SUITE_FILE} is missing", hint="make one with `posttrain suite build`"
        )
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DataError(f"{name} in the suite {folder} is neither a file nor a folder", hint=_REBUILD)
        if path.is_file():
            files[name] = path.read_bytes()
    return files


def check_files(files: Mapping[str, bytes]) -> Identity:
    """Hash everything and compare it with ``suite.json``; the identity. Raises DataError that names the file."""
    identity, known = _parsed(SUITE_FILE, files[SUITE_FILE], _parse_head)
    leaves = {path: digest_bytes(data) for path, data in files.items() if path != SUITE_FILE}
    for path in sorted(leaves.keys() | known.keys()):
        if path not in leaves:
            raise _damaged(path, "is missing")
        if path not in known:
            raise _damaged(path, "does not belong to the suite")
        if leaves[path] != known[path]:
            raise _damaged(path, "does not match its digest")
    return identity


def parse_suite(files: Mapping[str, bytes]) -> Suite:
    """The suite that ``files`` hold, every byte checked first. Raises DataError that names the file."""
    identity = check_files(files)
    contents = parse_contents(files)
    indexes = {
        name: _parsed(path, files[path], Index.from_bytes)
        for name in _slice_names(files)
        if (path := f"{SLICES}/{name}/index.json") in files
    }
    return Suite(
        settings=contents.settings,
        slices=tuple(contents.slices),
        identity=identity,
        prompts=contents.prompts,
        chat_template=contents.chat_template,
        code=contents.code,
        indexes=indexes,
    )


def parse_contents(files: Mapping[str, bytes]) -> Contents:
    """What ``files`` hold, unchecked against any digest: also what a folder written by hand holds."""
    if _SETTINGS not in files:
        raise DataError(
            f"the suite has no {_SETTINGS}", hint='the least that it holds is {"name": "my-suite"}'
        )
    code = (
        _parsed(_CODE, files[_CODE], lambda raw: dict(json.loads(raw)["sources"])) if _CODE in files else {}
    )
    prompts = {
        Path(path).stem: _parsed(path, data, bytes.decode)
        for path, data in files.items()
        if path.startswith(f"{_PROMPTS}/")
    }
    slices = [_parse_slice(name, files) for name in _slice_names(files)]
    check_slices(slices)
    template = files.get(_TEMPLATE)
    return Contents(
        _parsed(_SETTINGS, files[_SETTINGS], SuiteSettings.model_validate_json),
        slices,
        prompts,
        None if template is None else _parsed(_TEMPLATE, template, bytes.decode),
        code,
    )


def check_slices(slices: Sequence[SliceSpec]) -> None:
    """Raise DataError for what no evaluation could make sense of; the message names slice and case."""
    if not slices:
        raise DataError("the suite has no slice")
    seen: dict[str, str] = {}
    for spec in slices:
        if not spec.cases:
            raise DataError(f"slice {spec.name!r} has no cases")
        names = [str(grader.get("name") or grader.get("kind")) for grader in spec.graders]
        if len(set(names)) < len(names) or not spec.required or set(spec.required) - set(names):
            raise DataError(
                f"slice {spec.name!r} requires {list(spec.required)} of the graders {names}",
                hint="name each grader once, and require at least one that is there",
            )
        offered = {tool.name for tool in spec.tools}
        for case in spec.cases:
            if case.id in seen:
                raise DataError(f"case {case.id!r} is in the slices {seen[case.id]!r} and {spec.name!r}")
            seen[case.id] = spec.name
            unknown = sorted(set(case.tools) - offered)
            if case.slice != spec.name or unknown or not case.messages:
                what = (
                    f"offers the unknown tool {unknown[0]!r}"
                    if unknown
                    else "has no message or another slice"
                )
                raise DataError(f"case {case.id!r} of slice {spec.name!r} {what}")
    if len({spec.name for spec in slices}) < len(slices):
        raise DataError("two slices have the same name")


# -- slices ----------------------------------------------------------------------------------------


def _slice_files(spec: SliceSpec) -> dict[str, bytes]:
    folder = f"{SLICES}/{spec.name}"
    head = {
        "summary": spec.summary,
        "required": list(spec.required),
        "graders": [dict(g) for g in spec.graders],
    }
    files = {
        f"{folder}/slice.json": _json(head),
        f"{folder}/cases.jsonl": _lines(case_json(case) for case in sorted(spec.cases, key=lambda c: c.id)),
    }
    if spec.tools:
        tools = sorted(spec.tools, key=lambda tool: tool.name)
        files[f"{folder}/tools.json"] = _json(
            [{"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in tools]
        )
        for tool in tools:
            recorded = [{"arguments": json.loads(k), "reply": r} for k, r in sorted(tool.replies.items())]
            if recorded:
                files[f"{folder}/replies/{tool.name}.jsonl"] = _lines(recorded)
    files.update({f"{folder}/files/{path}": data for path, data in spec.files.items()})
    if spec.documents:
        documents = sorted(spec.documents.items())
        files[f"{folder}/documents.jsonl"] = _lines({"id": name, "text": text} for name, text in documents)
        files[f"{folder}/index.json"] = build_index(spec.documents).to_bytes()
    return files


def case_json(case: Case) -> dict[str, Any]:
    """A case as a JSON object; its slice is told by the folder."""
    return {
        "id": case.id,
        "messages": [dict(message) for message in case.messages],
        "expected": dict(case.expected),
        "tools": list(case.tools),
        "tags": dict(case.tags),
    }


def _parse_slice(name: str, files: Mapping[str, bytes]) -> SliceSpec:
    folder = f"{SLICES}/{name}"
    head_path, cases_path, documents_path = (
        f"{folder}/{f}" for f in ("slice.json", "cases.jsonl", "documents.jsonl")
    )
    for path in (head_path, cases_path):
        if path not in files:
            raise DataError(f"the suite has no {path}")
    head = _parsed(head_path, files[head_path], json.loads)

    def case(data: Any) -> Case:
        fields = {"expected": {}, "tools": (), "tags": {}, **data}
        fields |= {key: tuple(fields[key]) for key in ("messages", "tools")}
        return Case(slice=name, **fields)

    tools_path = f"{folder}/tools.json"
    tools = _parsed(tools_path, files[tools_path], json.loads) if tools_path in files else []
    documents = parse_lines(documents_path, files.get(documents_path, b""), lambda d: (d["id"], d["text"]))
    prefix = f"{folder}/files/"
    return _built(
        head_path,
        lambda: SliceSpec(
            name=name,
            summary=head["summary"],
            cases=tuple(sorted(parse_lines(cases_path, files[cases_path], case), key=lambda c: c.id)),
            graders=tuple(head["graders"]),
            required=tuple(head["required"]),
            tools=tuple(_tool(folder, data, files) for data in tools),
            files={
                path.removeprefix(prefix): data for path, data in files.items() if path.startswith(prefix)
            },
            documents=dict(documents),
        ),
    )


def _tool(folder: str, data: Any, files: Mapping[str, bytes]) -> ToolSpec:
    path = f"{folder}/replies/{data['name']}.jsonl"
    recorded = parse_lines(path, files.get(path, b""), lambda d: (call_key(d["arguments"]), d["reply"]))
    if len(dict(recorded)) < len(recorded):
        raise DataError(f"{path} records a reply to the same arguments twice")
    return ToolSpec(data["name"], data["description"], data["parameters"], dict(recorded))


def _slice_names(files: Mapping[str, bytes]) -> list[str]:
    return sorted(
        {path.split("/")[1] for path in files if path.startswith(f"{SLICES}/") and path.count("/") > 1}
    )


# -- bytes -----------------------------------------------------------------------------------------


def parse_lines(path: str, data: bytes, parse: Callable[[Any], T]) -> list[T]:
    """One value a line. Raises DataError that names the file and the line."""
    return [
        _parsed(f"{path}, line {number}", line, lambda raw: parse(parse_canonical(raw)))
        for number, line in enumerate(data.split(b"\n"), start=1)
        if line.strip()
    ]


def _parse_head(data: bytes) -> tuple[Identity, dict[str, str]]:
    head = json.loads(data)
    if head["schema"] != SUITE_SCHEMA:
        raise DataError(
            f"the suite has schema {head['schema']!r}; this posttrain knows {SUITE_SCHEMA}",
            hint="read it with the posttrain that built it",
        )
    identity, leaves = Identity.from_json(head["identity"]), dict(head["files"])
    if identify(leaves) != identity or _head(identity, leaves) != data:
        raise DataError("its digests do not match each other", hint=_REBUILD)
    return identity, leaves


def _head(identity: Identity, leaves: Mapping[str, str]) -> bytes:
    return _json({"schema": SUITE_SCHEMA, "identity": identity.to_json(), "files": dict(leaves)})


def _json(value: Any) -> bytes:
    return canonical_json(value) + b"\n"


def _lines(values: Any) -> bytes:
    return b"".join(_json(value) for value in values)


def _built(path: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} of the suite cannot be read: {error!r}") from error


def _parsed(path: str, data: bytes, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(data)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", hint=error.hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise DataError(f"{path} of the suite cannot be read: {what}") from error


def _damaged(path: str, what: str) -> DataError:
    return DataError(f"{path} of the suite {what}", hint=_REBUILD)
