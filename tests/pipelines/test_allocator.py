"""Freed memory stays with a process that computes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, resource
from posttrain.core.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    block = bytearray(16 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a switch of glibc")
def test_blocks_are_used_again_without_new_pages() -> None:
    def run(mode: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
        ).stdout.split()

    (kept, with_switch), (without,) = run("keep"), run("as it is")
    if kept != "True":
        pytest.skip("another C library")
    assert int(with_switch) < 8000 < int(without)
