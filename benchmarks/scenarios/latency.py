"""Measures what the proxy adds to a plain chat call, and what litellm's proxy adds to it."""

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import yaml

from benchmarks.figures import Figure, Findings, at_most, quantile
from benchmarks.load import KEY, by_workers, chat, session
from benchmarks.processes import Pair, Process, answering, child, free_port, proxy, simulator
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
        http = await stack.enter_async_context(session())
        server = await stack.enter_async_context(simulator("vllm", _RATES))
        motab = await stack.enter_async_context(proxy({"pair": Pair(server, server)}))
        ways: dict[str, tuple[Process, str]] = {
            "direct": (server, MODEL),
            "motab": (motab, "student/pair-student"),
        }
        has_litellm = shutil.which(_LITELLM) is not None
        if has_litellm:
            other_proxy = await stack.enter_async_context(_litellm(server))
            ways["litellm"] = (other_proxy, MODEL)
        figures: list[Figure] = []
        for concurrency, num in ((1, 60), (16, 640), (64, 1920)):
            calls = {
                way: await _calls(http, process, model, concurrency, num // 8 if quick else num)
                for way, (process, model) in ways.items()
            }
            figures += _figures(concurrency, calls)
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
    for name, share, limit in (("p50", 0.5, 2.0), ("p99", 0.99, 10.0)):
        base = quantile(calls["direct"].above, share)
        added = {way: quantile(one.above, share) - base for way, one in calls.items()}
        detail = f"direct: {base:.2f} ms above its server's time"
        if "litellm" in added:
            detail += f"; litellm proxy adds {added['litellm']:.1f} ms"
        title = f"added latency, {concurrency} at once, {name}"
        figures.append(Figure(title, added["motab"], "ms", at_most(limit), detail))
    detail = f"the simulated server: {calls['direct'].cpu_ms:.1f} ms"
    if "litellm" in calls:
        detail += f"; litellm proxy: {calls['litellm'].cpu_ms:.1f} ms"
    title = f"plain call, {concurrency} at once: processor of the proxy"
    figures.append(Figure(title, calls["motab"].cpu_ms, "ms", None, detail))
    return figures


async def _calls(
    http: aiohttp.ClientSession, process: Process, model: str, concurrency: int, num: int
) -> _Latencies:
    """Call from clients that start at random times, with texts of different lengths, so that calls
    do not fall into step.
    """
    draw = random.Random(concurrency)  # noqa: S311 - no secret

    async def one(plan: Plan) -> float:
        await asyncio.sleep(draw.random() * 0.05)
        seconds = await chat(http, process.base_url, model, plan)
        return (seconds - plan.num_tokens / _RATES.decode_tok_s) * 1000

    plans = [Plan(seed, 1, draw.randrange(20, 31)) for seed in range(num + concurrency)]
    jobs = [partial(one, plan) for plan in plans]
    await by_workers(concurrency, jobs[:concurrency])  # opens the connections
    before = process.cpu_s()
    above = await by_workers(concurrency, jobs[concurrency:])
    return _Latencies(above, 1000 * (process.cpu_s() - before) / num)


@asynccontextmanager
async def _litellm(server: Process) -> AsyncIterator[Process]:
    """Run litellm's proxy in front of the same server."""
    port = free_port()
    upstream = {
        "model": f"openai/{MODEL}",
        "api_base": f"{server.base_url}/v1",
        "api_key": "none",
    }
    config = {"model_list": [{"model_name": MODEL, "litellm_params": upstream}]}
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "config.yaml", Path(folder) / "log"
        path.write_text(yaml.safe_dump(config), "utf-8")
        command = [_LITELLM, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        environment["LITELLM_MASTER_KEY"] = KEY
        with log.open("wb") as output:
            async with child(command, stdout=output, stderr=output, env=environment) as process:
                running = Process("litellm proxy", f"http://127.0.0.1:{port}", process.pid)
                await answering(f"{running.base_url}/health/liveliness", process)
                yield running
