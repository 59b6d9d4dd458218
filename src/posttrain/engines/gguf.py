"""Llama folders as GGUF, the one-file format of llama.cpp.

Here: Llama weights (grouped queries and tied embeddings too) with a byte-level BPE, in which digits stand one by one
or not: what ``pretrain_tiny`` makes, and SmolLM2; float32 or float16. Not here: quantised types, reading a GGUF
(``import_model``), running one (``llama_cpp``). *Covered*: equal folders give equal bytes; what llama.cpp would take
otherwise is refused. *Not covered*: rotary scaling, biases, other architectures.
To add an architecture: its names in :data:`TENSORS`, its keys in :func:`_write_shape`, its test of equal text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrain.core.atomic import (
    make_folder,
    storage_errors,
    storage_full,
    sync_file,
    sync_folder,
    unique_name,
)
from posttrain.core.errors import MissingDependencyError, ModelError
from posttrain.engines.model_folder import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ARCHITECTURE = "LlamaForCausalLM"
_HINT = (
    "GGUF export knows the Llama models of `pretrain_tiny` and SmolLM2; others need llama.cpp's own converter"
)

_SETTINGS: Mapping[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""What llama.cpp's ``llama`` architecture takes for granted."""

TENSORS: Mapping[str, str] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
"""Names of transformers (inside a layer without its prefix) and of GGUF, in the order of the file."""

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS: Mapping[str, Mapping[str, Any]] = {
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]},
    "gpt-2": _BYTES,
}
"""How a text is split before merging: llama.cpp's name and what tokenizer.json says."""

_PLAIN_BPE: Mapping[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": None,
    "ignore_merges": None,
}
"""Settings of the merges; None stands for everything that is off."""


def export_gguf(
    model_folder: Path, destination: Path, *, dtype: Literal["float32", "float16"] = "float32"
) -> Path:
    """Write a model folder as the GGUF file ``destination``, whole or not at all; returns ``destination``.

    ``dtype`` is the type of the matrices; norms stay float32. Raises ModelError where the architecture, the tokenizer
    or a tensor is not one that llama.cpp would read alike, MissingDependencyError without the package gguf.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(
            "writing a GGUF needs the package gguf", hint="pip install 'posttrain[gguf]'"
        ) from error

    tokenizer = load_tokenizer(model_folder)
    config = _read_config(model_folder)
    tensors = _read_tensors(model_folder, config)
    make_folder(destination.parent)
    temporary = destination.parent / f".{unique_name()}.part"
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "float32" else gguf.LlamaFileType.MOSTLY_F16)
    _write_shape(writer, config)
    _write_tokenizer(writer, tokenizer, vocab_size=config["vocab_size"])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor if tensor.ndim == 1 else tensor.astype(dtype))
    write_whole(writer, temporary, destination)
    return destination


def write_whole(writer: Any, temporary: Path, destination: Path) -> None:
    """Write what a ``GGUFWriter`` on ``temporary`` holds and give it the name ``destination``, whole or not at all.

    Raises StorageFullError.
    """
    with storage_errors(destination.parent):
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            sync_file(temporary)
            temporary.replace(destination)
            sync_folder(destination.parent)
        except OSError as error:
            # numpy reports a short write by its counts alone, without an errno.
            if error.errno is None and "requested and" in str(error):
                raise storage_full(destination.parent) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)


def _read_config(folder: Path) -> dict[str, Any]:
    """The folder's configuration as transformers fills it in; refused where llama.cpp would compute otherwise."""
    from transformers import AutoConfig

    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"config.json cannot be read: {first}", hint=_HINT) from error
    named = config.get("architectures") or ["no architecture"]
    if named != [_ARCHITECTURE]:
        raise ModelError(f"{named[0]} has no GGUF export here, only {_ARCHITECTURE} has", hint=_HINT)
    for key, wanted in _SETTINGS.items():
        if config.get(key) != wanted:
            raise ModelError(
                f"{key} is {config.get(key)!r} in config.json, GGUF export knows {wanted!r}", hint=_HINT
            )
    rope = config["rope_parameters"]
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise ModelError(
            f"rope {rope.get('rope_type')!r} has no GGUF export here, only plain rope", hint=_HINT
        )
    return config


