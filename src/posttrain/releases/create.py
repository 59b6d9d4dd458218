"""Making a release: from what a person wrote to an artifact that names every piece by its digest.

Here: looking up what the spec names, filling in what it leaves out, refusing what does not fit together, and keeping
the result. Not here: the spec's form (``spec``), what is looked up (``derive``), lanes (``lanes``).

Refused: a name that another release has; a piece that is not in the store whole and unchanged; a decision that was
made for another model or under another contract. Not refused: a decision that is not GO (a person may want to look at
the candidate on the dev lane), which ``list`` and ``show`` print.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from posttrain.artifacts.errors import ConflictError, ReleaseError
from posttrain.artifacts.home import Home, resolve
from posttrain.artifacts.records import Artifact, RunRecord
from posttrain.artifacts.weights import refuse_pickle_content, refuse_pickle_names
from posttrain.artifacts.writer import ArtifactWriter
from posttrain.core.canonical import digest_file, short
from posttrain.core.errors import ConfigError, CorruptArtifactError, MissingArtifactError, UsageError
from posttrain.releases import derive
from posttrain.releases.lanes import find_release, release_ref
from posttrain.releases.records import (
    RELEASE_FILE,
    RELEASE_KIND,
    Adapter,
    ArtifactPiece,
    Code,
    ExternalPiece,
    ExternalSystem,
    FilesPiece,
    GateDecision,
    ReleaseManifest,
    Result,
    is_served,
    lineage,
)
from posttrain.releases.spec import PieceMapping, PieceSpec, ReleaseSpec, ResultSpec, parse_spec

AnyPiece: TypeAlias = ArtifactPiece | FilesPiece | ExternalPiece

DECISION_FILE = "decision.json"
CONTRACT_NAME = "contract.rules"
_EXTERNAL: tuple[ExternalSystem, ...] = ("hub", "git", "api", "package", "version")


def create_release(
    home: Home,
    spec: ReleaseSpec | Mapping[str, Any],
    *,
    folder: Path | None = None,
    actor: str = "posttrain",
) -> Artifact:
    """Make the release that ``spec`` describes, name it ``release/NAME`` and write it to the journal.

    ``folder`` is where relative paths start and whose Git repository is the code; default: the current one. The same
    spec over the same pieces gives the same artifact. Raises ConfigError, UnknownReferenceError, ReleaseError,
    MissingArtifactError or CorruptArtifactError for a piece that is not as it was, and ConflictError for a name that
    is taken; then nothing is kept under that name.
    """
    wanted = spec if isinstance(spec, ReleaseSpec) else parse_spec(spec)
    with home.store.writer(RELEASE_KIND) as writer:
        manifest = _Maker(home, writer, (folder or Path.cwd()).absolute()).manifest(wanted)
        held = home.registry.ref(release_ref(manifest.name))
        writer.add_bytes(RELEASE_FILE, manifest.to_bytes() + b"\n")
        writer.meta["name"] = manifest.name
        writer.inputs.update(lineage(manifest))
        artifact = writer.commit()
    if held not in (None, artifact.digest):
        raise ConflictError(
            f"the name {manifest.name!r} is taken by release {short(held or '')}, which is another one",
            hint="a release's name is never moved: take the next one",
        )
    home.registry.record(artifact)
    home.registry.create_ref(release_ref(manifest.name), artifact.digest)
    # Asked of the journal, since an earlier call may have been killed between the ref and its line.
    if artifact.digest not in {entry.subject for entry in home.registry.journal(action="release.created")}:
        home.registry.append_journal(actor, "release.created", artifact.digest, {"name": manifest.name})
    return artifact


class _Maker:
    """Looks up the pieces of one release and copies its files into the writer."""

    def __init__(self, home: Home, writer: ArtifactWriter, folder: Path) -> None:
        self.home = home
        self.writer = writer
        self.folder = folder

    def manifest(self, spec: ReleaseSpec) -> ReleaseManifest:
        base = self.piece("base", spec.model)
        artifact = self.home.store.get(base.digest) if isinstance(base, ArtifactPiece) else None
        run, lineage_here = None, []
        if artifact is not None:
            run = derive.run_of(self.home, _reference(spec.model), artifact.digest)
            lineage_here = derive.ancestors(self.home, artifact)
        decision = self.decision(spec)
        contract = self.contract(spec, decision)
        self.refuse_foreign_decision(decision, base)
        data, rewards = spec.data, spec.reward_models
        try:
            return ReleaseManifest(
                name=spec.name,
                base=base,
                adapters=tuple(
                    Adapter(name=adapter.name, piece=self.piece(f"adapters.{adapter.name}", adapter.piece))
                    for adapter in spec.adapters
                ),
                tokenizer=self.tokenizer(spec, artifact),
                chat_template=self.template(spec, artifact),
                input_processing=self.optional("input_processing", spec.input_processing),
                sampling=spec.sampling,
                reward_models=derive.reward_models(self.home, run, lineage_here)
                if rewards is None
                else self.pieces("reward_models", rewards),
                verifiers=self.pieces("verifiers", spec.verifiers),
                tools=self.pieces("tools", spec.tools),
                data=derive.datasets(self.home, run, lineage_here)
                if data is None
                else self.pieces("data", data),
                configuration=self.configuration(spec, run),
                code=derive.code_of(self.folder)
                if spec.code is None
                else Code(**spec.code.model_dump(exclude_unset=True)),
                results=self.results(spec, decision),
                contract=contract,
                decision=decision,
                slo=spec.slo,
                rollback=spec.rollback,
                drift_profile=self.optional("drift_profile", spec.drift_profile),
                parent=None if spec.parent is None else find_release(self.home, spec.parent).digest,
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "release"
            cause = first.get("ctx", {}).get("error", first["msg"])
            raise ConfigError(f"{place}: {cause}") from error

    # -- one piece ---------------------------------------------------------------------------------

    def piece(self, field: str, spec: PieceSpec) -> AnyPiece:
        """The piece that a person wrote for ``field``."""
        if isinstance(spec, str):
            is_version = field.startswith(("verifiers.", "tools."))
            spec = PieceMapping(version=spec) if is_version else PieceMapping(artifact=spec)
        if spec.artifact is not None:
            found = resolve(self.home, spec.artifact)
            self.home.store.ensure(found.digest)
            return ArtifactPiece(digest=found.digest, kind=found.kind)
        for system in _EXTERNAL:
            if (reference := getattr(spec, system)) is not None:
                return _external(field, system, reference)
        paths = spec.files if spec.files is not None else (spec.file or "",)
        return self.copied(field, [self.folder / path for path in paths])

    def optional(self, field: str, spec: PieceSpec | None) -> AnyPiece | None:
        return None if spec is None else self.piece(field, spec)

    def pieces(self, field: str, specs: Mapping[str, PieceSpec]) -> dict[str, AnyPiece]:
        return {name: self.piece(f"{field}.{name}", spec) for name, spec in specs.items()}

    def copied(self, field: str, sources: list[Path]) -> FilesPiece:
        """Files copied into the release."""
        place = "pieces/" + field.replace("/", "_").replace("\\", "_")
        for source in sources:
            if not source.exists():
                raise UsageError(
                    f"{field}: there is no file {source}", hint="paths start at the spec's folder"
                )
            if self.writer.path(f"{place}/{source.name}").exists():
                raise UsageError(f"{field}: two files are called {source.name!r}", hint="give their folder")
            if source.is_dir():
                self.writer.add_tree(source, f"{place}/{source.name}")
            else:
                self.writer.add_file(f"{place}/{source.name}", source)
        root = self.writer.path(place)
        found = sorted(path for path in root.rglob("*") if path.is_file())
        files = {path.relative_to(self.writer.directory).as_posix(): path for path in found}
        if is_served(field):  # loading a pickle runs code, wherever it lies
            refuse_pickle_names("model", files)
            for name, path in files.items():
                refuse_pickle_content("model", name, path)
        return FilesPiece(files={name: digest_file(path) for name, path in files.items()})

    def written(self, field: str, name: str, data: bytes) -> FilesPiece:
        """A file of the release with these bytes."""
        path = f"pieces/{field}/{name}"
        self.writer.add_bytes(path, data)
        return FilesPiece(files={path: digest_file(self.writer.path(path))})

    # -- what may be left out ----------------------------------------------------------------------

    def tokenizer(self, spec: ReleaseSpec, base: Artifact | None) -> AnyPiece | None:
        if spec.tokenizer is not None or base is None:
            return self.optional("tokenizer", spec.tokenizer)
        return derive.tokenizer_files(derive.holder_of_tokenizer(self.home, base))

    def template(self, spec: ReleaseSpec, base: Artifact | None) -> AnyPiece | None:
        if spec.chat_template is not None or base is None:
            return self.optional("chat_template", spec.chat_template)
        holder = derive.holder_of_tokenizer(self.home, base)
        if (found := derive.template_file(holder)) is not None:
            return found
        text = derive.template_text(self.home, holder)
        return None if text is None else self.written("chat_template", derive.TEMPLATE_FILE, text.encode())

    def configuration(self, spec: ReleaseSpec, run: RunRecord | None) -> dict[str, AnyPiece]:
        found = self.pieces("configuration", spec.configuration)
        if run is not None and "recipe" not in found:
            recipe = derive.resolved_recipe(run)
            found["recipe"] = self.written("configuration.recipe", "recipe.json", recipe)
        return found

    def results(self, spec: ReleaseSpec, decision: GateDecision | None) -> dict[str, Result]:
        if spec.results is not None:
            return {name: self.result(name, given) for name, given in spec.results.items()}
        if decision is None or not isinstance(decision.piece, ArtifactPiece):
            return {}
        reports = self.home.store.get(decision.piece.digest).inputs
        judged = {name: reports[name] for name in ("candidate", "canary") if name in reports}
        return {name: self.result(name, PieceMapping(artifact=digest)) for name, digest in judged.items()}

    def result(self, name: str, given: PieceSpec | ResultSpec) -> Result:
        spec = given if isinstance(given, ResultSpec) else ResultSpec(report=given)
        report = self.piece(f"results.{name}", spec.report)
        headline = spec.headline
        if headline is None and isinstance(report, ArtifactPiece):
            headline = derive.headline_of(self.home, self.home.store.get(report.digest))
        if headline is None and isinstance(report, FilesPiece):
            headline = self._numbers_in(report)
        return Result(report=report, headline=headline or {})

    def _numbers_in(self, report: FilesPiece) -> dict[str, float]:
        found: dict[str, float] = {}
        for path in report.files:
            if path.endswith(".json"):
                try:
                    found |= derive.numbers(json.loads(self.writer.path(path).read_bytes()))
                except ValueError as error:
                    raise UsageError(f"{path.rpartition('/')[2]} is not JSON: {error}") from error
        return found

    # -- the gate ----------------------------------------------------------------------------------

    def decision(self, spec: ReleaseSpec) -> GateDecision | None:
        if spec.decision is None:
            return None
        piece = self.piece("decision", spec.decision)
        return GateDecision(piece=piece, outcome=_text_of(self._record(piece), "outcome"))

    def contract(self, spec: ReleaseSpec, decision: GateDecision | None) -> AnyPiece | None:
        """The contract, which is the one of the decision to the byte."""
        judged = None if decision is None else _text_of(self._record(decision.piece), "contract").encode()
        if spec.contract is None:
            return None if judged is None else self.written("contract", CONTRACT_NAME, judged)
        piece = self.piece("contract", spec.contract)
        if judged is not None and isinstance(piece, FilesPiece):
            (path,) = piece.files if len(piece.files) == 1 else ("",)
            if not path or self.writer.path(path).read_bytes() != judged:
                raise ReleaseError(
                    "contract: the decision was made under another contract than this file",
                    hint="run `posttrain gate` with this contract, or leave the contract out to take the decision's",
                )
        return piece

    def _record(self, piece: AnyPiece) -> Any:
        """The JSON of a decision."""
        if isinstance(piece, ArtifactPiece):
            artifact = self.home.store.get(piece.digest)
            if artifact.kind != "decision":
                raise ReleaseError(
                    f"decision: {short(piece.digest)} is a {artifact.kind}, not a decision",
                    hint="name the output of `posttrain gate` or of a gate stage",
                )
            raw = self.home.store.read_bytes(artifact, DECISION_FILE)
        elif isinstance(piece, FilesPiece) and (path := _named(piece.files, DECISION_FILE)):
            raw = self.writer.path(path).read_bytes()
        else:
            raise ReleaseError(
                f"decision: there is no {DECISION_FILE}", hint="name a decision's artifact, file or folder"
            )
        try:
            return json.loads(raw)
        except ValueError as error:
            raise ReleaseError(f"decision: {DECISION_FILE} is not JSON: {error}") from error

    def refuse_foreign_decision(self, decision: GateDecision | None, base: AnyPiece) -> None:
        """Raise ReleaseError where the reports behind the decision are those of another model."""
        if decision is None or not isinstance(decision.piece, ArtifactPiece):
            return
        reports = self.home.store.get(decision.piece.digest).inputs
        try:
            judged = self.home.store.get(reports["candidate"]).inputs["model"]
        except (KeyError, MissingArtifactError, CorruptArtifactError):
            return  # judged from a report of elsewhere, which names no artifact
        mine = {base.digest} if isinstance(base, ArtifactPiece) else set()
        if isinstance(base, ArtifactPiece) and base.kind == "gguf":
            mine |= {kept.inputs.get("model", "") for kept in self.home.store.get(base.digest).provenance}
        if judged not in mine:
            raise ReleaseError(
                f"decision: it was made for model {short(judged)}, and this release's base is another",
                hint="evaluate this model and apply the contract to its own report",
            )


def _reference(spec: PieceSpec) -> str:
    return spec if isinstance(spec, str) else (spec.artifact or "")


def _external(field: str, system: ExternalSystem, reference: str) -> ExternalPiece:
    try:
        return ExternalPiece(system=system, reference=reference)
    except ValidationError as error:
        cause = error.errors(include_url=False)[0]["ctx"]["error"]
        raise ConfigError(f"{field}: {cause}") from error


def _named(files: Mapping[str, str], name: str) -> str | None:
    found = [path for path in files if path.rpartition("/")[2] == name]
    return found[0] if len(found) == 1 else None


def _text_of(record: Any, key: str) -> str:
    found = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(found, str):
        raise ReleaseError(f"decision: it has no {key}", hint="name the output of `posttrain gate`")
    return found
