"""What was freed is given back, even from below what is used."""

import ctypes
import re
from pathlib import Path

from streaming.memory import give_back

BLOCK, BLOCKS = 2**15, 2_000  # 64 MB in all


def resident_mb() -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def test_free_pages_go_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    last = blocks.pop()
    for block in blocks:
        libc.free(block)
    kept = resident_mb()
    give_back()
    assert kept - resident_mb() > 32
    libc.free(last)
