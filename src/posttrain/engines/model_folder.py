"""Model folders: loading what can be used, refusing what cannot, saving so that equal models have equal bytes.

Here: Hugging Face folders with safetensors weights, a tokenizer and a chat template. A pickle is never read. Not here:
generation (``transformers_engine``), other formats (``gguf``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain.core.errors import ModelError
from posttrain.rewards.parsing import opens_think

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises ModelError where it cannot end, pad or chat."""
    from transformers import AutoTokenizer

    _require_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"no usable tokenizer in the model: {_first_line(error)}",
            hint="the model needs tokenizer.json and tokenizer_config.json beside its weights",
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end token, so no completion could ever stop",
            hint="set `eos_token` in the model's tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no padding token, so completions cannot be batched",
            hint="set `pad_token` in the model's tokenizer_config.json (not the end token: it would mask the stop)",
        )
    if not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template",
            hint="add chat_template.jinja or `chat_template` to the tokenizer",
        )
    return tokenizer


def load_model(folder: Path, *, dtype: DType = "float32", device: str = "cpu") -> Any:
    """The causal language model of a folder, in evaluation mode. Raises ModelError; a pickle is refused."""
    import torch
    from transformers import AutoModelForCausalLM

    _require_folder(folder)
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(
            p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
        )
        found = f"; refused to read {pickles[0]}, a pickle can run code" if pickles else ""
        raise ModelError(
            f"the model has no safetensors weights{found}",
            hint="convert it once with `save_pretrained`, which writes model.safetensors",
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the model cannot be loaded: {_first_line(error)}") from error
    return model.to(device).eval()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """A Hugging Face folder (safetensors) that names no path, so that equal models have equal bytes."""
    model.config._name_or_path = ""
    tokenizer.name_or_path = ""
    for how_it_was_loaded in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prefills_think(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether the chat template opens the think block for the model, so that completions begin inside it."""
    prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return opens_think(prompt)


def pick_device(wanted: str = "auto") -> str:
    """``cuda``, ``mps`` or ``cpu``: the best there is, or the one asked for. Raises ModelError where it is absent."""
    import torch

    usable = ["cpu"]
    if torch.backends.mps.is_available():
        usable.insert(0, "mps")
    if torch.cuda.is_available():
        usable.insert(0, "cuda")
    if wanted == "auto":
        return usable[0]
    if wanted not in usable:
        raise ModelError(
            f"device {wanted!r} is not usable here", hint=f"set `device` to one of {', '.join(usable)}"
        )
    return wanted


def _require_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder.name} is not a model folder: config.json is missing",
            hint="name a model artifact, or a Hugging Face folder",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
