"""Stage ``export_gguf``: a model as one GGUF file, which llama.cpp loads.

Here: the artifact of kind ``gguf``: ``model.gguf``, and beside it the tokenizer files that ``LlamaCppEngine`` renders
prompts with. Not here: the format (``engines.gguf``), quantised types.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from posttrain.artifacts.records import Artifact
from posttrain.artifacts.stage import StageConfig, StageContext, StageResult

_CARRIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class ExportGgufConfig(StageConfig):
    """Config of the ``export_gguf`` stage."""

    dtype: Literal["float32", "float16"] = "float32"
    """Type of the matrices; float32 keeps greedy text equal to the model's."""


def run_export_gguf(
    config: ExportGgufConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> StageResult:
    """Write the GGUF. Input: ``model``. Output: ``model`` (kind ``gguf``). Raises ModelError."""
    from posttrain.engines.gguf import export_gguf

    folder = context.store.view(inputs["model"])
    with context.writer("gguf", "model", meta={"dtype": config.dtype}) as writer:
        file = export_gguf(folder, writer.path("model.gguf"), dtype=config.dtype)
        size = file.stat().st_size
        for name in _CARRIED:
            if (folder / name).is_file():
                writer.add_file(name, folder / name)
        return StageResult({"model": writer.commit()}, {"bytes": size, "dtype": config.dtype})
