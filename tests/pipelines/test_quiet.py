"""Telemetry, hubs and chatter are off before any training library is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_FORCED = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_DISABLED": "true",
    "WANDB_MODE": "disabled",
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def environment_after(call: str, **before: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    imports = "import json, os; from posttrain.core.quiet import quiet_libraries"
    script = f"{imports}; {call}; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**clean, **before}
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_what_phones_home_is_off_whatever_was_set() -> None:
    contrary = dict.fromkeys(_FORCED, "0") | dict.fromkeys(_OFFLINE, "0") | {"WANDB_MODE": "online"}
    after = environment_after("quiet_libraries()", **contrary)
    assert {name: after[name] for name in _FORCED} == _FORCED
    assert {name: after[name] for name in _OFFLINE} == _OFFLINE


def test_a_recipe_that_names_a_hub_model_may_use_the_hub() -> None:
    after = environment_after("quiet_libraries(allow_hub=True)", HF_HUB_OFFLINE="0")
    assert {name: after[name] for name in _FORCED} == _FORCED
    assert after["HF_HUB_OFFLINE"] == "0"
    assert "TRANSFORMERS_OFFLINE" not in after


def test_noise_can_be_turned_on() -> None:
    assert environment_after("quiet_libraries()")["TRANSFORMERS_VERBOSITY"] == "error"
    after = environment_after("quiet_libraries()", TRANSFORMERS_VERBOSITY="info", TQDM_DISABLE="0")
    assert (after["TRANSFORMERS_VERBOSITY"], after["TQDM_DISABLE"]) == ("info", "0")
    assert after["TOKENIZERS_PARALLELISM"] == "false"


def test_nothing_heavy_is_loaded_for_it() -> None:
    script = (
        "import sys; from posttrain.core.quiet import quiet_libraries; quiet_libraries()\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
