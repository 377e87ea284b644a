"""Tests that memory is free again once nothing needs it."""

import gc
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest

from proxy.backends.base import Context
from proxy.core.monitor import MotabMonitor
from proxy.core.types import StepTrace
from proxy.engine.runner import TrajectoryRun
from tests.support.proxy.runs import STUDENT, A, B, C, outcome_of
from tests.support.scripted import ScriptedBackend, says, values

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


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The collector of cycles does not run."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def num_held() -> int:
    parts = (TrajectoryRun, MotabMonitor, Context, StepTrace)
    return sum(isinstance(one, parts) for one in gc.get_objects())


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("last", [0.9, 0.05], ids=["safe", "breach"])
async def test_a_finished_trajectory_is_freed_without_the_collector(last: float) -> None:
    before = num_held()
    student = ScriptedBackend(says(*STUDENT))
    teacher = ScriptedBackend(says("Right", "."), values({A: 0.9, B: 0.3, C: last}))
    outcome, observed = await outcome_of(student, teacher, base_threshold=0.1)
    assert num_held() > before
    del outcome, observed
    assert num_held() == before
