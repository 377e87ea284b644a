"""Tests that large blocks of memory go back to the system."""

import platform
import subprocess
import sys

import pytest

_ALLOCATIONS = """
import ctypes, sys

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]

if sys.argv[1] == "settled":
    from proxy.serving.serve import settle_memory
    settle_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.mallinfo2.restype = [ctypes.c_void_p], Info
libc.free(libc.malloc(2**24))
before = libc.mallinfo2().hblks
libc.malloc(2**20)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
@pytest.mark.parametrize(("how", "num_mapped"), [("settled", "1"), ("as it is", "0")])
def test_a_large_block_is_mapped_even_after_a_larger_one_was_freed(
    how: str, num_mapped: str
) -> None:
    command = [sys.executable, "-c", _ALLOCATIONS, how]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == num_mapped
