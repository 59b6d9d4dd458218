"""A tiny random model and adapters that change it visibly, as real folders on the disk, and what they should say."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch loads: tests share few cores, and spinning threads starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from posttrain.core.canonical import digest_bytes
from posttrain.core.quiet import quiet_libraries
from posttrain.engines.drivers.adapter_files import folder_digest
from posttrain.engines.drivers.http_client import call
from posttrain.engines.drivers.records import AdapterRef, ServedFolder

quiet_libraries()

QUESTIONS = ("Mia has 4 pens.", "How many pens now?", "小明有7个书。", "Hello?")
NEW_TOKENS = 24
GREEDY = {"temperature": 0, "max_tokens": NEW_TOKENS}


@dataclass
class World:
    """Folders of a model and of adapters on it."""

    root: Path
    model: ServedFolder
    adapters: dict[str, AdapterRef]
    texts: dict[str, dict[str, str]]
    """By adapter (``base`` for none), by question: the greedy answer of transformers with merged weights."""

    @property
    def store(self) -> Path:
        return self.root / "store"


def make_world(root: Path) -> World:
    """The model, adapters ``red``, ``blue`` and ``green`` on it, and their texts."""
    import torch

    from posttrain.engines.model_folder import load_model, load_tokenizer, save_model

    torch.set_num_threads(1)
    folder = root / "model"
    tokenizer = _tokenizer()
    save_model(_model(tokenizer), tokenizer, folder)
    model = ServedFolder(folder=folder, digest=digest_bytes(b"tiny model"), name="tiny")
    texts = {"base": _texts(load_model(folder), load_tokenizer(folder))}
    adapters = {}
    for seed, name in enumerate(("red", "blue", "green")):
        place = root / "store" / name
        merged = save_adapter(load_model(folder), place, seed=seed, rslora=name == "green")
        adapters[name] = AdapterRef(name=name, digest=folder_digest(place), folder=place)
        texts[name] = _texts(merged, load_tokenizer(folder))
    return World(root, model, adapters, texts)


def save_adapter(model: Any, place: Path, *, seed: int, rslora: bool = False) -> Any:
    """A strong random adapter of PEFT's own making, saved at ``place``; the model with it merged."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=rslora
    )
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    wrapped.save_pretrained(place)
    return wrapped.merge_and_unload().eval()


def ask(url: str, model: str, question: str, **more: Any) -> str:
    """The greedy answer of a server."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], **GREEDY, **more}
    answer = call("POST", f"{url}/chat/completions", seconds=60, body=body)
    assert answer.status == 200, answer.message()
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def ask_all(
    url: str, names: dict[str, str], *, rounds: int = 1, at_once: int = 0
) -> dict[str, dict[str, str]]:
    """Every question to every model at once; ``names`` is ours to the server's. Answers as in ``World.texts``."""
    jobs = [(ours, question) for _ in range(rounds) for question in QUESTIONS for ours in names]
    with ThreadPoolExecutor(at_once or len(names) * 2) as pool:
        texts = list(pool.map(lambda job: ask(url, names[job[0]], job[1]), jobs))
    found: dict[str, dict[str, str]] = {}
    for (ours, question), text in zip(jobs, texts, strict=True):
        assert found.setdefault(ours, {}).setdefault(question, text) == text, "one request, two answers"
    return found


def events(body: bytes) -> list[Any]:
    """The JSON objects of a stream of server-sent events; it ends with [DONE]."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def _tokenizer() -> Any:
    from posttrain.training.tiny_tokenizer import build_tiny_tokenizer

    texts = [*QUESTIONS, "Mia buys 3 more pens. Now Mia has 7 pens.", "小明卖了2个。现在有几个书？"] * 4
    return build_tiny_tokenizer(iter(texts), vocab_size=352, max_length=256)


def _model(tokenizer: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,  # far from a tie between two tokens
        )
    )
    # Half characters are shown or dropped by engines as they like, and tags are theirs to parse: never the likeliest.
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if not text or "\ufffd" in text or text.startswith("<") or text in tokenizer.all_special_tokens:
            model.lm_head.weight.data[token] = 0
    return model


def _texts(model: Any, tokenizer: Any) -> dict[str, str]:
    from posttrain.engines.records import Sampling
    from posttrain.engines.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, tokenizer, batch_size=1)
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    completions = engine.generate(conversations, Sampling(max_new_tokens=NEW_TOKENS, temperature=0))
    return {question: found[0].text for question, found in zip(QUESTIONS, completions, strict=True)}
