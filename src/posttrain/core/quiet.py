"""Keeping the training libraries quiet: no telemetry, no hub, no chatter.

Here: the environment that must be in place *before* torch, transformers, datasets or TRL are first imported;
they read most of it once. Not here: a firewall. *Covered*: telemetry, update checks, experiment trackers,
hub look-ups and log noise of the libraries that posttrain calls, and of every process started from here.
*Not covered*: a library that opens a socket of its own accord and has no switch for it. To add a switch: one
line in the right table below.
"""

from __future__ import annotations

import os
import warnings

_NEVER = {
    # What phones home is forced: an inherited setting does not turn it on again.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "WANDB_DISABLED": "true",
    "WANDB_MODE": "disabled",
    "COMET_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
_CALM = {
    # What is merely noisy is a default: a user who exports the variable sees the noise.
    "TOKENIZERS_PARALLELISM": "false",
    # How long an OpenMP thread spins before it sleeps. The default (300,000) makes two threads many times slower than
    # one as soon as another process needs a core; never spinning costs a third on an idle machine (LOG.md).
    "GOMP_SPINCOUNT": "2000",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
_NOISY_MODULES = ("transformers", "trl", "datasets", "peft", "accelerate", "huggingface_hub", "torch")


def quiet_libraries(allow_hub: bool = False) -> None:
    """Set the environment and the warning filters for this process and its children.

    ``allow_hub`` leaves downloads from the Hugging Face hub to the user's own settings; otherwise they are
    refused.
    """
    os.environ.update(_NEVER)
    if not allow_hub:
        os.environ.update(_OFFLINE)
    for name, value in _CALM.items():
        os.environ.setdefault(name, value)
    for module in _NOISY_MODULES:
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{module}(\.|$)")
