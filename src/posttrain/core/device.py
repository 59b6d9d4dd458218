"""The class of device that torch computes on here, found without loading torch.

Results differ between classes, so a class is part of the key of every stage that computes with torch. *Covered*: NVIDIA
GPUs by compute capability (``cuda-9.0``), Apple GPUs (``mps``), otherwise ``cpu``. *Not covered*: differences within a
class, such as a processor with other vector instructions, or another driver.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import lru_cache
from importlib import metadata

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@lru_cache(maxsize=1)
def device_class() -> str:
    """``cpu``, ``mps``, or ``cuda-`` and the compute capability of the first visible GPU."""
    if _built_for_processors():
        return "cpu"
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "cpu"
    return _first_gpu() or "cpu"


def _built_for_processors() -> bool:
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return True


def _first_gpu() -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    found = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        found.append(str(value.value))
    return "cuda-" + ".".join(found)
