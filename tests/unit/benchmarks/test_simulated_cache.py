"""The simulated vLLM keeps the rules of its prefix cache, also where the cache is lost."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.simulator.engine import Engine, Rates
from benchmarks.simulator.http import serve_http
from benchmarks.simulator.vllm import VllmWire
from benchmarks.simulator.words import SURE, logprob
from proxy.backends.base import Call, Scores
from proxy.backends.servers.vllm import Vllm
from proxy.backends.servers.vllm_cached import CachedVllm
from proxy.backends.transport.http import UpstreamClient
from proxy.core.scoring import oracle_value
from proxy.errors import UpstreamRefused
from tests.support.scores import steps_at_the_end

MODEL = "sim"
IDS = [1, *SURE[:399]]
CALL = Call("test")


@asynccontextmanager
async def simulated(*, scale_out: bool = True) -> AsyncIterator[tuple[Engine, Vllm, CachedVllm]]:
    engine = Engine(Rates(decode_tok_s=1e6, prefill_tok_s=1e9), errs=False)
    listener = socket.create_server(("127.0.0.1", 0))
    wire = VllmWire(engine, scale_out=scale_out)
    serving = asyncio.create_task(serve_http(wire.handle, listener))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with UpstreamClient("up", url, None, 8, lambda *_: None) as client:
            plain = Vllm(client, MODEL, None, 81)
            yield engine, plain, CachedVllm(plain, client, MODEL)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def scored(scorer: CachedVllm, num_before: int, num_new: int) -> Scores:
    context = steps_at_the_end(IDS[: num_before + num_new], num_new)
    scores = await scorer.score(context, 1, 20, CALL, entropy_known=True)
    new = [logprob(token) for token in IDS[num_before : num_before + num_new]]
    assert scores.steps[0].value == pytest.approx(oracle_value(new), rel=1e-6)
    assert scores.next_entropy is not None
    return scores


async def test_a_step_costs_its_tokens_and_the_rest_of_a_block() -> None:
    async with simulated() as (engine, _, scorer):
        await scored(scorer, 100, 50)
        before = engine.counters.tokens_prefilled
        scores = await scored(scorer, 150, 40)
        assert engine.counters.tokens_prefilled - before == 40 + 150 % 16
    assert (scores.num_cached_tokens, scores.scoring) == (144, None)


async def test_a_step_at_the_end_of_a_block_costs_one_more_block() -> None:
    async with simulated() as (engine, _, scorer):
        await scored(scorer, 100, 60)
        before = engine.counters.tokens_prefilled
        scores = await scored(scorer, 160, 40)
        assert engine.counters.tokens_prefilled - before == 40 + 16
    assert (scores.num_cached_tokens, scores.scoring) == (160, None)


async def test_an_evicted_context_is_computed_again() -> None:
    async with simulated() as (engine, _, scorer):
        await scored(scorer, 100, 50)
        engine.evict()
        scores = await scored(scorer, 150, 40)
    assert (scores.num_cached_tokens, scores.scoring) == (0, None)


async def test_a_preempted_request_and_a_scored_step_are_computed_whole() -> None:
    async with simulated() as (engine, _, scorer):
        await scored(scorer, 100, 50)
        engine.preemptions = 1
        assert (await scored(scorer, 150, 40)).scoring == "prompt_logprobs"
        assert (await scored(scorer, 190, 40)).scoring is None
        assert (await scored(scorer, 190, 40)).scoring == "prompt_logprobs"


async def test_it_proves_itself_only_with_the_flag() -> None:
    async with simulated() as (_, plain, scorer):
        await CachedVllm.prove(plain, scorer._client, MODEL)
    async with simulated(scale_out=False) as (_, plain, scorer):
        with pytest.raises(UpstreamRefused, match="answered 404"):
            await CachedVllm.prove(plain, scorer._client, MODEL)
