"""Scoring replies with a trained reward model.

Here: loading a reward-model folder and its standardised scores. Which part of a reply is scored travels with the model:
helpfulness looks at the final part only, so that nothing is won by how a model thinks; harmlessness looks at all of it.
Not here: training one (``training.reward_model``). *Covered*: the same scores for the same batch; *not covered*: equal
last digits across batch sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain.core.errors import ModelError
from posttrain.engines.model_folder import DType, load_tokenizer
from posttrain.engines.records import Conversation
from posttrain.rewards.parsing import final_part

ScoredPart: TypeAlias = Literal["final", "whole"]
"""``final``: what follows the think block. ``whole``: everything."""
REWARD_MODEL_FILE = "reward_model.json"
NOTHING_SAID = -3.0
"""The score of a reply whose scored part is empty, for example one that never stopped thinking."""


@dataclass(frozen=True, slots=True)
class RewardModelRecord:
    """What a reward model is, beside its weights."""

    scored_part: ScoredPart
    aspects: tuple[str, ...]
    mean: float
    """Mean raw score of the calibration replies."""
    std: float
    """Their standard deviation."""
    calibration: str
    """Digest of the held-out preferences that the two were taken from."""
    schema: int = 1

    def to_bytes(self) -> bytes:
        """JSON, keys sorted."""
        return (json.dumps(asdict(self), sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> RewardModelRecord:
        """Raises ModelError for a folder that holds no reward model."""
        try:
            data = json.loads((folder / REWARD_MODEL_FILE).read_bytes())
            return cls(**{**data, "aspects": tuple(data["aspects"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{folder.name} is not a reward model: {REWARD_MODEL_FILE} is missing or unreadable",
                hint="give the output `model` of a `reward_model` stage",
            ) from error


class RewardScorer:
    """A loaded reward model."""

    def __init__(
        self, model: Any, tokenizer: Any, record: RewardModelRecord, *, batch_size: int = 128
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.record = record
        self._batch_size = batch_size

    @classmethod
    def load(
        cls, folder: Path, *, dtype: DType = "float32", device: str = "cpu", batch_size: int = 128
    ) -> RewardScorer:
        """The reward model of a folder. Raises ModelError."""
        import torch
        from transformers import AutoModelForSequenceClassification

        record = RewardModelRecord.read(folder)
        tokenizer = load_tokenizer(folder)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"the reward model cannot be loaded: {error}") from error
        return cls(model.to(device).eval(), tokenizer, record, batch_size=batch_size)

    def score(
        self, conversations: Sequence[Conversation], replies: Sequence[str], *, think_prefilled: bool = False
    ) -> list[float]:
        """Standardised scores: 0 is the mean of the calibration replies, 1 a standard deviation above it.

        ``think_prefilled`` says that the replies begin inside a think block that their prompt opened.
        """
        begin = "<think>" if think_prefilled else ""
        parts = [self.scored_text(begin + reply) for reply in replies]
        said = [place for place, part in enumerate(parts) if part]
        rows = [scored_row(self._tokenizer, conversations[place], parts[place]) for place in said]
        scores = [NOTHING_SAID] * len(parts)
        for place, raw in zip(
            said, raw_scores(self._model, self._tokenizer, rows, self._batch_size), strict=True
        ):
            scores[place] = (raw - self.record.mean) / self.record.std
        return scores

    def fits(self, conversation: Conversation, reply: str) -> bool:
        """Whether the model has positions enough for a reply: beyond them it has learned nothing."""
        positions: int | None = getattr(self._model.config, "max_position_embeddings", None)
        if positions is None:
            return True
        return len(scored_row(self._tokenizer, conversation, self.scored_text(reply))) <= positions

    def scored_text(self, reply: str) -> str:
        """The part of a reply that the score is about."""
        return final_part(reply) if self.record.scored_part == "final" else reply.strip()


def scored_row(tokenizer: Any, messages: Sequence[Mapping[str, str]], text: str) -> list[int]:
    """Token ids of a conversation with the scored text as the assistant's turn, up to its end token."""
    conversation = [*messages, {"role": "assistant", "content": text}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    end = whole.rfind(tokenizer.eos_token)
    if end >= 0:
        whole = whole[: end + len(tokenizer.eos_token)]
    ids: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return ids


def raw_scores(
    model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], batch_size: int = 128
) -> list[float]:
    """The model's own scores of token rows, in order; like lengths go together."""
    import torch

    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    scores = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(rows[index]) for index in batch)
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for place, index in enumerate(batch):
            ids[place, : len(rows[index])] = torch.tensor(rows[index])
            mask[place, : len(rows[index])] = 1
        with torch.inference_mode():
            found = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 0]
        for index, value in zip(batch, found.float().tolist(), strict=True):
            scores[index] = value
    return scores
