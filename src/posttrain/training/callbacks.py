"""What a stage adds to a Hugging Face trainer: progress, health, clean stops and sealed checkpoints.

Here: one callback with plain values. Not here: the rules of health (``health``) or of checkpoints (``checkpoints``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from posttrain.artifacts.stage import StageContext
from posttrain.core.errors import HealthError
from posttrain.training.checkpoints import mark_complete
from posttrain.training.health import HealthConfig, judge


class StageCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Connects a trainer to its stage. One instance a run."""

    def __init__(self, context: StageContext, steps: int, health: HealthConfig | None = None) -> None:
        self._context = context
        self._steps = steps
        self._health = health
        """Limits of reinforcement learning; None where there is no reward to watch."""
        self._started = time.perf_counter()
        self._first_tokens: float | None = None
        self._warned: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clock starts when training does."""
        self._started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A stop request is honoured between steps: the last sealed checkpoint is where it resumes."""
        self._context.stop.check()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """One progress event a step, then the judgement of health."""
        if not logs or ("loss" if self._health is None else "reward") not in logs:
            return
        tokens = float(logs.get("num_tokens", 0.0))
        if self._first_tokens is None:
            self._first_tokens, self._started = tokens, time.perf_counter()
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._context.emit(
            "progress",
            step=state.global_step,
            total=self._steps,
            **_shown(logs),
            tokens_per_second=(tokens - self._first_tokens) / seconds,
        )
        if self._health is None:
            return
        rows = [row for row in state.log_history if "reward" in row]
        for finding in judge(self._health, rows):
            if finding.action == "stop":
                raise HealthError(f"step {state.global_step}: {finding.text}", hint=finding.hint)
            if finding.name not in self._warned:
                self._warned.add(finding.name)
                self._context.emit(
                    "warning", text=f"step {state.global_step}: {finding.text}", hint=finding.hint
                )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the folder that the trainer has just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            mark_complete(folder)


def _shown(logs: Mapping[str, Any]) -> dict[str, Any]:
    """What a person wants to see of a step."""
    if "reward" not in logs:
        return {"loss": logs["loss"]}
    return {
        "reward": logs["reward"],
        "accuracy": logs.get("rewards/accuracy/mean"),
        "completion_tokens": logs.get("completions/mean_length"),
    }
