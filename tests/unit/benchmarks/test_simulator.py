"""The simulated servers keep the real ones' rules, so what is measured on them means something."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.figures import Figure
from benchmarks.processes import Pair, Simulator, published_loop, simulated_pair, simulator
from benchmarks.simulator.cache import PrefixCache
from benchmarks.simulator.engine import Chunk, Engine, Rates, Reuse
from benchmarks.simulator.plan import Plan, read_context
from benchmarks.simulator.server import Kind
from benchmarks.simulator.words import (
    DELIMITER_ID,
    DOUBTFUL,
    END,
    SURE,
    WRONG,
    decode,
    encode,
    logprob,
    write_tokenizer,
)
from proxy.backends.base import Call, Message, Question
from proxy.backends.tokens.tokenizer import load_tokenizer
from tests.support.patience import PATIENCE_S

PLAN = Plan(7, 5, 8, 3)
FAST = Rates(decode_tok_s=1e6, prefill_tok_s=1e9)


def prompt_of(plan: Plan) -> list[int]:
    return encode(f"<|user|>{plan.question}<|assistant|>")


def text_of(plan: Plan, *, errs: bool = False) -> list[int]:
    return [plan.token(place, errs=errs) for place in range(plan.num_tokens)]


@pytest.mark.parametrize(
    ("known", "asked", "common"),
    [
        ([[1, 2, 3]], [1, 2, 3, 4], 3),
        ([[1, 2, 3, 4]], [1, 2], 2),
        ([[1, 2], [1, 3], [2, 2]], [1, 3, 9], 2),
        ([[1, 9, 9], [1, 2, 3, 4, 8]], [1, 2, 3, 4, 5], 4),
        ([[256]], [1], 0),  # the same low byte is another token
        ([], [1], 0),
    ],
)
def test_the_cache_knows_the_longest_common_prefix(
    known: list[list[int]], asked: list[int], common: int
) -> None:
    cache = PrefixCache()
    for context in known:
        cache.add(context)
    assert cache.longest_prefix(asked) == common


def test_the_cache_agrees_with_a_plain_search_on_many_contexts() -> None:
    cache, contexts = PrefixCache(), list[list[int]]()
    draw = 1
    for _ in range(400):
        ids: list[int] = []
        while draw % 7 and len(ids) < 12:
            ids.append(draw % 3 + 255 * (draw % 2))
            draw = draw * 48271 % 2147483647
        draw = draw * 48271 % 2147483647
        expected = max((common_of(ids, known) for known in contexts), default=0)
        assert cache.longest_prefix(ids) == expected
        cache.add(ids)
        contexts.append(ids)


def common_of(one: Sequence[int], other: Sequence[int]) -> int:
    num = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        num += 1
    return num


def test_a_plan_stands_in_its_question_and_places_are_counted_after_it() -> None:
    ids = prompt_of(PLAN)
    assert read_context(ids).plan == PLAN
    assert read_context(ids).place == 0
    assert read_context([*ids, *text_of(PLAN)[:9]]).place == 9
    # The published loop sends the raw question.
    assert read_context([*encode(PLAN.question), *text_of(PLAN)[:9]]).place == 9


def test_steps_have_their_length_and_stray_where_planned() -> None:
    ids = text_of(PLAN, errs=True)
    assert [i for i, token in enumerate(ids) if token == DELIMITER_ID] == [7, 15, 23, 31, 39]
    assert {token in DOUBTFUL for token in ids[16:23]} == {True}
    assert {token in WRONG for token in ids[24:31]} == {True}
    assert {token in SURE for token in ids[:15]} == {True, False}  # False: a delimiter
    assert not any(token in WRONG or token in DOUBTFUL for token in text_of(PLAN))
    assert PLAN.token(PLAN.num_tokens, errs=True) == END


def test_words_of_a_wrong_step_are_far_below_the_others() -> None:
    assert {logprob(token) for token in WRONG} == {-4.0}
    assert {logprob(token) for token in DOUBTFUL} == {-1.2}
    assert all(-0.3 <= logprob(token) < 0 for token in [*SURE, DELIMITER_ID])


async def test_the_proxy_reads_the_same_tokens_as_the_servers(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    reader, call = load_tokenizer(str(tmp_path), None), Call("test")
    rendered = await reader.render(Question((Message("user", PLAN.question),)), call)
    assert list(rendered.token_ids) == prompt_of(PLAN)
    text = decode(text_of(PLAN, errs=True))
    steps = [step + ".\n\n" for step in text.split(".\n\n")[:-1]]
    segments = await reader.encode(steps, call)
    assert [i for s in segments for i in s.token_ids] == encode(text) == text_of(PLAN, errs=True)


async def computed(engine: Engine, ids: list[int], reuse: Reuse) -> int:
    before = engine.counters.tokens_prefilled
    async with engine.admitted(ids, reuse):
        pass
    return engine.counters.tokens_prefilled - before


async def test_the_cache_serves_a_request_up_to_its_limit_in_whole_pages() -> None:
    engine = Engine(FAST, errs=False)
    ids = list(range(1, 101))
    assert await computed(engine, ids, Reuse()) == 100
    assert await computed(engine, ids, Reuse()) == 1  # the last one is always computed
    assert await computed(engine, ids, Reuse(limit=60)) == 40
    assert await computed(engine, ids, Reuse(limit=0)) == 100
    assert await computed(engine, ids, Reuse(page=16)) == 4


@pytest.mark.parametrize("streams", [True, False])
async def test_what_was_written_is_in_the_cache(streams: bool) -> None:
    engine = Engine(FAST, errs=False)
    prompt = prompt_of(PLAN)
    async with engine.admitted(prompt, Reuse()) as running:
        if streams:
            written = [token async for chunk in running.write(10, 4) for token in chunk.ids]
        else:
            written = (await running.whole(10, ())).ids
    assert await computed(engine, [*prompt, *written, 9], Reuse()) == 1


async def chunks_of(engine: Engine, max_tokens: int, interval: int) -> list[Chunk]:
    async with engine.admitted(prompt_of(PLAN), Reuse()) as running:
        return [chunk async for chunk in running.write(max_tokens, interval)]


async def test_chunks_hold_the_interval_and_end_as_the_plan_does() -> None:
    engine = Engine(FAST, errs=True)
    chunks = await chunks_of(engine, 1000, 16)
    assert [len(chunk.ids) for chunk in chunks] == [1, 16, 16, 8]  # the end token is the last
    assert [i for chunk in chunks for i in chunk.ids] == [*text_of(PLAN, errs=True), END]
    assert [chunk.end for chunk in chunks] == [None, None, None, "stop"]
    assert [chunk.end for chunk in await chunks_of(engine, 9, 4)] == [None, None, "length"]


async def test_tokens_come_at_the_decoding_rate() -> None:
    engine = Engine(Rates(decode_tok_s=200, prefill_tok_s=1e9), errs=False)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await chunks_of(engine, 40, 8)
    assert loop.time() - started >= 0.19


async def test_prefill_is_done_one_request_after_another() -> None:
    engine = Engine(Rates(prefill_tok_s=1000), errs=False)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.gather(*(computed(engine, [n] * 50, Reuse()) for n in (1, 2, 3)))
    assert loop.time() - started >= 0.14


async def test_requests_beyond_the_batch_wait_in_order() -> None:
    engine = Engine(Rates(decode_tok_s=1e6, prefill_tok_s=1e9, max_running=2), errs=False)
    order: list[int] = []

    async def one(number: int) -> None:
        async with engine.admitted([number], Reuse()):
            order.append(number)
            await asyncio.sleep(0.01)

    await asyncio.gather(*map(one, range(6)))
    assert order == [0, 1, 2, 3, 4, 5]
    assert engine.counters.most_running == 2


@asynccontextmanager
async def running(kind: Kind, rates: Rates = FAST) -> AsyncIterator[tuple[Simulator, Any]]:
    async with simulator(kind, rates) as server, aiohttp.ClientSession() as http:

        async def post(path: str, body: dict[str, Any]) -> Any:
            async with http.post(server.base_url + path, json=body) as reply:
                return json.loads(await reply.read())

        yield server, post


def scoring_body(kind: Kind, ids: list[int], num_new: int) -> dict[str, Any]:
    if kind == "vllm":
        return {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 20, "logprobs": 20}
    return {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": len(ids) - num_new - 1,
        "top_logprobs_num": 20,
    }


@pytest.mark.parametrize(("kind", "second"), [("sglang", 9), ("vllm", None)])
async def test_scoring_keeps_sglangs_cache_and_not_vllms(kind: Kind, second: int | None) -> None:
    path = "/generate" if kind == "sglang" else "/v1/completions"
    ids = [*prompt_of(PLAN), *text_of(PLAN)]
    async with running(kind) as (server, post):
        await post(path, scoring_body(kind, ids[:-8], 8))
        before = (await server.counters()).tokens_prefilled
        await post(path, scoring_body(kind, ids, 8))
        grown = (await server.counters()).tokens_prefilled - before
    assert grown == (len(ids) if second is None else second)


async def test_vllm_answers_several_prompts_in_one_request_and_computes_each() -> None:
    ids = [*prompt_of(PLAN), *text_of(PLAN)]
    one, two = ({"prompt": ids[:n], "max_tokens": 1, "logprobs": 20} for n in (-8, -16))
    async with running("vllm") as (server, post):
        alone = [await post("/v1/completions", body) for body in (one, two)]
        await server.reset()
        both = await post("/v1/completions", one | {"prompt": [one["prompt"], two["prompt"]]})
        counters = await server.counters()
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert [choice | {"index": 0} for choice in both["choices"]] == [
        answer["choices"][0] for answer in alone
    ]
    assert both["usage"]["prompt_tokens"] == 2 * len(ids) - 24
    assert (counters.requests, counters.tokens_decoded) == (1, 2)


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
async def test_a_client_that_leaves_is_counted_and_frees_its_place(kind: Kind) -> None:
    path = "/generate" if kind == "sglang" else "/v1/completions"
    body: dict[str, Any] = {"input_ids": prompt_of(PLAN), "prompt": prompt_of(PLAN)}
    body |= {"sampling_params": {"max_new_tokens": 30}, "max_tokens": 30, "stream": True}
    async with running(kind, Rates(decode_tok_s=2, max_running=1)) as (server, _):
        async with aiohttp.ClientSession() as http:
            reply = await http.post(server.base_url + path, json=body)
            await reply.content.readline()
            reply.close()
        async with asyncio.timeout(PATIENCE_S):
            while (counters := await server.counters()).running:
                pass
    assert asdict(counters) | {"cancelled": 1, "waiting": 0} == asdict(counters)
    assert counters.tokens_decoded < 30


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
async def test_a_stream_that_nobody_reads_stops(kind: Kind) -> None:
    long = prompt_of(Plan(1, 20_000, 50))
    path = "/generate" if kind == "sglang" else "/v1/completions"
    body: dict[str, Any] = {"input_ids": long, "prompt": long, "max_tokens": 10**6}
    body |= {"sampling_params": {"max_new_tokens": 10**6}, "stream": True}
    async with running(kind) as (server, _), aiohttp.ClientSession() as http:
        reply = await http.post(server.base_url + path, json=body)
        written = -1
        async with asyncio.timeout(PATIENCE_S):
            while written != (seen := await server.counters()).tokens_decoded:
                written = seen.tokens_decoded
                await asyncio.sleep(0.5)
        reply.close()
    assert seen.running == 1
    assert 0 < written < 10**6


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
async def test_equal_requests_have_equal_answers(kind: Kind) -> None:
    path = "/generate" if kind == "sglang" else "/v1/completions"
    ids = [*prompt_of(PLAN), *text_of(PLAN)]
    answers = []
    for _ in range(2):
        async with running(kind) as (_, post):
            answers.append(await post(path, scoring_body(kind, ids, 8)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
async def test_the_published_loop_asks_three_times_a_step_and_finds_the_breach(kind: Kind) -> None:
    async with simulated_pair(kind, FAST, FAST, errs=True) as pair:
        safe = Plan(8, 4, 8)
        report = await published_loop(pair, [PLAN.question, safe.question], workers=2)
        asked, scored = await pair.student.counters(), await pair.teacher.counters()
    by_steps = sorted(report.done, key=lambda done: done.breach is None)
    assert [(done.num_steps, done.score_calls, done.breach) for done in by_steps] == [
        (4, 8, 3),
        (4, 8, None),
    ]
    assert report.num_processes == 3
    assert asked.requests == 4 + 5  # the last one finds that the text is over
    assert scored.requests == 8 + 8 + 1  # and the correction
    assert asked.tokens_decoded == 4 * 8 + 4 * 8 + 1


async def test_a_published_loop_whose_worker_dies_fails() -> None:
    async with simulator("vllm", FAST) as server:
        pair = Pair(replace(server, base_url="http://127.0.0.1:9"), server)
        with pytest.raises(RuntimeError, match="the published loop ended with 1"):
            await published_loop(pair, [PLAN.question] * 3, workers=2)


def test_a_figure_says_whether_its_target_was_reached() -> None:
    assert Figure("x", 1.0, at_most=1.0).reached is True
    assert Figure("x", 1.1, at_most=1.0).reached is False
    assert Figure("x", 1.0, at_least=1.1).reached is False
    assert Figure("x", 1.0).reached is None
