"""Adapters as PEFT writes them, read without PEFT: the same change of every weight, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.core.errors import ModelError
from posttrain.engines.gguf_lora import export_gguf_lora
from posttrain.engines.lora import read_lora


def wrapped(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    settings = {"target_modules": "all-linear", "r": 3, "lora_alpha": 5, **settings}
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_every_weight_changes_as_peft_changes_it(settings: dict[str, Any], tmp_path: Path) -> None:
    model = wrapped(**settings)
    model.save_pretrained(tmp_path)
    weights = read_lora(tmp_path)
    changed = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(weights.pairs) == set(changed)
    for name, pair in weights.pairs.items():
        torch.testing.assert_close(torch.from_numpy(pair.b @ pair.a) * pair.scale, changed[name])


def test_half_precision_is_read_as_what_it_stands_for(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    for dtype in (torch.bfloat16, torch.float16):
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, file)
        for name, pair in read_lora(tmp_path).pairs.items():
            wanted = tensors[f"base_model.model.{name}.lora_A.weight"].to(dtype).float()
            assert torch.equal(torch.from_numpy(pair.a), wanted)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"use_dora": True}, "more than plain LoRA|not LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "not LoRA on a linear layer"),
        ({"alpha_pattern": {"q_proj": 9}}, "alpha_pattern"),
        ({"bias": "all"}, "with bias 'all'"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
def test_more_than_plain_lora_is_refused(settings: dict[str, Any], why: str, tmp_path: Path) -> None:
    wrapped(**settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=why):
        read_lora(tmp_path)


def test_a_side_that_is_missing_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, file)
    with pytest.raises(ModelError, match=r"two sides of .*q_proj do not fit"):
        read_lora(tmp_path)
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, file)
    with pytest.raises(ModelError, match=r"two sides of .*q_proj do not fit"):
        read_lora(tmp_path)
    save_file({}, file)
    with pytest.raises(ModelError, match="no tensors"):
        read_lora(tmp_path)


def test_a_gguf_is_the_same_bytes_each_time_and_knows_only_layers_that_llama_cpp_has(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = wrapped()
    model.save_pretrained(tmp_path)
    base = tmp_path / "base"
    model.get_base_model().config.save_pretrained(base)
    one, two = (export_gguf_lora(tmp_path, base, tmp_path / f"{n}.gguf").read_bytes() for n in "ab")
    assert one == two
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("q_proj", "qk_proj"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(ModelError, match=r"qk_proj, which it would not in llama.cpp"):
        export_gguf_lora(tmp_path, base, tmp_path / "c.gguf")
    assert not list(tmp_path.glob("c.gguf")) + list(tmp_path.glob(".*.part"))
    (base / "config.json").write_text(json.dumps([]))
    with pytest.raises(ModelError, match="num_attention_heads"):
        export_gguf_lora(tmp_path, base, tmp_path / "c.gguf")
