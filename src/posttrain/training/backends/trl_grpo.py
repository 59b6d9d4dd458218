"""TRL's GRPO trainer with the work on a prompt done once for its whole group, in sampling and in the loss.

TRL 1.16 runs every prompt once for each of its completions, twice a step: to sample them and to score their tokens. The
completions of a group differ after the prompt only, so here the prompt's keys and values are computed once, with their
gradient, and repeated. Losses and gradients are TRL's up to rounding (tested); the draws are others, equally
distributed. *Covered*: text models with a plain cache in one process. Everything else (images, tools, vLLM, several
processes, routers of experts) goes TRL's own way. This module loads torch; the stage imports it where it runs.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from trl import GRPOTrainer

from posttrain.engines.decoding import complete, is_plain, picker
from posttrain.engines.records import Sampling


class SharedPromptTrainer(GRPOTrainer):  # type: ignore[misc]  # trl is not typed
    """``GRPOTrainer``, faster where groups share their prompts. Overrides two private methods of TRL 1.16."""

    def _shares(self) -> bool:
        return bool(
            self.accelerator.num_processes == 1
            and not self.use_vllm
            and not self.use_transformers_continuous_batching
            and not self.tools
            and is_plain(self.accelerator.unwrap_model(self.model))
        )

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, **more: Any
    ) -> tuple[list[list[int]], None]:
        if images or multimodal_fields or more or not self._shares():
            done: tuple[list[list[int]], None] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, **more
            )
            return done
        groups: list[list[int]] = []
        copies: list[int] = []
        for ids in prompt_ids:
            if groups and groups[-1] == ids:
                copies[-1] += 1
            else:
                groups.append(ids)
                copies.append(1)
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        with self.accelerator.autocast():
            completions = complete(
                model,
                groups,
                copies=copies,
                max_new_tokens=self.max_completion_length,
                ends=frozenset(self.eos_token_ids),
                pick=picker(
                    Sampling(
                        self.max_completion_length,
                        self.temperature,
                        top_p=self.top_p,
                        top_k=self.top_k or 0,
                    )
                ),
            )
        model.train(training)
        return completions, None

    def _get_per_token_logps_and_entropies(  # noqa: PLR0917 - TRL's signature
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        width = input_ids.shape[1] - logits_to_keep
        alone = width < 2 or compute_aux_loss or any(value is not None for value in fields.values())
        if alone or not self._shares():
            scored: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] = (
                super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep,
                    batch_size=batch_size, compute_entropy=compute_entropy, compute_aux_loss=compute_aux_loss, **fields,
                )
            )  # fmt: skip
            return scored
        size = batch_size or len(input_ids)
        parts = [
            self._score_completions(model, ids, mask, width)
            for ids, mask in zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True)
        ]
        entropy = torch.cat([part.entropy for part in parts]) if compute_entropy else None
        return torch.cat([part.log_probs for part in parts]), entropy, None

    def _score_completions(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, width: int) -> Any:
        """TRL's fused output for the completions, ``[rows, tokens - width]``; prompts take the first ``width``."""
        prompts, group_of_row = torch.unique(
            torch.cat([ids[:, :width], mask[:, :width]], dim=1), dim=0, return_inverse=True
        )
        # The last token of the prompt is scored with the completion: its logits are of the completion's first token.
        heads, shown = prompts[:, : width - 1], prompts[:, width : 2 * width - 1]
        cache = DynamicCache(config=self.accelerator.unwrap_model(model).config)
        with self.accelerator.autocast():
            model(
                input_ids=heads, attention_mask=shown, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache.batch_select_indices(group_of_row)
            tails = ids[:, width - 1 :]
            labels = tails.masked_fill(mask[:, width - 1 :] == 0, -100)
            labels[:, 0] = -100
            return model(
                input_ids=tails,
                attention_mask=mask,
                past_key_values=cache,
                labels=labels,
                fused_lm_head=True,
            )
