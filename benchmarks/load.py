"""Generates the load: trajectories through the proxy, and plain streams for comparison."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import orjson

from benchmarks.processes import Process, Simulator
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.server import MODEL
from benchmarks.simulator.words import encode

T = TypeVar("T")
KEY = "sk-" + secrets.token_hex(16)
"""Sent with every request, because litellm's proxy requires a key; the others ignore it."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One answer of the proxy: how long it took, and the cost that it reports."""

    plan: Plan
    seconds: float
    num_steps: int
    breach: int | None
    bifurcation: int | None
    usage: dict[str, int]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the student's kept text."""
        return self.usage["student_tokens"] - self.usage["student_tokens_discarded"]


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open connections without a limit of number or time."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as opened:
        yield opened


async def trajectory(
    http: aiohttp.ClientSession, proxy: Process, model: str, plan: Plan
) -> Trajectory:
    """Ask for one trajectory as `motab synth` does. Raises if the plan was not followed."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": plan.question}],
        "motab": {"trace": "summary"},
    }
    started = time.perf_counter()
    answer = await post(http, f"{proxy.base_url}/v1/motab/completions", body)
    seconds = time.perf_counter() - started
    trace = answer["choices"][0]["motab"]
    if trace["breach"] != plan.breach:
        raise RuntimeError(f"breach {trace['breach']}, planned was {plan.breach}")
    usage = {name: value or 0 for name, value in answer["usage"]["motab"].items()}
    num_steps = plan.num_steps if plan.breach is None else plan.breach + 1
    return Trajectory(plan, seconds, num_steps, trace["breach"], trace["bifurcation"], usage)


async def plain_stream(http: aiohttp.ClientSession, server: Simulator, plan: Plan) -> float:
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
    started = time.perf_counter()
    async with http.post(f"{server.base_url}{path}", data=_json(body | {"stream": True})) as reply:
        reply.raise_for_status()
        async for _ in reply.content.iter_any():
            pass
    return time.perf_counter() - started


async def chat(http: aiohttp.ClientSession, url: str, model: str, plan: Plan) -> float:
    """Return the seconds of a plain chat completion of as many tokens as the plan has."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": plan.question}],
        "max_tokens": plan.num_tokens,
    }
    started = time.perf_counter()
    await post(http, f"{url}/v1/chat/completions", body)
    return time.perf_counter() - started


async def together(tasks: Iterable[Awaitable[T]]) -> list[T]:
    """Run all tasks at once; the first error ends them all."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_of(task)) for task in tasks]
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


async def _of(task: Awaitable[T]) -> T:
    return await task


async def post(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the JSON answer to a POST. Raises `RuntimeError` for an error's status."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    async with http.post(url, data=_json(body), headers=headers) as response:
        content = await response.read()
        if not response.ok:
            raise RuntimeError(f"{url} answered {response.status}: {content[:500]!r}")
        return orjson.loads(content)


def _json(body: dict[str, Any]) -> bytes:
    return orjson.dumps(body)
