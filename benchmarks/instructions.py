"""Counts the instructions of Python's interpreter that the proxy executes for a token and for a
plain call.

The counts differ by a few in a hundred from run to run, however busy the machine is, and more from
one version of Python to the next.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.load import chat, together, trajectory
from benchmarks.processes import PAIR, Pair, Process, Simulator, proxy, simulated_pair, simulator
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind

STUDENT = Rates(decode_tok_s=100, prefill_tok_s=500_000, trip_s=0.02, stream_interval=8)
TEACHER = replace(STUDENT, trip_s=0.14)
TRAJECTORY = Plan(0, 10, 54)
"""Each trajectory's text."""
CALL = Plan(0, 1, 25)
"""Each plain call's text."""
# Few, because counting is slow.
STREAMS = 4
_CALLS = 16
# A tenth more than the most of four counts on an idle machine under Python 3.11. On vLLM the number
# of scoring calls depends on how events and verdicts meet: 623 three times, and 705.
MOST_A_TOKEN: dict[Kind, float] = {"sglang": 645, "vllm": 775}
MOST_A_CALL = 35_700.0


async def of_a_token(kind: Kind) -> float:
    """Count for a student's token.

    The costs of a trajectory's beginning and end are among them, divided by its tokens.
    """
    plans = [replace(TRAJECTORY, seed=seed) for seed in range(STREAMS)]
    async with simulated_pair(kind, STUDENT, TEACHER) as pair:
        total = await _counted(pair, lambda motab: [trajectory(motab, plan) for plan in plans])
    return total / (len(plans) * TRAJECTORY.num_tokens)


async def of_a_plain_call() -> float:
    """Count for a chat call to a single upstream."""
    plans, model = [replace(CALL, seed=seed) for seed in range(_CALLS)], f"student/{PAIR}-student"
    async with simulator("vllm", STUDENT) as server:
        total = await _counted(
            Pair(server, server), lambda motab: [chat(motab, model, plan) for plan in plans]
        )
    return total / len(plans)


async def _counted(
    pair: Pair[Simulator], jobs: Callable[[Process], Iterable[Coroutine[Any, Any, Any]]]
) -> int:
    """Run the jobs twice; return what the second time took, which is no start of anything."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "count"
        async with proxy({PAIR: pair}, count_file=path) as motab:
            await together(jobs(motab))
            before = await asyncio.to_thread(_count, motab, path)
            await together(jobs(motab))
            return await asyncio.to_thread(_count, motab, path) - before


def _count(motab: Process, path: Path) -> int:
    """Ask the process for its count."""
    os.kill(motab.pid, signal.SIGUSR2)
    while not path.exists():
        time.sleep(0.02)
    found = int(path.read_text("utf-8"))
    path.unlink()
    return found
