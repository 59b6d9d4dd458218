"""The short form of a release that a production checklist asks for, and back.

Here: the mapping, documented field by field below. Not here: the manifest (``records``), spec files (``spec``).

    checklist            manifest
    llm_sha              base
    adapters             adapters, in order; an adapter's name is what stands before the last ``@``
    input_sha            input_processing
    tokenizer_sha        tokenizer
    sampling             sampling
    reward_model_sha     reward_models: one is a text, several are a mapping of name to text
    verifiers            verifiers
    tools                tools, but for ``repo_sha``
    tools.repo_sha       code.commit

``sha256:`` and 64 digits, alone or after ``NAME@``, is an artifact of the store. Any other text is an external piece:
a version label under ``verifiers`` and ``tools``, a label elsewhere. What the short form has no place for (chat
template, data, results, contract, policies…) is left out on the way there, and files of the release become their
digest; so a checklist goes through a manifest and back without a change, a manifest through a checklist does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.core.canonical import is_digest
from posttrain.core.errors import DataError
from posttrain.core.suggest import did_you_mean
from posttrain.releases.records import (
    Adapter,
    ArtifactPiece,
    Code,
    ExternalPiece,
    ExternalSystem,
    FilesPiece,
    ReleaseManifest,
)

_KEYS = (
    "llm_sha",
    "adapters",
    "input_sha",
    "tokenizer_sha",
    "sampling",
    "reward_model_sha",
    "verifiers",
    "tools",
)
_REPO = "repo_sha"
_ONE_REWARD_MODEL = "reward_model"


def from_checklist_json(data: Mapping[str, Any], *, name: str = "unnamed") -> ReleaseManifest:
    """The manifest of a checklist's JSON. ``name`` is the release's, which a checklist does not say.

    Raises DataError for an unknown key, naming the nearest, and for what is no checklist.
    """
    for key in data:
        if key not in _KEYS:
            raise DataError(f"{key!r} is no key of a release checklist", hint=did_you_mean(key, _KEYS))
    if "llm_sha" not in data:
        raise DataError("the checklist has no llm_sha", hint="name the base weights")
    try:
        tools = dict(data.get("tools", {}))
        commit = tools.pop(_REPO, None)
        rewards = data.get("reward_model_sha", {})
        if isinstance(rewards, str):
            rewards = {_ONE_REWARD_MODEL: rewards}
        return ReleaseManifest(
            name=name,
            base=_piece(data["llm_sha"], "label", "model"),
            adapters=tuple(_adapter(text) for text in data.get("adapters", ())),
            input_processing=_optional(data.get("input_sha")),
            tokenizer=_optional(data.get("tokenizer_sha")),
            sampling=data.get("sampling", {}),
            reward_models={key: _piece(text, "label", "model") for key, text in rewards.items()},
            verifiers={
                key: _piece(text, "version", "verifier") for key, text in data.get("verifiers", {}).items()
            },
            tools={key: _piece(text, "version", "tool") for key, text in tools.items()},
            code=Code(commit=commit),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"not a release checklist: {error}") from error


def to_checklist_json(manifest: ReleaseManifest) -> dict[str, Any]:
    """The checklist's JSON of a manifest; keys without a value are left out."""
    rewards = {key: _text(piece) for key, piece in manifest.reward_models.items()}
    tools = {key: _text(piece) for key, piece in manifest.tools.items()}
    if manifest.code.commit is not None:
        tools[_REPO] = manifest.code.commit
    found = {
        "llm_sha": _text(manifest.base),
        "adapters": [_adapter_text(adapter) for adapter in manifest.adapters],
        "input_sha": None if manifest.input_processing is None else _text(manifest.input_processing),
        "tokenizer_sha": None if manifest.tokenizer is None else _text(manifest.tokenizer),
        "sampling": dict(manifest.sampling),
        "reward_model_sha": rewards[_ONE_REWARD_MODEL] if list(rewards) == [_ONE_REWARD_MODEL] else rewards,
        "verifiers": {key: _text(piece) for key, piece in manifest.verifiers.items()},
        "tools": tools,
    }
    return {key: value for key, value in found.items() if value not in (None, {}, [])}


def _piece(text: Any, system: ExternalSystem, kind: str) -> ArtifactPiece | ExternalPiece:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text")
    digest = text.rpartition("@")[2]
    if is_digest(digest):
        return ArtifactPiece(digest=digest, kind=kind)
    return ExternalPiece(system=system, reference=text)


def _optional(text: Any) -> ArtifactPiece | ExternalPiece | None:
    return None if text is None else _piece(text, "label", "model")


def _adapter(text: Any) -> Adapter:
    piece = _piece(text, "label", "model")
    return Adapter(name=text.rpartition("@")[0] or text, piece=piece)


def _adapter_text(adapter: Adapter) -> str:
    text = _text(adapter.piece)
    return text if isinstance(adapter.piece, ExternalPiece) else f"{adapter.name}@{text}"


def _text(piece: ArtifactPiece | FilesPiece | ExternalPiece) -> str:
    return piece.reference if isinstance(piece, ExternalPiece) else piece.identity
