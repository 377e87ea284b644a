"""Compares the wall of a trajectory without a breach with a plain stream and the published loop."""

import asyncio
from contextlib import AsyncExitStack

from benchmarks.figures import Figure, Findings
from benchmarks.load import plain_stream, trajectory
from benchmarks.processes import PAIR, proxy, published_loop, simulated_pair
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan

_STUDENT = Rates(decode_tok_s=100, trip_s=0.15)
# With the prefill of a step's 54 tokens, a scoring call takes 0.15 s.
_TEACHER = Rates(decode_tok_s=100, trip_s=0.14, prefill_tok_s=5_000)


async def single(*, quick: bool) -> Findings:
    """Run all sides at the same time: each has its own servers, of equal speed."""
    num_steps = 15 if quick else 150
    plan = Plan(1, num_steps, 54)
    async with AsyncExitStack() as stack:
        ours, theirs, plain = [
            await stack.enter_async_context(simulated_pair("sglang", _STUDENT, _TEACHER, errs=True))
            for _ in range(3)
        ]
        motab = await stack.enter_async_context(proxy({PAIR: ours}))
        cpu_before = motab.cpu_s()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(trajectory(motab, plan))
            loop = group.create_task(published_loop(theirs, [plan.question]))
            stream = group.create_task(plain_stream(plain.student, plan))
        result, report, wall = running.result(), loop.result(), stream.result()
        own, published = await ours.teacher.counters(), await theirs.teacher.counters()
        return Findings(
            (
                Figure(
                    "one trajectory: wall / plain student stream",
                    result.seconds / wall,
                    f"{result.seconds:.1f} s / {wall:.1f} s; {plan.num_tokens} tokens",
                    at_most=1.05,
                ),
                Figure(
                    "one trajectory: the published loop's wall / ours",
                    report.seconds / result.seconds,
                    f"{report.seconds:.1f} s / {result.seconds:.1f} s",
                    at_least=1.5,
                ),
                Figure(
                    "scoring calls per step",
                    result.usage["score_calls"] / result.num_steps,
                    f"published loop: {report.done[0].score_calls / report.done[0].num_steps:.2f}",
                    at_most=1.0,
                ),
                Figure(
                    "teacher tokens computed / length, SGLang rule",
                    own.tokens_prefilled / plan.num_tokens,
                    f"published loop: {published.tokens_prefilled / plan.num_tokens:.2f}",
                    at_most=1.1,
                ),
            ),
            conditions={
                "student": "100 tok/s, trip 0.15 s, an event a token",
                "teacher": "SGLang rule, 0.15 s for a step of 54 tokens",
                "proxy cpu s": motab.cpu_s() - cpu_before,
            },
        )
