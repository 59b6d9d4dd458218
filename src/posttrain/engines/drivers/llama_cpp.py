"""The driver of llama.cpp: the default on a CPU.

Here: the GGUF of a model folder, made once and kept under its digest; adapters as GGUF; how the door
(``llama_cpp_server``) is launched. *Covered*: base and adapters at once, by name; with ``deterministic`` the same
request has the same answer. *Not covered*: different adapters are not decoded in one batch, they take turns.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

from posttrain.core.atomic import make_folder, write_atomic
from posttrain.core.errors import MissingDependencyError
from posttrain.engines.drivers.http_server import require_httptools
from posttrain.engines.drivers.processes import listening_socket
from posttrain.engines.drivers.records import Determinism, LlamaCppConfig, ServedFolder
from posttrain.engines.drivers.server_driver import Launch, Limits, ServerDriver
from posttrain.engines.errors import EngineError

_CONVERT = """
import sys
from pathlib import Path
from posttrain.engines.gguf import export_gguf
export_gguf(Path(sys.argv[1]), Path(sys.argv[2]), dtype=sys.argv[3])
"""


class LlamaCppDriver(ServerDriver):
    """llama.cpp in child processes; see :class:`~posttrain.engines.drivers.protocol.EngineDriver`."""

    def __init__(self, config: LlamaCppConfig, model: ServedFolder, *, workdir: Path, cache: Path) -> None:
        """``workdir`` is this engine's own; ``cache`` keeps GGUF files by digest, and may be shared."""
        super().__init__(
            config.served_name or model.served_name,
            workdir,
            max_adapters=config.max_adapters,
            limits=Limits(config.start_seconds, config.stop_seconds, config.start_seconds),
        )
        self._config = config
        self._model = model
        self._cache = cache
        self._key = secrets.token_hex(16)

    def load_adapter(self, name: str, folder: Path) -> str:
        """Load a PEFT folder under ``name``: an engine beside the old one, then the swap."""
        from posttrain.engines.gguf_lora import export_gguf_lora

        # Written anew each time: a file of that name from another day is not trusted.
        file = export_gguf_lora(folder, self._model.folder, self._workdir / "adapters" / f"{name}.gguf")
        return super().load_adapter(name, file)

    def determinism(self) -> Determinism:
        """Which promises hold."""
        config = self._config
        flags = {"threads": str(config.threads), "parallel": str(config.parallel)}
        if config.deterministic:
            flags |= {"cache_prompt": "false", "cache_type": "f32", "flash_attn": "off"}
        return Determinism(
            same_request_same_text=config.deterministic,
            batch_invariant=config.deterministic,
            prefix_cache_exact=config.deterministic,
            flags=flags,
            limits="on one machine with one version of llama.cpp; a request without a seed is drawn anew",
        )

    def _launch(self) -> Launch:
        require_httptools()
        try:
            import xllamacpp  # noqa: F401 - whether it is there
        except ImportError as error:
            raise MissingDependencyError(
                "running a GGUF needs the package xllamacpp", hint="pip install 'posttrain[gguf]'"
            ) from error
        make_folder(self._workdir)
        listener = listening_socket()
        config = self._config
        spec = {
            "gguf": str(gguf_of(self._model, self._cache, config.dtype)),
            "base": self._base,
            "threads": config.threads,
            "parallel": config.parallel,
            "context_tokens": config.context_tokens,
            "max_adapters": config.max_adapters,
            "deterministic": config.deterministic,
            "cache_dtype": "float32" if config.deterministic else config.cache_dtype,
            "descriptor": listener.fileno(),
        }
        file = self._workdir / "engine.json"
        write_atomic(file, json.dumps(spec, indent=1).encode())
        return Launch(
            (sys.executable, "-m", "posttrain.engines.drivers.llama_cpp_server", str(file)),
            listener.getsockname()[1],
            {**config.environment, "POSTTRAIN_ENGINE_KEY": self._key},
            (listener,),
        )


def gguf_of(model: ServedFolder, cache: Path, dtype: str) -> Path:
    """The GGUF of a model: its own, or one made from its folder and kept as ``cache/<digest>-<dtype>.gguf``."""
    if (own := model.folder / "model.gguf").is_file():
        return own
    made = cache / f"{model.digest.removeprefix('sha256:')}-{dtype}.gguf"
    if not made.is_file():
        # In a process of its own: the conversion loads torch, and whoever starts engines should stay small.
        command = [sys.executable, "-c", _CONVERT, str(model.folder), str(made), dtype]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise EngineError(
                f"the model {model.name} cannot be made a GGUF: {last}",
                hint="serve it with `engine: transformers` or `engine: vllm`",
            )
    return made
