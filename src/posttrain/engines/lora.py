"""LoRA adapters as PEFT writes them, read without PEFT and without torch.

Here: what an adapter computes, ``y + scale * B(A(x))`` for each adapted linear layer, from ``adapter_config.json`` and
``adapter_model.safetensors``. Not here: training (``training.lora``), llama.cpp's form (``gguf_lora``). *Covered*: what
would compute anything else is refused (DoRA, biases, whole modules, scales by pattern), and so is a pickle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain.core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_HINT = "merge it into its base, and serve that"
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_EMPTY = (
    "use_dora",
    "use_qalora",
    "modules_to_save",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "fan_in_fan_out",
    "alora_invocation_tokens",
)
"""Settings of PEFT by which an adapter computes something else."""


class Pair(NamedTuple):
    """The two sides of one adapted layer, float32."""

    a: NDArray[np.float32]
    """``[rank, in]``."""
    b: NDArray[np.float32]
    """``[out, rank]``."""
    scale: float


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """An adapter, read."""

    alpha: float
    pairs: Mapping[str, Pair]
    """By the module's name in the base: ``model.layers.0.self_attn.q_proj``."""


def read_lora(folder: Path) -> LoraWeights:
    """The adapter in ``folder``. Raises ModelError where it is none, or is more than plain LoRA."""
    settings = _settings(folder / CONFIG_FILE)
    alpha = float(settings["lora_alpha"])
    sides: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, tensor in _safetensors(folder / WEIGHTS_FILE).items():
        match = _TENSOR.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise ModelError(
                f"the adapter has a tensor {name!r}, which is not LoRA on a linear layer", hint=_HINT
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise ModelError("the adapter has no tensors", hint="save it again with `save_pretrained`")
    pairs = {}
    for module, pair in sorted(sides.items()):
        if set(pair) != {"A", "B"} or len(pair["A"]) != pair["B"].shape[1]:
            raise ModelError(
                f"the adapter's two sides of {module} do not fit", hint="save it again with `save_pretrained`"
            )
        rank = len(pair["A"])
        pairs[module] = Pair(
            pair["A"], pair["B"], alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        )
    return LoraWeights(alpha, pairs)


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        kind, bias, alpha = found.get("peft_type"), found.get("bias", "none"), found.get("lora_alpha")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{file.name} cannot be read: {error}") from error
    if kind != "LORA" or bias != "none":
        raise ModelError(
            f"the adapter is of type {kind!r} with bias {bias!r}; plain LORA is known", hint=_HINT
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(f"lora_alpha is {alpha!r} in {file.name}, not a number")
    for key in _EMPTY:
        if found.get(key):
            raise ModelError(
                f"the adapter has {key}: {found[key]!r}, which is more than plain LoRA", hint=_HINT
            )
    settings: dict[str, Any] = found
    return settings


def _safetensors(file: Path) -> dict[str, NDArray[np.float32]]:
    import numpy as np
    from safetensors import SafetensorError, deserialize

    try:
        rows = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file.name} cannot be read: {error}", hint="adapters are safetensors; a pickle is never read"
        ) from error
    found = {}
    for name, tensor in rows:
        raw = bytes(tensor["data"])
        if tensor["dtype"] == "BF16":  # numpy has none: it is the upper half of a float32
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif tensor["dtype"] in {"F32", "F16"}:
            values = np.frombuffer(raw, np.float32 if tensor["dtype"] == "F32" else np.float16)
        else:
            raise ModelError(f"the adapter's {name} is of type {tensor['dtype']}", hint=_HINT)
        found[name] = values.astype(np.float32).reshape(tensor["shape"])
    return found
