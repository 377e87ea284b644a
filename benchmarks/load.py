"""Generates the load: trajectories through the proxy, and plain streams for comparison."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from benchmarks.processes import PAIR, Process, Simulator
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import MODEL
from benchmarks.simulator.words import encode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One answer of the proxy: how long it took, and the cost that it reports."""

    seconds: float
    num_steps: int
    usage: dict[str, int]


async def trajectory(proxy: Process, plan: Plan, model: str = PAIR) -> Trajectory:
    """Ask for one trajectory as `motab synth` does. Raises if the plan was not followed."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": plan.question}],
        "motab": {"trace": "summary"},
    }
    started = time.perf_counter()
    answer = await proxy.post("/v1/motab/completions", body)
    seconds = time.perf_counter() - started
    breach = answer["choices"][0]["motab"]["breach"]
    if breach != plan.breach:
        raise RuntimeError(f"breach {breach}, planned was {plan.breach}")
    usage = {name: value or 0 for name, value in answer["usage"]["motab"].items()}
    num_steps = plan.num_steps if plan.breach is None else plan.breach + 1
    return Trajectory(seconds, num_steps, usage)


async def plain_stream(server: Simulator, plan: Plan) -> float:
    """Return the seconds of the student's text alone, asked of its server as the proxy does."""
    prompt = encode(f"<|user|>{plan.question}<|assistant|>")
    if server.kind == "sglang":
        path = "/generate"
        sampled = {"temperature": 1.0, "max_new_tokens": 32768}
        body: dict[str, Any] = {"input_ids": prompt, "sampling_params": sampled}
        body |= {"return_logprob": True}
    else:
        path = "/v1/completions"
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 32768, "logprobs": 0}
    asked = orjson.dumps(body | {"stream": True})
    started = time.perf_counter()
    async with server.http.post(f"{server.base_url}{path}", data=asked) as reply:
        reply.raise_for_status()
        async for _ in reply.content.iter_any():
            pass
    return time.perf_counter() - started


async def chat(process: Process, model: str, plan: Plan) -> float:
    """Return the seconds of a plain chat completion of as many tokens as the plan has."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": plan.question}],
        "max_tokens": plan.num_tokens,
    }
    started = time.perf_counter()
    await process.post("/v1/chat/completions", body)
    return time.perf_counter() - started


async def together(tasks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all tasks at once; the first error ends them all."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(task) for task in tasks]
    return [task.result() for task in running]


async def by_workers(num_workers: int, jobs: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run every job, by `num_workers` workers that take one job after another."""
    results: list[T] = []
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            results.append(await job())  # noqa: PERF401 - the iterator is shared

    await together(work() for _ in range(num_workers))
    return results