def _write_shape(writer: Any, config: Mapping[str, Any]) -> None:
    head_size = config["head_dim"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _write_tokenizer(writer: Any, tokenizer: Any, *, vocab_size: int) -> None:
    import gguf

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    split = _check_tokenizer(described)
    bpe = described["model"]
    # Rows of the model that no token names: it must have a text of its own, and can never be read from text.
    tokens = [f"[unused {index}]" for index in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    named = [(text, index, gguf.TokenType.NORMAL) for text, index in bpe["vocab"].items()]
    for added in described["added_tokens"]:
        # User-defined tokens are matched in text and shown in text; control tokens are never shown.
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        named.append((added["content"], added["id"], kind))
    for text, index, kind in named:
        if index >= vocab_size:
            raise ModelError(
                f"token {text!r} has id {index}, the model has {vocab_size} rows",
                hint="resize the model's embeddings to its tokenizer",
            )
        tokens[index], types[index] = text, kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_eot_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)


def _check_tokenizer(described: Mapping[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer splits text. ``described`` is the content of tokenizer.json.

    Raises ModelError for what llama.cpp would split or merge otherwise.
    """
    bpe = described["model"]
    wrong = [key for key, wanted in _PLAIN_BPE.items() if (bpe.get(key) or None) != wanted]
    names = [name for name, split in _PRE_TOKENIZERS.items() if described["pre_tokenizer"] == split]
    if wrong or described["normalizer"] is not None or not names:
        what = f"{wrong[0]} is {bpe.get(wrong[0])!r}" if wrong else "it splits text in another way"
        raise ModelError(
            f"the tokenizer is not a byte-level BPE of a kind that GGUF export knows: {what}", hint=_HINT
        )
    for added in described["added_tokens"]:
        if added["lstrip"] or added["rstrip"] or added["single_word"]:
            raise ModelError(
                f"token {added['content']!r} takes in the space beside it, which llama.cpp would not do",
                hint="add the token without lstrip, rstrip and single_word",
            )
    return names[0]


def _read_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """The weights under their GGUF names, in the order of the file, as float32."""
    import torch
    from safetensors import safe_open

    found: dict[str, NDArray[np.float32]] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            "the model has no safetensors weights", hint="convert it once with `save_pretrained`"
        )
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping, it cannot be iterated
                found[name] = weights.get_tensor(name).to(torch.float32).numpy()
    if config["tie_word_embeddings"]:
        # llama.cpp falls back to the embeddings where a file has no output.weight.
        found.pop("lm_head.weight", None)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    renamed: dict[str, NDArray[np.float32]] = {}
    for theirs, ours in _expected(config).items():
        if theirs not in found:
            raise ModelError(f"the weights lack {theirs}", hint="save the model again with `save_pretrained`")
        tensor = found.pop(theirs)
        for projection, count in heads.items():
            if projection in theirs:
                tensor = permute_rope(tensor, count)
        renamed[ours] = tensor
    if found:
        raise ModelError(f"GGUF export does not know the tensor {min(found)}", hint=_HINT)
    return renamed


def _expected(config: Mapping[str, Any]) -> dict[str, str]:
    """Every tensor of the model: its name in transformers to its name in GGUF."""
    outer = {theirs: ours for theirs, ours in TENSORS.items() if theirs.startswith(("model.", "lm_head."))}
    if config["tie_word_embeddings"]:
        del outer["lm_head.weight"]
    inner = {
        f"model.layers.{layer}.{theirs}": f"blk.{layer}.{ours}"
        for layer in range(config["num_hidden_layers"])
        for theirs, ours in TENSORS.items()
        if not theirs.startswith(("model.", "lm_head."))
    }
    return outer | inner


def permute_rope(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection ``[heads * head_size, hidden]`` from halves to neighbouring pairs.

    transformers rotates row i with row i + head_size/2, llama.cpp's ``llama`` rotates rows 2i and 2i + 1; this is the
    ``permute`` of llama.cpp's convert_hf_to_gguf.py.
    """
    import numpy as np

    rows, columns = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs).reshape(rows, columns)
