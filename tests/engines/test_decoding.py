"""Our loop over tokens beside transformers' own ``generate``, on a tiny model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

from posttrain.engines.decoding import complete, is_plain, picker, steps
from posttrain.engines.model_folder import load_model
from posttrain.engines.records import Sampling
from posttrain.engines.transformers_engine import TransformersEngine

QUESTIONS = [
    "Mia has 4 pens. Mia buys 3 more. How many pens now?",
    "小明有7个书。小明卖了2个。现在有几个书？",
    "Hello?",
]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder).eval()


@pytest.fixture(scope="module")
def prompts(model: Any, tokenizer: Any) -> list[list[int]]:
    engine = TransformersEngine(model, tokenizer)
    return [engine.encode([{"role": "user", "content": question}]) for question in QUESTIONS]


def generated(model: Any, prompt: list[int], ends: set[int], new: int) -> list[int]:
    config = GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=sorted(ends), pad_token_id=sorted(ends)[0]
    )
    with torch.inference_mode():
        ids = model.generate(input_ids=torch.tensor([prompt]), generation_config=config)
    row: list[int] = ids[0, len(prompt) :].tolist()
    return row


def test_greedy_rows_are_those_of_generate_one_by_one(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    ends = {tokenizer.eos_token_id}
    wanted = [generated(model, prompt, ends, 40) for prompt in prompts]
    assert len({len(row) for row in wanted}) > 1  # they end at different steps, so rows have left the batch
    rows = complete(
        model,
        prompts,
        copies=[2, 1, 3],
        max_new_tokens=40,
        ends=frozenset(ends),
        pick=picker(Sampling(temperature=0)),
    )
    assert rows == [wanted[0]] * 2 + [wanted[1]] + [wanted[2]] * 3


def test_what_is_cut_has_no_end(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    ends = frozenset({tokenizer.eos_token_id})
    pick = picker(Sampling(temperature=0))
    rows = complete(model, prompts, copies=[1, 1, 1], max_new_tokens=3, ends=ends, pick=pick)
    assert [len(row) for row in rows] == [3, 3, 3]
    assert not ends & {token for row in rows for token in row}


def test_draws_follow_the_softmax(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    torch.manual_seed(5)
    count = 4000
    sampling = Sampling(max_new_tokens=1, temperature=1.5)
    rows = complete(
        model, prompts[:1], copies=[count], max_new_tokens=1, ends=frozenset({tokenizer.eos_token_id}),
        pick=picker(sampling),
    )  # fmt: skip
    with torch.inference_mode():
        chances = (model(input_ids=torch.tensor(prompts[:1])).logits[0, -1] / 1.5).softmax(-1)
    seen = Counter(row[0] for row in rows)
    likely = chances.topk(5)
    for chance, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        spread = (chance * (1 - chance) / count) ** 0.5
        assert abs(seen[token] / count - chance) < 4.5 * spread + 1e-9


def test_limits_of_the_draw() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(500, 1)
    torch.manual_seed(1)
    assert set(picker(Sampling(top_k=1))(logits).tolist()) == {3}
    assert set(picker(Sampling(top_k=2))(logits).tolist()) == {2, 3}
    assert set(picker(Sampling(top_p=0.6))(logits).tolist()) == {3}
    assert set(picker(Sampling(temperature=5.0))(logits).tolist()) == {0, 1, 2, 3}
    never = torch.tensor([[float("-inf"), 0.0, float("-inf")]]).repeat(500, 1)
    assert set(picker(Sampling())(never).tolist()) == {1}


def test_the_same_seed_gives_the_same_rows_and_samples_differ(
    model: Any, tokenizer: Any, prompts: list[list[int]]
) -> None:
    engine = TransformersEngine(model, tokenizer)
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    first, again = (engine.generate(asked, Sampling(24, 1.0, samples=6, seed=3)) for _ in range(2))
    assert first == again
    assert len({completion.text for completion in first[0]}) > 1
    assert first != engine.generate(asked, Sampling(24, 1.0, samples=6, seed=4))


def test_a_cache_with_a_window_goes_to_generate(tokenizer: Any) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    windowed = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            num_key_value_heads=2,
            sliding_window=8,
            max_position_embeddings=256,
            **small,
        )
    ).eval()
    assert not is_plain(windowed)
    engine = TransformersEngine(windowed, tokenizer)
    ((completion,),) = engine.generate([[{"role": "user", "content": QUESTIONS[0]}]], Sampling(12, 0))
    ends = {
        tokenizer.eos_token_id,
        *([windowed.generation_config.eos_token_id] if windowed.generation_config.eos_token_id else []),
    }
    row = generated(windowed, engine.encode([{"role": "user", "content": QUESTIONS[0]}]), ends, 12)
    assert completion.text == tokenizer.decode(row, skip_special_tokens=True)


def test_tokens_one_by_one_are_those_of_a_whole_completion(model: Any, prompts: list[list[int]]) -> None:
    ends = frozenset({model.generation_config.eos_token_id})
    for prompt in prompts:
        whole = complete(
            model, [prompt], copies=[1], max_new_tokens=20, ends=ends, pick=picker(Sampling(temperature=0))
        )[0]
        assert (
            list(steps(model, prompt, max_new_tokens=20, ends=ends, pick=picker(Sampling(temperature=0))))
            == whole
        )


def test_completions_that_take_turns_draw_what_each_draws_alone(model: Any, prompts: list[list[int]]) -> None:
    def begin(seed: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed)
        pick = picker(Sampling(temperature=1.5), generator)
        return steps(model, prompts[0], max_new_tokens=12, ends=frozenset(), pick=pick)

    alone = [list(begin(seed)) for seed in range(3)]
    assert len({tuple(tokens) for tokens in alone}) == 3
    turns = [begin(seed) for seed in range(3)]
    assert [list(found) for found in zip(*zip(*turns, strict=True), strict=True)] == alone


def test_a_model_that_forgets_old_tokens_is_decoded_one_by_one_too() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        initializer_range=0.3,
    )
    sliding = MistralForCausalLM(config).eval()
    assert not is_plain(sliding)
    prompt = list(range(5, 15))
    wanted = generated(sliding, prompt, {0}, 12)
    assert (
        list(
            steps(
                sliding, prompt, max_new_tokens=12, ends=frozenset({0}), pick=picker(Sampling(temperature=0))
            )
        )
        == wanted
    )
