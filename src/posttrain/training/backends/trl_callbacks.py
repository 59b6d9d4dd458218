"""What a stage adds to a Hugging Face trainer: progress, health, clean stops, sealed checkpoints, held-out looks.

Here: callbacks with plain values. Not here: the rules of health (``health``), of the guard (``guard``) or of
checkpoints (``checkpoints``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from posttrain.artifacts.stage import StageContext
from posttrain.core.errors import HealthError
from posttrain.training.checkpoints import mark_complete
from posttrain.training.guard import GuardConfig, over_optimised
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


GUARD_ACCURACY = "guard/heldout_accuracy"


class GuardCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Measures held-out accuracy every few steps once the preference signal takes part, and stops over-optimisation.

    What it sees is a row of its own in the trainer's log, which a checkpoint keeps, so a resumed run judges the same.
    """

    def __init__(
        self,
        guard: GuardConfig,
        context: StageContext,
        look: Callable[[Any], float],
        *,
        first_step: int,
        weights: Mapping[str, float],
    ) -> None:
        self._guard = guard
        self._context = context
        self._look = look
        self._first_step = first_step
        """Steps before the preference signal."""
        self._weights = weights
        """Name of each preference reward to its weight."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look before the first step with the signal, and then every few steps."""
        since = state.global_step - self._first_step
        if since < 0 or since % self._guard.every:
            return
        if any(row["step"] == state.global_step and GUARD_ACCURACY in row for row in state.log_history):
            return
        state.log_history.append(
            {"step": state.global_step, GUARD_ACCURACY: _without_trace(self._look, model)}
        )
        seen = [row[GUARD_ACCURACY] for row in state.log_history if GUARD_ACCURACY in row]
        means = [
            sum(weight * row[f"rewards/{name}/mean"] for name, weight in self._weights.items())
            for row in state.log_history
            if all(_is_number(row.get(f"rewards/{name}/mean")) for name in self._weights)
        ]
        self._context.emit("note", text=f"step {state.global_step}: held-out accuracy {seen[-1]:.1%}")
        if text := over_optimised(self._guard, means, seen):
            raise HealthError(
                f"step {state.global_step}: {text}",
                hint="lower `preference.helpful_weight` or `learning_rate`, or set `beta` above 0",
            )


def _without_trace(look: Callable[[Any], float], model: Any) -> float:
    """What ``look`` sees; the random state and the mode of the model are as before."""
    import torch

    states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    training = model.training
    model.eval()
    try:
        return look(model)
    finally:
        model.train(training)
        torch.set_rng_state(states[0])
        if states[1]:
            torch.cuda.set_rng_state_all(states[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
