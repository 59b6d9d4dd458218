"""Supervised fine-tuning: what is learned, what is refused, and that a stopped run ends as an unbroken one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow.parquet
import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import DataError, Interrupted, ModelError
from posttrain.data.cold_start import ColdStartConfig, run_cold_start
from posttrain.data.examples import EXAMPLES_FILE, examples_to_jsonl, read_examples
from posttrain.data.prompts import PROMPTS_FILE, read_prompts
from posttrain.engines.model_folder import load_model, load_tokenizer
from posttrain.training.lora import merge_adapters
from posttrain.training.rendering import fit, render
from posttrain.training.stages.sft import SftConfig, run_sft
from tests.training.conftest import Bench

MESSAGES = [{"role": "user", "content": "Alice has 3 apples and buys 2 more. How many now?"}]
REPLY = "<think>Start with 3. Add 3+2=5.</think><answer>5</answer>"


@pytest.fixture(scope="module")
def demonstrations(shared_bench: Bench, tiny_base: Mapping[str, Artifact]) -> Artifact:
    config = ColdStartConfig.model_validate(
        {"count": 48, "source": {"kind": "word_problems", "max_steps": 1, "max_value": 10}}
    )
    made = shared_bench.run(run_cold_start, config, {"heldout": tiny_base["heldout"]})
    return made.outputs["examples"]


def small(**changes: Any) -> SftConfig:
    return SftConfig.model_validate(
        {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, "save_every": 4, **changes}
    )


def inputs(base: Mapping[str, Artifact], examples: Artifact) -> dict[str, Artifact]:
    return {"model": base["model"], "examples": examples, "heldout": base["heldout"]}


def test_the_reply_and_its_end_are_learned_and_nothing_else(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact]
) -> None:
    tokenizer = load_tokenizer(shared_bench.store.view(tiny_base["model"]))
    row = render(tokenizer, MESSAGES, REPLY)
    assert tokenizer.decode(row.reply) == f"{REPLY}{tokenizer.eos_token}"
    asked = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert row.prompt == asked
    earlier = [*MESSAGES, {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 1 more?"}]
    later = render(tokenizer, earlier, "6")
    assert tokenizer.decode(later.reply) == f"6{tokenizer.eos_token}"
    assert "And 1 more?" in tokenizer.decode(later.prompt)


def test_a_template_that_opens_the_think_block(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact]
) -> None:
    tokenizer = load_tokenizer(shared_bench.store.view(tiny_base["model"]))
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
    thinking = render(tokenizer, MESSAGES, REPLY)
    assert tokenizer.decode(thinking.prompt).endswith("<think>")
    assert tokenizer.decode(thinking.reply) == f"{REPLY.removeprefix('<think>')}{tokenizer.eos_token}"
    direct = render(tokenizer, MESSAGES, "Hi! Happy to be of assistance.")
    assert tokenizer.decode(direct.reply) == f"</think>Hi! Happy to be of assistance.{tokenizer.eos_token}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "does not close"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            "changes the prompt",
        ),
    ],
)
def test_unusable_templates_are_refused(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], template: str, text: str
) -> None:
    tokenizer = load_tokenizer(shared_bench.store.view(tiny_base["model"]))
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=text):
        render(tokenizer, MESSAGES, REPLY)


def test_rows_are_never_cut() -> None:
    assert fit([5, 9, 7], max_tokens=None, positions=16, too_long="fail").kept == [0, 1, 2]
    with pytest.raises(DataError, match="2 of 3 rows are longer than 6 tokens, the longest 9") as failure:
        fit([5, 9, 7], max_tokens=6, positions=16, too_long="fail")
    assert "max_tokens" in str(failure.value.hint)
    assert fit([5, 9, 7], max_tokens=8, positions=16, too_long="drop").kept == [0, 2]
    with pytest.raises(DataError, match="no row fits"):
        fit([5], max_tokens=None, positions=4, too_long="drop")


def test_it_learns_and_a_stopped_run_ends_the_same(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], demonstrations: Artifact
) -> None:
    wired = inputs(tiny_base, demonstrations)
    whole = shared_bench.run(run_sft, small(), wired, work="sft-whole")
    path = shared_bench.store.file(whole.outputs["metrics"], "metrics.parquet")
    losses = pyarrow.parquet.read_table(path)["loss"].to_pylist()
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]

    context = shared_bench.context("run_sft", small(), wired, work="sft-stopped")
    seen: list[int] = []

    def stop_late(event: Any) -> None:
        if event.kind == "progress":
            seen.append(event.data["step"])
            context.stop.requested = event.data["step"] >= 6

    stopping = replace(context, events=stop_late)
    with pytest.raises(Interrupted):
        run_sft(small(), wired, stopping)
    assert max(seen) < 12
    resumed = shared_bench.run(run_sft, small(), wired, work="sft-stopped")
    assert {n: a.digest for n, a in resumed.outputs.items()} == {
        n: a.digest for n, a in whole.outputs.items()
    }


def test_adapters_are_merged_and_the_merge_is_checked(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], demonstrations: Artifact
) -> None:
    done = shared_bench.run(run_sft, small(lora={"rank": 4}, epochs=1), inputs(tiny_base, demonstrations))
    assert done.summary["merge_gap"] < 1e-4
    folder = shared_bench.store.view(done.outputs["model"])
    assert not list(folder.glob("adapter*"))
    model = load_model(folder)
    assert model.config.architectures == ["LlamaForCausalLM"]


def test_adapters_in_the_type_of_the_weights_resume_exactly(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], demonstrations: Artifact
) -> None:
    config = small(dtype="bfloat16", lora={"rank": 4, "dtype": "model"}, epochs=1, save_every=2)
    wired = inputs(tiny_base, demonstrations)
    whole = shared_bench.run(run_sft, config, wired, work="sft-bf16-whole").outputs
    context = shared_bench.context("run_sft", config, wired, work="sft-bf16-stopped")

    def stop_late(event: Any) -> None:
        context.stop.requested |= event.kind == "progress" and event.data["step"] >= 3

    with pytest.raises(Interrupted):
        run_sft(config, wired, replace(context, events=stop_late))
    resumed = shared_bench.run(run_sft, config, wired, work="sft-bf16-stopped").outputs
    assert {n: a.digest for n, a in resumed.items()} == {n: a.digest for n, a in whole.items()}


def test_a_merge_that_changes_the_model_is_noticed(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact]
) -> None:
    import torch
    from peft import get_peft_model

    from posttrain.training.lora import LoraSettings, adapter_config

    model = load_model(shared_bench.store.view(tiny_base["model"]))
    adapted = get_peft_model(model, adapter_config(LoraSettings(rank=4), model))
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    layer = next(module for name, module in adapted.named_modules() if name.endswith("q_proj"))
    layer.scaling["default"] = 4.0
    honest = layer.merge

    def wrong(*args: Any, **kwargs: Any) -> None:
        layer.scaling["default"] = 0.1
        honest(*args, **kwargs)

    layer.merge = wrong
    with pytest.raises(ModelError, match="merging the adapters changed"):
        merge_adapters(adapted, [[5, 6, 7, 8, 9]])


def test_bad_examples(
    shared_bench: Bench, tiny_base: Mapping[str, Artifact], demonstrations: Artifact
) -> None:
    wired = inputs(tiny_base, demonstrations)
    with pytest.raises(DataError, match="longer than 20 tokens"):
        shared_bench.run(run_sft, small(max_tokens=20), wired)
    rows = read_examples(shared_bench.store.view(demonstrations) / EXAMPLES_FILE)
    held = read_prompts(shared_bench.store.view(tiny_base["heldout"]) / PROMPTS_FILE)[0]
    leak = replace(rows[0], id="leak", messages=tuple(held.messages()))
    with shared_bench.store.writer("dataset") as writer:
        writer.add_bytes(EXAMPLES_FILE, examples_to_jsonl([*rows, leak]))
        leaked = writer.commit()
    with pytest.raises(DataError, match="1 examples ask a held-out question"):
        shared_bench.run(run_sft, small(), inputs(tiny_base, leaked))
