"""A tiny model of the recipe's own making, for every engine to load: its form is learned, its sums are not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch loads: tests share few cores, and spinning threads starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from posttrain.artifacts.stage import StageContext
from posttrain.artifacts.store import ArtifactStore
from posttrain.core.quiet import quiet_libraries

quiet_libraries()


@pytest.fixture(scope="session")
def make_context(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, str]], StageContext]:
    """A context for one stage, all in one store: ``make_context(kind, input digests)``."""
    root = tmp_path_factory.mktemp("engines")
    store = ArtifactStore(root / "home")

    def make(kind: str, digests: dict[str, str]) -> StageContext:
        workdir = root / "work" / kind
        workdir.mkdir(parents=True, exist_ok=True)
        key = "sha256:" + "0" * 64
        return StageContext(store, kind, kind, key=key, workdir=workdir, input_digests=digests)

    return make


@pytest.fixture(scope="session")
def tiny_artifact(make_context: Callable[[str, dict[str, str]], StageContext]) -> Any:
    """The model artifact of ``pretrain_tiny`` after 100 small steps: other questions get other answers."""
    import torch

    from posttrain.training.stages.pretrain_tiny import PretrainTinyConfig, run_pretrain_tiny

    torch.set_num_threads(1)
    config = PretrainTinyConfig.model_validate(
        {
            "problems": {"max_steps": 1, "max_value": 10},
            "text": {
                "careful_share": 1.0,
                "careless_share": 0.0,
                "form_slip_share": 0.2,
                "open_share": 0.0,
                "judged_share": 0.0,
            },
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "layers": 2,
            "heads": 2,
            "steps": 100,
            "batch_tokens": 1024,
            "learning_rate": 8e-3,
        }
    )
    return run_pretrain_tiny(config, {}, make_context("pretrain_tiny", {})).outputs["model"]


@pytest.fixture(scope="session")
def folder(tiny_artifact: Any, make_context: Callable[[str, dict[str, str]], StageContext]) -> Path:
    """The model as a Hugging Face folder (read-only)."""
    return make_context("read", {}).store.view(tiny_artifact)


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Any:
    from posttrain.engines.model_folder import load_tokenizer

    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    from posttrain.engines.model_folder import load_model

    return load_model(folder)


@pytest.fixture(scope="session")
def gguf_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from posttrain.engines.gguf import export_gguf

    return export_gguf(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def questions() -> list[list[dict[str, str]]]:
    """Twenty conversations, English and Chinese."""
    from posttrain.data.word_problems import problems

    drawn: Iterator[Any] = problems(3, "heldout", max_steps=1, max_value=10, heldout_share=0.2)
    return [
        [{"role": "user", "content": problem.question}] for _, problem in zip(range(20), drawn, strict=False)
    ]


ADD_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds 加 <two> numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "first"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def conversations() -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Conversations with every kind of turn, by name: messages and tools."""
    system = {"role": "system", "content": "Be short. 简短。"}
    user = {"role": "user", "content": "2 加 3?"}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call, call]}
    result = {"role": "tool", "name": "add", "content": "5"}
    thought = {"role": "assistant", "content": "<answer> 5 </answer>", "reasoning_content": "2 + 3"}
    return {
        "user": ([user], None),
        "system": ([system, user], None),
        "written tags": ([user, {"role": "assistant", "content": "<think>2</think>5"}, user], None),
        "reasoning": ([system, user, thought, user], None),
        "late system": ([user, system, user], None),
        "tools": ([user], [ADD_TOOL]),
        "tools and system": ([system, user], [ADD_TOOL]),
        "tool results": ([system, user, calling, result, result], [ADD_TOOL]),
        "after tools": ([user, calling, result, thought, user], [ADD_TOOL]),
    }


def learn_by_heart(model: Any, tokenizer: Any, lesson: list[dict[str, Any]], tools: list[Any]) -> Any:
    """``model``, trained in place until it writes the assistant turns of ``lesson``."""
    import torch

    rendered = tokenizer.apply_chat_template(
        lesson, tools=tools, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    ids = rendered["input_ids"]
    labels = ids.masked_fill(torch.as_tensor(rendered["assistant_masks"]).reshape(ids.shape) == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
