"""The rule that weights are safetensors only.

Loading a pickle runs code, so a model artifact may not hold one. Covered: the file names that pickled weights
go by, plain pickles and torch archives under any other name. Not covered: pickles inside other archives, or
kinds of artifact other than ``model``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from posttrain.core.errors import ModelError

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pkl", ".pth", ".ckpt", ".pickle"})
_HINT = "save the weights as safetensors (save_pretrained does) and leave the other file out"


def refuse_pickle_names(kind: str, paths: Iterable[str]) -> None:
    """Raise ModelError when a model artifact names a file that pickled weights go by."""
    if kind != "model":
        return
    for path in paths:
        if PurePosixPath(path).suffix.lower() in PICKLE_SUFFIXES:
            raise ModelError(
                f"model file {path!r} is a pickle by its name: weights are safetensors only", hint=_HINT
            )


def refuse_pickle_content(kind: str, path: str, file: Path) -> None:
    """Raise ModelError when ``file``, to be kept as ``path`` of a model artifact, is a pickle or a torch
    archive."""
    if kind != "model" or path.endswith(".safetensors"):
        return
    with file.open("rb") as stream:
        head = stream.read(2)
        # Protocol 2 and later: PROTO opcode and version; the last byte is STOP.
        is_pickle = len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5
        if is_pickle:
            stream.seek(-1, 2)
            is_pickle = stream.read(1) == b"."
    if head == b"PK" and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            is_pickle = any(name.endswith(".pkl") for name in archive.namelist())
    if is_pickle:
        raise ModelError(f"model file {path!r} holds a pickle: weights are safetensors only", hint=_HINT)
