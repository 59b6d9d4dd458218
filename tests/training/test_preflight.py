"""What is checked before training: gold answers, the chat template, lengths, and the pass-rate histogram."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.artifacts.records import Artifact
from posttrain.core.errors import ModelError, PreflightError
from posttrain.data.prompts import PromptRow
from posttrain.engines.model_folder import load_model, load_tokenizer
from posttrain.rewards import R1_ZERO_REWARDS, VerifierPool
from posttrain.training import preflight
from tests.training.conftest import Bench

ROW = PromptRow("a", "Alice has 3 apples and buys 2 more. How many now?", "5 apples")


@pytest.fixture
def tokenizer(shared_bench: Bench, tiny_base: dict[str, Artifact]) -> Any:
    return load_tokenizer(shared_bench.store.view(tiny_base["model"]))


def test_gold_answers_score_full_marks(tokenizer: Any) -> None:
    with VerifierPool(R1_ZERO_REWARDS) as pool:
        preflight.check_gold_answers([ROW, PromptRow("b", "x?", "3/4")], pool, tokenizer)


def test_a_gold_answer_that_cannot_score_is_refused(tokenizer: Any) -> None:
    with VerifierPool(R1_ZERO_REWARDS) as pool, pytest.raises(PreflightError, match="1 of 2 prompts"):
        preflight.check_gold_answers([ROW, PromptRow("b", "Which?", "the blue one")], pool, tokenizer)


def test_the_tiny_template_passes(tokenizer: Any) -> None:
    preflight.check_template(tokenizer, ROW)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ 'hello' }}", "drops the user's message"),
        (
            "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
            "does not close the assistant's turn",
        ),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            "changes the prompt once an answer follows",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
            "drops the assistant's answer",
        ),
    ],
)
def test_templates_that_would_spoil_training_are_refused(tokenizer: Any, template: str, what: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(PreflightError, match=what):
        preflight.check_template(tokenizer, ROW)


def test_a_prompt_that_does_not_fit_is_refused(
    shared_bench: Bench, tiny_base: dict[str, Artifact], tokenizer: Any
) -> None:
    model = load_model(shared_bench.store.view(tiny_base["model"]))
    preflight.check_lengths(model, tokenizer, [ROW], 64)
    with pytest.raises(PreflightError, match="exceed the model's 512 positions"):
        preflight.check_lengths(model, tokenizer, [ROW], 500)


def test_histogram_counts_each_prompt_once() -> None:
    histogram = preflight.pass_histogram([0.0, 0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
    assert histogram == {"0": 2, "0-25%": 1, "25-50%": 1, "50-75%": 1, "75-100%": 1, "1": 1}


@pytest.mark.parametrize(
    ("missing", "what"), [("eos_token", "no end token"), ("pad_token", "no padding token")]
)
def test_a_tokenizer_without_end_or_padding_is_refused(
    shared_bench: Bench, tiny_base: dict[str, Artifact], tmp_path: Any, missing: str, what: str
) -> None:
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(shared_bench.store.view(tiny_base["model"]), folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config[missing]
    (folder / "tokenizer_config.json").chmod(0o644)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=what) as caught:
        load_tokenizer(folder)
    assert missing in str(caught.value.hint)


def test_pickled_weights_are_refused(
    shared_bench: Bench, tiny_base: dict[str, Artifact], tmp_path: Any
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(shared_bench.store.view(tiny_base["model"]), folder, copy_function=shutil.copyfile)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"refused to read pytorch_model\.bin"):
        load_model(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model(tmp_path)
