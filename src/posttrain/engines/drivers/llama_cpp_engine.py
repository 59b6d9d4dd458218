"""The process that holds llama.cpp: one base model and a fixed list of LoRA adapters.

Run by ``llama_cpp_server`` as ``python -m posttrain.engines.drivers.llama_cpp_engine``: a JSON object on the first line
of standard input says what to load, ``{"address": …}`` comes back on standard output once it is loaded, and the end of
standard input ends the process. What llama.cpp prints goes to standard error. Not here: names (``llama_cpp_server``).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> int:
    """Load, say where, wait for the end."""
    spec: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library prints to standard output, too
    try:
        server = open_server(spec)
    except (RuntimeError, ValueError) as error:
        print(f"llama.cpp cannot load {spec['gguf']}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the log
        return 1
    with reports:
        reports.write(json.dumps({"address": server.listening_address}) + "\n")
    while sys.stdin.buffer.read(65_536):
        pass
    os._exit(0)  # taking the server down in order may wait for a request that nobody reads


def open_server(spec: dict[str, Any]) -> Any:
    """llama.cpp's server, loaded and listening."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = spec["gguf"]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in spec["adapters"]]
    params.lora_init_without_apply = True  # a request that names no adapter gets the base
    params.n_parallel = spec["parallel"]
    params.n_ctx = spec["context_tokens"] * spec["parallel"]
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = spec["threads"]
        cpu.poll = 0  # threads that spin while they wait slow everything else on a busy machine
    if spec["cache_dtype"] == "float32":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_prompt = not spec["deterministic"]
    # A request that says a temperature and no more means the same on every engine: the whole distribution. llama.cpp
    # alone would keep 40 tokens, 95 % and what has a twentieth of the best one's probability, at 0.8.
    params.sampling.top_k, params.sampling.top_p, params.sampling.min_p, params.sampling.temp = (
        0,
        1.0,
        0.0,
        1.0,
    )
    params.n_gpu_layers = 0
    params.fit_params = False
    params.warmup = False
    # Prompts parked in memory are found again by their tokens alone; the slots' own caches know their adapters.
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.verbosity = 1
    params.api_keys = [spec["key"]]  # the port is local, and answers nobody but the process above
    params.ui = params.endpoint_slots = params.endpoint_props = False
    params.endpoint_metrics = True
    return xllamacpp.Server(params)


if __name__ == "__main__":
    sys.exit(main())
