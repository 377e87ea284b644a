"""Measures three costs that must not grow: `n` answers, an unread stream, a correction's wait.

A question without a plan is answered with a few tokens, so its cost is the cost of its prompt.
"""

import asyncio
import random
import socket
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.figures import Figure, Findings
from benchmarks.load import together, trajectory
from benchmarks.processes import PAIR, Pair, Process, Simulator, proxy, simulated_pair, simulator
from benchmarks.simulator.engine import Rates
from benchmarks.simulator.plan import Plan
from benchmarks.simulator.words import SURE, VOCABULARY

_AT_ONCE = Rates(decode_tok_s=100_000, prefill_tok_s=1e9)
# So slow that every token leaves the proxy in a chunk of its own, on a busy machine, too: buffers
# hold a number of bytes, and a chunk of several tokens has hardly more of them.
_WATCHED = replace(_AT_ONCE, decode_tok_s=3_000)
_NUM_CHOICES = 8
_WORD_CHARS = 5
_ROUNDS = 3
_STALL_S = 3.0
_SILENT_BUFFER = 64 * 1024
# A breach in the middle of a text, so that a draft lasts longer than a call.
_BREACH = Plan(0, 40, 54, 20)
_PLACES = 4
_NUM_WAITING = 16


async def edges(*, quick: bool) -> Findings:
    """Measure one kind of cost after another."""
    async with (
        simulated_pair("sglang", _AT_ONCE, _AT_ONCE) as pair,
        proxy({PAIR: pair}) as motab,
    ):
        figures = await _choices(motab, 20_000 if quick else 100_000)
    async with (
        simulated_pair("sglang", _WATCHED, _AT_ONCE) as pair,
        proxy({PAIR: pair}, client_stall_timeout_s=_STALL_S) as motab,
    ):
        figures += await _unread(motab, pair, 24_000)
    return Findings((*figures, await _correction()))


async def _choices(motab: Process, num_chars: int) -> tuple[Figure, ...]:
    """Compare processor times of a long question: `n` answers, and as many requests for one."""
    draw = random.Random(0)  # noqa: S311 - words of a question, nothing secret
    words = [VOCABULARY[token] for token in SURE]

    async def cost(n: int, num_requests: int) -> float:
        bodies = [
            _body("".join(draw.choices(words, k=num_chars // _WORD_CHARS)), n=n)
            for _ in range(num_requests)
        ]
        before = motab.cpu_s()
        await together(motab.post("/v1/motab/chat/completions", body) for body in bodies)
        return motab.cpu_s() - before

    await cost(1, 1)  # costs of only the first request
    one = _median([await cost(1, 1) for _ in range(_ROUNDS)])
    several = _median([await cost(_NUM_CHOICES, 1) for _ in range(_ROUNDS)])
    apart = _median([await cost(1, _NUM_CHOICES) for _ in range(_ROUNDS)])
    title = f"a question of {num_chars} characters, n = {_NUM_CHOICES}: processor /"
    return (
        Figure(f"{title} n = 1", several / one, f"{1e3 * several:.0f} ms, {1e3 * one:.0f} ms"),
        Figure(
            f"{title} {_NUM_CHOICES} requests",
            several / apart,
            f"{1e3 * apart:.0f} ms apart",
            at_most=0.5,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Unread:
    """The effect of a stream of which nothing is read, until the proxy ended it."""

    tokens_written: int
    grown_mb: float


async def _unread(motab: Process, pair: Pair[Simulator], num_tokens: int) -> tuple[Figure, ...]:
    """Compare texts of N and 2N tokens whose clients read nothing."""
    await trajectory(motab, Plan(0, 20, 50))  # memory that only the first text takes
    once, twice = [
        await _silent(motab, pair, Plan(seed, num * num_tokens // 50, 50))
        for seed, num in ((1, 1), (2, 2))
    ]
    lengths = f"a stream that nobody reads, {2 * num_tokens} tokens / {num_tokens}:"
    return (
        Figure(
            f"{lengths} tokens that the student writes",
            twice.tokens_written / once.tokens_written,
            f"{twice.tokens_written}, {once.tokens_written}; ended after {_STALL_S:g} s",
            at_most=1.2,
        ),
        Figure(
            f"the same, {2 * num_tokens} tokens: the proxy's memory grows by",
            twice.grown_mb,
            f"{once.grown_mb:.1f} MB for {num_tokens} tokens",
            unit="MB",
        ),
    )


async def _silent(motab: Process, pair: Pair[Simulator], plan: Plan) -> _Unread:
    """Ask for a stream and read nothing. Raises if the student wrote its text to the end."""
    await pair.student.reset()
    before = peak = motab.rss_mb()
    address = urlsplit(motab.base_url)
    asked = _body(plan.question, stream=True, max_tokens=2 * plan.num_tokens)
    body = orjson.dumps(asked | {"model": f"student/{PAIR}-student"})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SILENT_BUFFER)
        client.connect((address.hostname, address.port))
        client.sendall(head.encode() + body)
        async with asyncio.timeout(60):
            while not (seen := await pair.student.counters()).cancelled:
                if seen.requests and not seen.running:
                    raise RuntimeError(
                        f"the student was not stopped before {plan.num_tokens} tokens: {seen}"
                    )
                peak = max(peak, motab.rss_mb())
                await asyncio.sleep(0.05)
    return _Unread(seen.tokens_decoded, peak - before)


async def _correction() -> Figure:
    """Compare trajectories with a breach, alone and while other drafts wait for their server."""
    rates = replace(_AT_ONCE, decode_tok_s=1_000)
    breaches = [replace(_BREACH, seed=seed) for seed in range(_PLACES)]
    waiting = [replace(_BREACH, seed=_PLACES + seed, breach=None) for seed in range(_NUM_WAITING)]
    async with simulator("sglang", rates, errs=True) as server:
        pair = Pair(server, server, max_concurrent=_PLACES)
        async with proxy({PAIR: pair}) as motab:
            alone_s = await _mean_s(motab, breaches)
            async with asyncio.TaskGroup() as group:
                measured = group.create_task(_mean_s(motab, breaches))
                await asyncio.sleep(_BREACH.num_tokens / rates.decode_tok_s / 4)  # all write
                for plan in waiting:
                    group.create_task(trajectory(motab, plan))
            busy_s = measured.result()
    return Figure(
        f"student and teacher are one server of {_PLACES} places, {_NUM_WAITING} drafts wait: "
        f"{_PLACES} corrected answers / alone",
        busy_s / alone_s,
        f"{busy_s:.2f} s, {alone_s:.2f} s; a draft takes {_BREACH.num_tokens / 1000:.2f} s",
        at_most=1.5,
    )


async def _mean_s(motab: Process, plans: list[Plan]) -> float:
    done = await together(trajectory(motab, plan) for plan in plans)
    return sum(one.seconds for one in done) / len(done)


def _body(question: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - the API's own
    return {"model": PAIR, "messages": [{"role": "user", "content": question}], **fields}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
