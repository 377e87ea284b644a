"""Checks after which silence a server counts as unreachable, and that its stream is resumed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.backends.base import Call
from proxy.backends.servers.llamacpp import LlamaCpp
from proxy.backends.transport.calls import Calls, Timeouts
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.resume import ResumingWriter
from proxy.errors import UpstreamUnreachable
from proxy.wiring.models import open_service
from tests.support.clock import Clock
from tests.support.proxy.api import in_process
from tests.support.replay import Replay, Reply, Seen, json_reply, replay, stream_reply
from tests.support.resuming import GREEDY, QUICK
from tests.support.servers import llamacpp
from tests.support.servers.configured import one_upstream


async def payloads_into(payloads: list[bytes], client: UpstreamClient) -> None:
    async with client.stream("/call", {}, Call("s")) as events:
        async for payload in events:
            payloads.append(payload)  # noqa: PERF401 - what came before a failure counts


@asynccontextmanager
async def impatient(up: Replay, timeouts: Timeouts) -> AsyncIterator[UpstreamClient]:
    async with UpstreamClient(
        "up", up.client.base_url, None, 4, lambda *_: None, QUICK, timeouts=timeouts
    ) as client:
        yield client


EVENT = b'data: {"n":1}\n\n'

LONG = Timeouts(answer_s=600, stall_s=400)

EVENTS = [
    event + b"\n\n" for event in llamacpp.RECORDED.body("stream_limit").split(b"\n\n") if event
]


def stalling_once(seen: Seen) -> Reply:
    """llama.cpp that says no more after two tokens, and continues from there when asked again."""
    assert [len(row["tokens"]) for row in llamacpp.RECORDED.events("stream_limit")] == [1] * 6 + [0]
    ids = [token for row in llamacpp.RECORDED.events("stream_limit") for token in row["tokens"]]
    num_told = next(n for n in range(6, -1, -1) if seen.body["prompt"][-n:] == ids[:n] or n == 0)
    if num_told == 0:
        return stream_reply(*EVENTS[:2], hold=True)
    return stream_reply(*EVENTS[num_told:])


@pytest.mark.parametrize(
    ("reply", "timeouts"),
    [
        (stream_reply(EVENT, hold=True), Timeouts(answer_s=3600, stall_s=0.1)),
        (stream_reply(EVENT, b'data: {"n', hold=True), Timeouts(answer_s=3600, stall_s=0.1)),
        (stream_reply(b": ping\n\n", hold=True), Timeouts(answer_s=0.1, stall_s=3600)),
        (stream_reply(hold=True), Timeouts(answer_s=0.1, stall_s=3600)),
    ],
    ids=["a stream", "half an event", "only comments", "nothing"],
)
async def test_a_silent_stream_is_unreachable_and_left(reply: Reply, timeouts: Timeouts) -> None:
    async with replay() as up, impatient(up, timeouts) as client:
        up.on("POST", "/call", reply)
        with pytest.raises(UpstreamUnreachable, match=r"was silent for 0\.1 s") as caught:
            await payloads_into([], client)
        await up.left.wait()
    assert caught.value.retryable


@pytest.mark.parametrize("chunks", [(), (b'{"half',)])
async def test_an_answer_that_does_not_come_is_asked_for_again(
    clock: Clock, chunks: tuple[bytes, ...]
) -> None:
    async with replay() as up, impatient(up, LONG) as client:
        up.on("POST", "/call", Reply(chunks, hold=True), json_reply({"ok": True}))
        asking = asyncio.create_task(client.post("/call", {}, Call("s")))
        await up.until_seen(1)
        await clock.forward(LONG.answer_s + 1)
        assert await asking == {"ok": True}
        assert len(up.seen) == 2


async def test_the_first_token_may_take_longer_than_those_after_it() -> None:
    seen: list[bytes] = []
    timeouts = Timeouts(answer_s=3600, stall_s=0.05)
    async with replay() as up, impatient(up, timeouts) as client:
        reply = stream_reply(b": ping\n\n", EVENT, hold=True)
        up.on("POST", "/call", replace(reply, delay_s=0.3))
        with pytest.raises(UpstreamUnreachable, match=r"silent for 0\.05 s"):
            await payloads_into(seen, client)
    assert seen == [b'{"n":1}']


async def test_a_stream_may_take_longer_than_the_server_may_be_silent(clock: Clock) -> None:
    permits, seen = asyncio.Semaphore(1), asyncio.Queue[bytes]()

    async def read(client: UpstreamClient) -> None:
        async with client.stream("/call", {}, Call("s")) as events:
            async for payload in events:
                seen.put_nowait(payload)

    async with replay() as up, impatient(up, LONG) as client:
        up.on("POST", "/call", replace(stream_reply(*[EVENT] * 8), permits=permits))
        reading = asyncio.create_task(read(client))
        for _ in range(8):
            await seen.get()
            await clock.forward(LONG.stall_s / 2)
            permits.release()
        await reading
    assert seen.empty()


async def test_a_pause_of_the_reader_is_no_silence_of_the_server(clock: Clock) -> None:
    async with replay() as up, impatient(up, LONG) as client:
        up.on("POST", "/call", stream_reply(EVENT, EVENT, EVENT))
        async with client.stream("/call", {}, Call("s")) as events:
            await anext(events)
            await clock.forward(LONG.answer_s + LONG.stall_s)
            assert len([payload async for payload in events]) == 2


async def test_a_timeout_of_a_library_is_not_the_silence_of_the_server() -> None:
    async def connecting() -> None:
        raise TimeoutError("10 s to connect")

    with pytest.raises(TimeoutError, match="to connect"):
        await Calls("up", lambda *_: None).awaited(connecting(), 60)


async def test_a_stalled_stream_is_resumed(clock: Clock) -> None:
    async with replay() as up, impatient(up, LONG) as client:
        up.on("POST", "/completion", stalling_once)
        writer = ResumingWriter(LlamaCpp(client, None, 2, llamacpp.FOLLOWER), client)
        async with aclosing(writer.write(llamacpp.ASKED.context, GREEDY, 99, Call("s"))) as drafts:
            for _ in range(2):
                await anext(drafts)
            third = asyncio.ensure_future(anext(drafts))
            await clock.forward(LONG.stall_s + 1)
            await third
        first, second = up.bodies("/completion")
    told = [
        token for row in llamacpp.RECORDED.events("stream_limit")[:2] for token in row["tokens"]
    ]
    assert second["prompt"] == [*first["prompt"], *told]


async def test_the_configuration_says_what_a_stall_is_and_the_metrics_count_it(
    tmp_path: Path,
) -> None:
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 1}))
        up.on("GET", "/health", json_reply({}))
        up.on("POST", "/tokenize", json_reply({"tokens": [5]}))
        up.on("POST", "/completion", stalling_once)
        config = one_upstream(up, tmp_path, "llamacpp", stall_timeout_s=0.1)
        async with open_service(config) as service:
            async with in_process(service) as client:
                body = {"model": "student/only", "prompt": "q", "temperature": 0}
                reply = await client.post("/v1/completions", json=body)
            metrics = service.metrics.render().decode()
    text = "".join(row["content"] for row in llamacpp.RECORDED.events("stream_limit"))
    assert reply.json()["choices"][0]["text"] == text
    # On a slow machine the later streams may stall as well.
    num_stalled = len(up.bodies("/completion")) - 1
    assert num_stalled > 0
    labels = '{code="upstream_unreachable",upstream="only"}'
    assert f"motab_upstream_retries_total{labels} {num_stalled}.0" in metrics
