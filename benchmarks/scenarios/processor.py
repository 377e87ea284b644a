"""Measures the proxy's whole processor time for a student's token, with few streams.

Unlike the wall-clock times of the other scenarios it is comparable on a busy machine, so it is the
scenario for development: before and after a change, in turns. The interpreter's instructions for a
token differ by less than two in a hundred from run to run, however busy the machine is.
"""

import asyncio
import os
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import Figure, Findings
from benchmarks.load import together, trajectory
from benchmarks.processes import PAIR, Process, proxy, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import Kind

_KINDS: tuple[Kind, ...] = ("sglang", "vllm")
_STUDENT = Rates(decode_tok_s=100, prefill_tok_s=500_000, trip_s=0.02, stream_interval=8)
_TEACHER = replace(_STUDENT, trip_s=0.14)
# 500 streams of 50 tok/s are 25,000 tokens a second: one process has 40 us for each, and some of
# them go to the clients and to waiting.
_TARGET_US = 35
_COUNTED = Plan(0, 10, 54)
_COUNTED_STREAMS = 4
# A twentieth more than was counted under Python 3.11; other versions have other instructions.
_MOST_INSTRUCTIONS: dict[Kind, float] = {"sglang": 550, "vllm": 740}


@dataclass(frozen=True, slots=True)
class _Cost:
    """The costs of all streams together."""

    us_a_token: float
    calls_a_step: float


async def processor(*, quick: bool) -> Findings:
    """Measure SGLang's wire format, then vLLM's."""
    plan = Plan(0, 4 if quick else 20, 54)
    num = 10 if quick else 40
    costs = {kind: await _measured(kind, plan, num) for kind in _KINDS}
    counts = {kind: await _instructions(kind) for kind in _KINDS}
    figures = [
        Figure(
            f"{num} streams, interval 8, {kind}: processor of the proxy",
            cost.us_a_token,
            f"{cost.calls_a_step:.2f} scoring calls a step",
            unit="us/token",
            at_most=_TARGET_US if kind == "sglang" else None,
        )
        for kind, cost in costs.items()
    ]
    figures += [
        Figure(
            f"{_COUNTED_STREAMS} streams, interval 8, {kind}: instructions of Python",
            num,
            f"{_COUNTED.num_steps} steps of {_COUNTED.step_tokens} tokens",
            unit="/token",
            at_most=_MOST_INSTRUCTIONS[kind],
        )
        for kind, num in counts.items()
    ]
    return Findings(
        tuple(figures),
        conditions={"trajectory": f"{plan.num_steps} steps of {plan.step_tokens} tokens"},
    )


async def _measured(kind: Kind, plan: Plan, num: int) -> _Cost:
    async with (
        simulated_pair(kind, _STUDENT, _TEACHER) as pair,
        proxy({PAIR: pair}) as motab,
    ):
        # Costs of only the first request must not count towards a token.
        await trajectory(motab, replace(plan, seed=num, num_steps=1))
        before = motab.cpu_s()
        plans = [replace(plan, seed=seed) for seed in range(num)]
        done = await together(trajectory(motab, plan) for plan in plans)
        spent = motab.cpu_s() - before
    calls = sum(one.usage["score_calls"] for one in done)
    return _Cost(1e6 * spent / (num * plan.num_tokens), calls / (num * plan.num_steps))


async def _instructions(kind: Kind) -> float:
    """Count the interpreter's instructions for a token, of few streams, because counting is slow.

    The costs of a trajectory's beginning and end are among them, divided by its tokens.
    """
    plans = [replace(_COUNTED, seed=seed) for seed in range(_COUNTED_STREAMS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "count"
        async with (
            simulated_pair(kind, _STUDENT, _TEACHER) as pair,
            proxy({PAIR: pair}, count_file=path) as motab,
        ):
            await together(trajectory(motab, plan) for plan in plans)
            before = await asyncio.to_thread(_count, motab, path)
            await together(trajectory(motab, plan) for plan in plans)
            after = await asyncio.to_thread(_count, motab, path)
    return (after - before) / (len(plans) * _COUNTED.num_tokens)


def _count(motab: Process, path: Path) -> int:
    """Ask the process for its count."""
    os.kill(motab.pid, signal.SIGUSR2)
    while not path.exists():
        time.sleep(0.02)
    found = int(path.read_text("utf-8"))
    path.unlink()
    return found
