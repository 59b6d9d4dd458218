"""A reference that moves: every so many steps the KL term's reference becomes the policy, as in R1-Zero (400 steps).

Here: the refresh, the reference beside the weights in every checkpoint, and its way back on resume, so that a run of
many segments is one run, and ends with the same digests wherever it was stopped. Optimizer and schedule go on across a
refresh: only what the policy is held to changes. With adapters the reference is a second, frozen adapter under the name
that TRL looks for. Instead of TRL's ``sync_ref_model``, whose reference is in no checkpoint and which refuses adapters.
*Not covered*: weights that are split over several processes. This module loads transformers; stages import it where
they run.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import TrainerCallback

if TYPE_CHECKING:
    import torch
    from trl import GRPOTrainer

REFERENCE_FILE = "reference.safetensors"
_ADAPTER = "ref"
"""The adapter that TRL takes as the reference where there is one."""


def move_reference(trainer: GRPOTrainer, every: int) -> None:
    """Let the policy of ``trainer`` become its reference every ``every`` steps; call before training."""
    # First among the callbacks: the file must stand in the checkpoint before another one seals the folder.
    trainer.callback_handler.callbacks.insert(0, _MovingReference(_pairs(trainer), every))


class _Pair(NamedTuple):
    """A parameter of the reference, and that of the policy which it becomes."""

    reference: torch.nn.Parameter
    policy: torch.nn.Parameter


class _MovingReference(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Refreshes, saves and restores; in the first segment the reference is the starting model, which needs no file."""

    def __init__(self, pairs: dict[str, _Pair], every: int) -> None:
        self._pairs = pairs
        self._every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the reference of the running segment from the checkpoint that training goes on from."""
        if state.global_step < self._every:
            return
        from safetensors.torch import load_file

        kept = load_file(_checkpoint(args, state) / REFERENCE_FILE)
        for name, pair in self._pairs.items():
            pair.reference.data.copy_(kept[name])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new segment begins: its reference is the policy as it is now."""
        if state.global_step % self._every == 0:
            for pair in self._pairs.values():
                pair.reference.data.copy_(pair.policy.data)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the reference beside the weights. PEFT also keeps a second adapter; resume does not rest on that."""
        if state.global_step < self._every:
            return
        from safetensors.torch import save_file

        tensors = {name: pair.reference.data.contiguous() for name, pair in self._pairs.items()}
        save_file(tensors, _checkpoint(args, state) / REFERENCE_FILE)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _pairs(trainer: GRPOTrainer) -> dict[str, _Pair]:
    """The parameters of the reference by name, each beside that of the policy; the two are equal."""
    policy = dict(trainer.model.named_parameters())
    if trainer.ref_model is not None:
        reference = dict(trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters())
        return {name: _Pair(reference[name], policy[name]) for name in policy}
    _add_adapter(trainer.model)
    pairs = {
        name: _Pair(trainer.model.get_parameter(name.replace(".default.", f".{_ADAPTER}.")), parameter)
        for name, parameter in policy.items()
        if ".default." in name
    }
    for pair in pairs.values():
        pair.reference.requires_grad_(False)
        pair.reference.data = pair.policy.data.clone()  # its type, too
    return pairs


def _add_adapter(model: Any) -> None:
    import torch

    settings = copy.deepcopy(model.peft_config["default"])
    settings.lora_dropout = 0.0  # what the policy is held to is no noise
    # Weights that are drawn here and overwritten must not change what is sampled.
    with torch.random.fork_rng():
        model.add_adapter(_ADAPTER, settings)
