"""Low-rank adapters (PEFT) for every training stage, and their way back into the weights.

Here: the settings, the adapters on a model, and a merge that is checked: the log-probabilities of some real tokens with
adapters and after the merge must agree. Between stages a model is always whole; the next stage gets fresh adapters.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from posttrain.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

MERGE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Mean change of a token's log-probability (nats) that rounding explains, by the type of the weights."""


class LoraSettings(BaseModel):
    """Low-rank adapters (PEFT) instead of full weights; merged into the model at the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    first_layer: int = Field(0, ge=0)
    """Layers before this one get no adapter, so that the backward pass ends there."""
    dtype: Literal["float32", "model"] = "float32"
    """Type of the adapters. ``model`` is that of the weights, and bfloat16 then runs without autocast: coarser
    updates for less work a step."""


def adapter_config(settings: LoraSettings, model: Any, task: str = "CAUSAL_LM") -> LoraConfig:
    """What PEFT is told; ``task`` is ``CAUSAL_LM`` or ``SEQ_CLS`` (whose score head is trained whole)."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules
        if isinstance(settings.target_modules, str)
        else list(settings.target_modules),
        exclude_modules=_layers_before(model, settings.first_layer),
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )


def cast_adapters(settings: LoraSettings | None, model: Any) -> None:
    """Give the adapters the type of the weights, where the settings say so, also when a checkpoint is loaded."""
    if settings is None or settings.dtype != "model":
        return
    # PEFT makes what it loads float32, and a resumed run would go on with other adapters than it was stopped with.
    model.load_adapter = functools.partial(model.load_adapter, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(model.dtype)


def merge_adapters(model: Any, rows: Sequence[Sequence[int]]) -> tuple[Any, float]:
    """The model with its adapters merged, and the mean change of the log-probability of the tokens of ``rows``.

    Raises ModelError where the change is more than rounding explains.
    """
    import torch

    model.eval()
    before = [_log_probabilities(model, row) for row in rows]
    merged = model.merge_and_unload()
    changes = torch.cat(
        [(_log_probabilities(merged, row) - old).abs() for row, old in zip(rows, before, strict=True)]
    )
    gap = changes.mean().item()
    allowed = MERGE_TOLERANCE[str(merged.dtype).removeprefix("torch.")]
    if not gap <= allowed:
        raise ModelError(
            f"merging the adapters changed log-probabilities by {gap:.3g} nats on average, more than {allowed:g}",
            hint="train in `dtype: float32`, or report this: the merged model is not the trained one",
        )
    return merged, gap


def _log_probabilities(model: Any, row: Sequence[int]) -> torch.Tensor:
    """Log-probability of each token after the first: float32 ``[tokens - 1]``."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([list(row)], device=model.device)
        scores = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        chosen: torch.Tensor = scores.gather(1, ids[0, 1:, None])[:, 0]
        return chosen.cpu()


def _layers_before(model: Any, first: int) -> list[str] | None:
    """Names of the linear layers in blocks numbered below ``first``; None where there are none."""
    names = [
        name
        for name, _ in model.named_modules()
        if (m := re.search(r"\.(\d+)\.", name)) and int(m[1]) < first
    ]
    return names or None
