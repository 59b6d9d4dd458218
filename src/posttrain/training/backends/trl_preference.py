"""TRL's preference trainers on rows that are tokens already.

Here: ``DPOTrainer`` and ``KTOTrainer`` without their own tokenisation. Theirs renders the prompt again with each reply,
learns what a template writes after the end of turn, and moves the border between prompt and reply where the two
renderings part (a template that opens the think block); ours (``rendering``) is what generation sees. This module loads
torch; stages import it where they run.
"""

from __future__ import annotations

from typing import Any

from trl import DPOTrainer, KTOTrainer


class _OnTokens:
    def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
        """The rows as they are. Under another name in another TRL, its own tokenisation fails: it finds no text."""
        return dataset


class PairTrainer(_OnTokens, DPOTrainer):  # type: ignore[misc]  # trl is not typed
    """DPO on rows of ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""


class LabelledTrainer(_OnTokens, KTOTrainer):  # type: ignore[misc]  # trl is not typed
    """KTO on rows of ``prompt_ids``, ``completion_ids``, ``label`` and, for a loss with a KL term,
    ``KL_completion_ids``."""
