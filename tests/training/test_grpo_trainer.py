"""Prompts that are run once for their group: the same log-probabilities, entropies and gradients as TRL's own path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from posttrain.artifacts.records import Artifact
from posttrain.engines.model_folder import load_model, load_tokenizer
from posttrain.training.backends.trl_grpo import SharedPromptTrainer
from posttrain.training.lora import LoraSettings, adapter_config
from posttrain.training.stages.grpo import GrpoConfig, trainer_arguments
from tests.training.conftest import Bench

QUESTIONS = ["What is 3 plus 4?", "Mia has 4 pens. Mia buys 3 more. How many pens now?"]


def _length(completions: Any, **_: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def trainer_of(folder: Path, work: Path, lora: LoraSettings | None = None) -> SharedPromptTrainer:
    config = GrpoConfig(prompts_per_step=2, completions=4, steps=2, max_completion_tokens=12, lora=lora)
    tokenizer = load_tokenizer(folder)
    tokenizer.response_template = None
    model = load_model(folder)
    return SharedPromptTrainer(
        model=model,
        reward_funcs=[_length, _length],  # a function for each weight of the default rewards
        args=trainer_arguments(config, work, "cpu"),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS]),
        processing_class=tokenizer,
        peft_config=None if lora is None else adapter_config(lora, model),
    )


def batch_of(trainer: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Eight rows, two prompts of unlike length in mixed order, completions of unlike length."""
    tokenizer = trainer.processing_class
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False
        )
        for q in QUESTIONS
    ]
    width, longest = max(map(len, prompts)), 9
    rng = torch.Generator().manual_seed(0)
    ids, masks = [], []
    for row in range(8):
        prompt, length = prompts[row * 5 % 8 // 4], 3 + row % 7
        tokens = torch.randint(20, 200, (length,), generator=rng).tolist()
        left, right = width - len(prompt), longest - length
        ids.append([tokenizer.pad_token_id] * left + prompt + tokens + [tokenizer.pad_token_id] * right)
        masks.append([0] * left + [1] * (len(prompt) + length) + [0] * right)
    return torch.tensor(ids), torch.tensor(masks), longest


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, dropout=0.0)])
@pytest.mark.parametrize("chunk", [None, 3])
def test_scores_and_gradients_are_trls(
    shared_bench: Bench,
    tiny_base: dict[str, Artifact],
    tmp_path: Path,
    lora: LoraSettings | None,
    chunk: int | None,
) -> None:
    trainer = trainer_of(shared_bench.store.view(tiny_base["model"]), tmp_path, lora)
    ids, mask, keep = batch_of(trainer)
    assert trainer._shares()
    shown = mask[:, -keep:]
    weights = torch.randn(shown.shape, generator=torch.Generator().manual_seed(1)) * shown
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    if lora is not None:  # fresh adapters are zero: give them something to say
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.05)
    found = []
    for kind in (SharedPromptTrainer, GRPOTrainer):
        log_probs, entropy, _ = kind._get_per_token_logps_and_entropies(
            trainer, trainer.model, ids, mask, keep, batch_size=chunk, compute_entropy=True
        )
        found.append(
            (log_probs * shown, entropy * shown, torch.autograd.grad((log_probs * weights).sum(), trained))
        )
    (ours, our_entropy, our_gradients), (theirs, their_entropy, their_gradients) = found
    assert theirs.abs().max() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_entropy, their_entropy, rtol=1e-5, atol=1e-5)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert other.norm() > 0
        assert (mine - other).norm() <= 1e-4 * other.norm()


def test_a_group_is_completed_in_order(
    shared_bench: Bench, tiny_base: dict[str, Artifact], tmp_path: Path
) -> None:
    trainer = trainer_of(shared_bench.store.view(tiny_base["model"]), tmp_path)
    tokenizer = trainer.processing_class
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False
        )
        for q in QUESTIONS
    ]
    trainer.model.train()
    rows, log_probs = trainer._generate_single_turn([prompts[0]] * 4 + [prompts[1]] * 4, None, {}, 4)
    assert log_probs is None and len(rows) == 8
    assert all(0 < len(row) <= 12 for row in rows)
    assert all(row[-1] == tokenizer.eos_token_id or len(row) == 12 for row in rows)
    assert trainer.model.training


def test_what_cannot_share_goes_trls_own_way(
    shared_bench: Bench, tiny_base: dict[str, Artifact], tmp_path: Path
) -> None:
    trainer = trainer_of(shared_bench.store.view(tiny_base["model"]), tmp_path)
    trainer.use_transformers_continuous_batching = True
    assert not trainer._shares()
    ids, mask, keep = batch_of(trainer)
    ours = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, keep)[0]
    theirs = GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, keep)[0]
    assert ours.equal(theirs)
