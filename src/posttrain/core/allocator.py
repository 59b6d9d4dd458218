"""What the C library does with memory that was freed.

Here: one switch for processes that compute. Not here: limits. Training frees and asks again for the same tensors at
every step; glibc gives large blocks back to the system and takes fresh ones, which the kernel fills with zeros page by
page: a tenth of the processor time of a small model's training (LOG.md).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, ready for the next step; False where the C library has no such switch.

    The process holds its peak until it ends. Blocks above 32 MiB, glibc's own bound, still come and go.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    wanted = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
    return all(mallopt(name, value) == 1 for name, value in wanted.items())
