"""Generation by transformers on this machine, CPU or GPU.

Here: batches of like length, drawn so that the same conversations, sampling and batch size give the same completions.
Not here: serving. *Covered*: repeatable on one machine with one thread count. *Not covered*: equal text across
machines or batch sizes; matrix products differ in their last bits.
"""

from __future__ import annotations

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
            for index, completion in zip(
                batch,
                self._generate_batch(
                    [prompts[i] for i in batch], sampling, sampling.seed * 1_000_003 + number
                ),
                strict=True,
            ):
                results[index].append(completion)
            if on_progress is not None:
                on_progress(start + len(batch), len(jobs))
        return results

    def complete_ids(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """One completion for each prompt, all in one batch that is drawn from ``seed``."""
        return self._generate_batch(prompts, sampling, seed)

    def encode(
        self, conversation: Conversation | Sequence[Mapping[str, Any]], tools: Any | None = None
    ) -> list[int]:
        """Token ids of a conversation with the header of the next assistant turn; ``tools`` in OpenAI's form."""
        ids: list[int] = self._tokenizer.apply_chat_template(
            list(conversation), tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return ids

    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[Completion]:
        import torch
        from transformers import GenerationConfig

        pad, width = self._tokenizer.pad_token_id, max(map(len, prompts))
        rows = [[pad] * (width - len(p)) + p for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        ends = self._end_tokens()
        greedy = sampling.temperature == 0
        options = (
            {}
            if greedy
            else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        )
        torch.manual_seed(seed)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(rows, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_new_tokens,
                    do_sample=not greedy,
                    pad_token_id=pad,
                    eos_token_id=sorted(ends),
                    **options,
                ),
            )
        return [self._finish(row, ends, sampling.prefix) for row in output[:, width:].tolist()]

    def _end_tokens(self) -> set[int]:
        ends = {self._tokenizer.eos_token_id}
        configured = self._model.generation_config.eos_token_id
        if configured is not None:
            ends.update(configured if isinstance(configured, list) else [configured])
        return ends

    def _finish(self, ids: list[int], ends: set[int], prefix: str) -> Completion:
        stop = next((index for index, token in enumerate(ids) if token in ends), None)
        kept = ids if stop is None else ids[: stop + 1]
        text = prefix + self._tokenizer.decode(kept, skip_special_tokens=True)
        return Completion(text=text, tokens=len(kept), finish="length" if stop is None else "stop")
