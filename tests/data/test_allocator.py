"""Freed memory is used again."""

import subprocess
import sys

import pytest

from jclip.data import allocator

CODE = """
import ctypes, resource, runpy, sys
import numpy as np

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page, where the kernel has one to give, is one fault of 512

keep_freed_memory = runpy.run_path(sys.argv[1])["keep_freed_memory"]  # all of jclip frees large blocks as it is imported
if sys.argv[2] == "kept":
    keep_freed_memory()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in range(1, 21):
    np.ones(size << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is glibc's")
def test_blocks_of_growing_size_are_cleared_once() -> None:
    """20 MB of pages for the largest, which has the others' memory, and 210 MB where each is mapped anew."""
    command = [sys.executable, "-c", CODE, allocator.__file__]
    kept, given_back = (
        int(subprocess.run([*command, how], check=True, capture_output=True, text=True).stdout) for how in ("kept", "given back")
    )
    assert kept < 6000  # of 4 KiB
    assert kept < given_back / 2
