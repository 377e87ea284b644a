"""Measures what the proxy adds to a plain chat call, and what litellm's proxy adds to it."""

import asyncio
import random
import shutil
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks.figures import Figure, Findings, quantile
from benchmarks.instructions import CALL, MOST_A_CALL, of_a_plain_call
from benchmarks.load import by_workers, chat
from benchmarks.processes import KEY, PAIR, Pair, Process, proxy, served, simulator
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import MODEL

_RATES = Rates(decode_tok_s=100, stream_interval=8, prefill_tok_s=1e6)
_LITELLM = ".venv-litellm/bin/litellm"


async def latency(*, quick: bool) -> Findings:
    """Measure milliseconds above the server's own time, and processor time, at three levels of
    concurrency.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(simulator("vllm", _RATES))
        motab = await stack.enter_async_context(proxy({PAIR: Pair(server, server)}))
        ways: dict[str, tuple[Process, str]] = {
            "direct": (server, MODEL),
            "motab": (motab, "student/pair-student"),
        }
        has_litellm = shutil.which(_LITELLM) is not None
        if has_litellm:
            ways["litellm"] = (await stack.enter_async_context(_litellm(server)), MODEL)
        figures: list[Figure] = []
        for concurrency, num in ((1, 60), (16, 640), (64, 1920)):
            calls = {
                way: await _calls(process, model, concurrency, num // 8 if quick else num)
                for way, (process, model) in ways.items()
            }
            figures += _figures(concurrency, calls)
    figures.append(
        Figure(
            "plain call: instructions of Python",
            await of_a_plain_call(),
            f"{CALL.num_tokens} tokens",
            unit="/call",
            at_most=MOST_A_CALL,
        )
    )
    note = "measured" if has_litellm else f"not measured: {_LITELLM} is missing (make bench-env)"
    return Findings(tuple(figures), conditions={"litellm proxy": note, "answers": "0.2 to 0.3 s"})


@dataclass(frozen=True, slots=True)
class _Latencies:
    """`above`: the milliseconds by which each call exceeds its tokens' time."""

    above: list[float]
    cpu_ms: float
    """Processor time per call of the process that was called; comparable on a busy machine, too."""


def _figures(concurrency: int, calls: dict[str, _Latencies]) -> list[Figure]:
    """Return what each way adds to the median and the 99th percentile of the direct way."""
    figures: list[Figure] = []
    for name, share, limit in (("p50", 0.5, 1.0), ("p99", 0.99, 5.0)):
        base = quantile(calls["direct"].above, share)
        added = {way: quantile(one.above, share) - base for way, one in calls.items()}
        detail = f"direct: {base:.2f} ms above its server's time"
        if "litellm" in added:
            detail += f"; litellm proxy adds {added['litellm']:.1f} ms"
        title = f"added latency, {concurrency} at once, {name}"
        figures.append(Figure(title, added["motab"], detail, unit="ms", at_most=limit))
    detail = f"the simulated server: {calls['direct'].cpu_ms:.1f} ms"
    if "litellm" in calls:
        detail += f"; litellm proxy: {calls['litellm'].cpu_ms:.1f} ms"
    title = f"plain call, {concurrency} at once: processor of the proxy"
    figures.append(Figure(title, calls["motab"].cpu_ms, detail, unit="ms"))
    return figures


async def _calls(process: Process, model: str, concurrency: int, num: int) -> _Latencies:
    """Call from clients that start at random times, with texts of different lengths, so that calls
    do not fall into step.
    """
    draw = random.Random(concurrency)  # noqa: S311 - no secret

    async def one(plan: Plan) -> float:
        await asyncio.sleep(draw.random() * 0.05)
        seconds = await chat(process, model, plan)
        return (seconds - plan.num_tokens / _RATES.decode_tok_s) * 1000

    plans = [Plan(seed, 1, draw.randrange(20, 31)) for seed in range(num + concurrency)]
    jobs = [partial(one, plan) for plan in plans]
    await by_workers(concurrency, jobs[:concurrency])  # opens the connections
    before = process.cpu_s()
    above = await by_workers(concurrency, jobs[concurrency:])
    return _Latencies(above, 1000 * (process.cpu_s() - before) / num)


def _litellm(server: Process) -> AbstractAsyncContextManager[Process]:
    """Run litellm's proxy in front of the same server."""
    upstream = {
        "model": f"openai/{MODEL}",
        "api_base": f"{server.base_url}/v1",
        "api_key": "none",
    }
    config = {"model_list": [{"model_name": MODEL, "litellm_params": upstream}]}
    variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
    return served([_LITELLM], config, "/health/liveliness", **variables)
