"""LoRA adapters as GGUF, the form in which llama.cpp loads them beside a base.

Here: adapters on the linear layers of the Llama models that ``gguf`` writes; float32. Not here: reading them
(``lora``), the base (``gguf``), loading (``engines.drivers``). No torch: whoever starts engines should stay small.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core.atomic import make_folder, unique_name
from posttrain.core.errors import MissingDependencyError, ModelError
from posttrain.engines.gguf import TENSORS, permute_rope, write_whole
from posttrain.engines.lora import LoraWeights, read_lora

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<inner>.+)")
_HINT = "serve it with transformers or vLLM, or merge it into its base"


def export_gguf_lora(adapter_folder: Path, base_folder: Path, destination: Path) -> Path:
    """Write a PEFT folder as the GGUF adapter ``destination``, whole or not at all; returns ``destination``.

    ``base_folder`` has the base's config.json. Raises ModelError where llama.cpp would not compute the same,
    MissingDependencyError without the package gguf.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(
            "writing a GGUF needs the package gguf", hint="pip install 'posttrain[gguf]'"
        ) from error

    weights = read_lora(adapter_folder)
    tensors = _tensors(weights, _read_shape(base_folder / "config.json"))
    make_folder(destination.parent)
    temporary = destination.parent / f".{unique_name()}.part"
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, weights.alpha)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    write_whole(writer, temporary, destination)
    return destination


def _tensors(weights: LoraWeights, shape: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    import numpy as np

    query_heads = int(shape["num_attention_heads"])
    heads = {"q_proj": query_heads, "k_proj": int(shape.get("num_key_value_heads") or query_heads)}
    found: dict[str, NDArray[np.float32]] = {}
    for module, pair in weights.pairs.items():
        name = _name(module)
        if name is None:
            raise ModelError(f"the adapter changes {module}, which it would not in llama.cpp", hint=_HINT)
        b = pair.b
        if (count := heads.get(module.rsplit(".", 1)[-1])) is not None:
            # The base's rows were reordered for llama.cpp's rotation, so the adapter's are, too.
            b = permute_rope(b, count)
        # llama.cpp scales by alpha / rank; another scale goes into the weights. Exactly 1 where there is none.
        b = b * np.float32(pair.scale / (weights.alpha / len(pair.a)) if weights.alpha else 1.0)
        found[f"{name}.lora_a"] = np.ascontiguousarray(pair.a)
        found[f"{name}.lora_b"] = np.ascontiguousarray(b)
    return found


def _name(module: str) -> str | None:
    """llama.cpp's name of a module's weight; None for what can have no adapter there."""
    if module == "model.embed_tokens":
        return None
    if match := _LAYER.fullmatch(module):
        inner = TENSORS.get(f"{match['inner']}.weight")
        return f"blk.{match['layer']}.{inner}" if inner else None
    return TENSORS.get(f"{module}.weight")


def _read_shape(file: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"the base's {file.name} cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("num_attention_heads"), int):
        raise ModelError(f"the base's {file.name} names no `num_attention_heads`", hint=_HINT)
    shape: dict[str, Any] = found
    return shape
