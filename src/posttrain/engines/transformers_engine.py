"""Generation by transformers on this machine, CPU or GPU.

Here: batches of like length, drawn so that the same conversations, sampling and batch size give the same completions.
Not here: serving, the loop over tokens (``decoding``; transformers' own for models whose cache is not plain).
*Covered*: repeatable on one machine with one thread count. *Not covered*: equal text across machines or batch sizes;
matrix products differ in their last bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.engines.records import Completion, Conversation, Sampling


class TransformersEngine:
    """Completes conversations with a loaded model."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 256) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        """Sequences decoded at once."""
        self._ends = end_tokens(model, tokenizer)

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`~posttrain.engines.records.Engine`."""

        begun = (
            self._tokenizer(sampling.prefix, add_special_tokens=False)["input_ids"] if sampling.prefix else []
        )
        prompts = [self.encode(conversation) + begun for conversation in conversations]
        jobs = [index for index in range(len(prompts)) for _ in range(sampling.samples)]
        # Like lengths together: less padding. The order is a function of the prompts, so repeatable.
        jobs.sort(key=lambda index: (len(prompts[index]), index))
        results: list[list[Completion]] = [[] for _ in prompts]
        for number, start in enumerate(range(0, len(jobs), self._batch_size)):
            batch = jobs[start : start + self._batch_size]
            drawn = self._complete(prompts, batch, sampling, seed=sampling.seed * 1_000_003 + number)
            for index, completion in zip(batch, drawn, strict=True):
                results[index].append(completion)
            if on_progress is not None:
                on_progress(start + len(batch), len(jobs))
        return results

    def complete_ids(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """One completion for each prompt, all in one batch that is drawn from ``seed``."""
        return self._complete(prompts, list(range(len(prompts))), sampling, seed=seed)

    def encode(
        self, conversation: Conversation | Sequence[Mapping[str, Any]], tools: Any | None = None
    ) -> list[int]:
        """Token ids of a conversation with the header of the next assistant turn; ``tools`` in OpenAI's form."""
        ids: list[int] = self._tokenizer.apply_chat_template(
            list(conversation), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return ids

    def _complete(
        self, prompts: list[list[int]], batch: list[int], sampling: Sampling, *, seed: int
    ) -> list[Completion]:
        """A completion for each place in ``batch``: numbers of prompts, equal ones side by side."""
        import torch

        torch.manual_seed(seed)
        return [self._finish(ids, sampling.prefix) for ids in self._decode(prompts, batch, sampling)]

    def _decode(self, prompts: list[list[int]], batch: list[int], sampling: Sampling) -> list[list[int]]:
        from posttrain.engines.decoding import complete, is_plain, picker

        if not is_plain(self._model):
            return self._generate([prompts[index] for index in batch], sampling)
        copies = Counter(batch)
        return complete(
            self._model,
            [prompts[index] for index in copies],
            copies=list(copies.values()),
            max_new_tokens=sampling.max_new_tokens,
            ends=frozenset(self._ends),
            pick=picker(sampling),
        )

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        pad, width = self._tokenizer.pad_token_id, max(map(len, prompts))
        rows = [[pad] * (width - len(p)) + p for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        greedy = sampling.temperature == 0
        options = (
            {}
            if greedy
            else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        )
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(rows, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_new_tokens,
                    do_sample=not greedy,
                    pad_token_id=pad,
                    eos_token_id=sorted(self._ends),
                    **options,
                ),
            )
        ids: list[list[int]] = output[:, width:].tolist()
        return ids

    def _finish(self, ids: list[int], prefix: str) -> Completion:
        stop = next((index for index, token in enumerate(ids) if token in self._ends), None)
        kept = ids if stop is None else ids[: stop + 1]
        text = prefix + self._tokenizer.decode(kept, skip_special_tokens=True)
        return Completion(text=text, tokens=len(kept), finish="length" if stop is None else "stop")


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a turn: the tokenizer's, and those of generation_config."""
    ends = {tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id
    if configured is not None:
        ends.update(configured if isinstance(configured, list) else [configured])
    return ends
