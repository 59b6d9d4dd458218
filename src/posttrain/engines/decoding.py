"""Decoding with a loaded transformers model: one pass over each prompt for all of its completions, and no work on rows
that have ended.

``model.generate`` runs a prompt once for each of its completions, carries ended rows to the last step, and copies the
whole cache at every step. Here the prompt's cache is repeated, ended rows leave the batch, and the cache has its room
from the start. What it draws is distributed as ``generate``'s, by other draws. *Covered*: decoder-only models whose
layers all keep every key and value (:func:`is_plain`). *Not covered*: sliding windows, state-space layers, encoders;
their caller uses ``generate``. This module loads torch; it is imported where decoding runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicCache, DynamicLayer

from posttrain.engines.records import Sampling

Pick: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""From the last position's logits, float ``[rows, vocabulary]``, to the next token of each row, int64 ``[rows]``."""

_ENDED_SHARE = 0.2
"""Rows leave the batch together, once this share of it has ended: each departure copies the cache."""


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed here
    """One layer's keys and values, ``[rows, heads, tokens, size]``, with room for the tokens that are to come."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._filled = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._stores = [self._reserve(states) for states in (key_states, value_states)]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[:, :, self._filled : self._filled + new] = states
        self._filled += new
        self._show()
        return self.keys, self.values

    def _reserve(self, states: torch.Tensor) -> torch.Tensor:
        rows, heads, tokens, size = states.shape
        return states.new_empty(rows, heads, tokens + self._room, size)

    def _show(self) -> None:
        self.keys, self.values = (store[:, :, : self._filled] for store in self._stores)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._stores = [store[indices] for store in self._stores]
        self._show()


def is_plain(model: Any) -> bool:
    """Whether every layer of ``model`` keeps all keys and values, so that rows can be repeated and dropped."""
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def picker(sampling: Sampling, generator: torch.Generator | None = None) -> Pick:
    """How ``sampling`` takes the next token; random draws come from ``generator``, else from torch's global state."""
    if sampling.temperature == 0:
        return lambda logits: logits.argmax(-1)
    warpers = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))

    def draw(logits: torch.Tensor) -> torch.Tensor:
        # One uniform number a row against the summed probabilities: a vocabulary of draws a row costs more.
        sums = warpers(None, logits.float()).softmax(-1).double().cumsum(-1)
        draws = torch.rand(len(sums), 1, dtype=torch.double, device=sums.device, generator=generator)
        marks = draws * sums[:, -1:]
        return torch.searchsorted(sums, marks, right=True).clamp_(max=sums.shape[1] - 1).squeeze(1)

    return draw


@torch.no_grad()
def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    copies: Sequence[int],
    max_new_tokens: int,
    ends: frozenset[int],
    pick: Pick,
) -> list[list[int]]:
    """``copies[i]`` completions of ``prompts[i]``, in order: token ids, the end token included where one came.

    The model is used as it is: put it into evaluation mode, and :func:`is_plain` must hold.
    """
    device = model.device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer(max_new_tokens) for _ in cache.layers]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = _last_logits(model, ids, mask, positions, cache=cache)
    rows = torch.arange(len(prompts), device=device).repeat_interleave(torch.tensor(copies, device=device))
    if len(rows) != len(prompts) or any(count != 1 for count in copies):
        cache.batch_select_indices(rows)
        logits, mask, positions = logits[rows], mask[rows], positions[rows]
    position = positions[:, -1:]
    drawn = torch.full((len(rows), max_new_tokens), -1, device=device)
    running = torch.arange(len(rows), device=device)
    stops = torch.tensor(sorted(ends), device=device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        tokens = pick(logits)
        drawn[running[~ended], step] = tokens[~ended]
        ended |= torch.isin(tokens, stops)
        if step + 1 == max_new_tokens or bool(ended.all()):
            break
        if int(ended.sum()) >= _ENDED_SHARE * len(ended):
            kept = (~ended).nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            running, tokens, mask, position = running[kept], tokens[kept], mask[kept], position[kept]
            ended = ended[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        logits = _last_logits(model, tokens[:, None], mask, position, cache=cache)
    return [[token for token in row if token >= 0] for row in drawn.tolist()]


@torch.no_grad()
def steps(
    model: Any, prompt: Sequence[int], *, max_new_tokens: int, ends: frozenset[int], pick: Pick
) -> Iterator[int]:
    """The tokens of one completion of ``prompt`` as they come, the end token included where one comes.

    One forward pass before each token, so that a caller may take turns among several and set up the model (its
    adapter) before each. Every decoder works; only plain ones keep the room for all tokens from the start.
    """
    cache = DynamicCache(config=model.config)
    if is_plain(model):
        cache.layers = [_RoomyLayer(max_new_tokens) for _ in cache.layers]
    ids = torch.tensor([list(prompt)], device=model.device)
    mask = torch.ones_like(ids)
    position = torch.arange(len(prompt), device=model.device)[None]
    for _ in range(max_new_tokens):
        token = pick(_last_logits(model, ids, mask, position, cache=cache))
        yield (found := int(token))
        if found in ends:
            return
        ids, mask = token[:, None], torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        position = position[:, -1:] + 1


def _last_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *, cache: DynamicCache
) -> torch.Tensor:
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits
