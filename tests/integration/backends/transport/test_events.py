"""Checks how server-sent events are read, and that leaving a stream closes it."""

import asyncio
import gzip

import pytest

from proxy.backends.base import Call
from proxy.errors import UpstreamError, UpstreamFailed
from tests.support.replay import Recording, Replay, Reply, cut, stream_reply
from tests.support.requests import TWO_EVENTS, events_of, outcomes, read_all

VLLM = Recording("vllm-0.32.0")


@pytest.mark.parametrize(
    "text",
    [
        b'data: {"n":1}\r\n\r\ndata: {"n":2}\r\n\r\n',
        b'data:{"n":1}\n\ndata:{"n":2}\n\n',
        b': ping\n\ndata: {"n":1}\n\n: ping\n\n:\n\ndata: {"n":2}\n\n',
        b'event: delta\nid: 7\ndata: {"n":1}\n\nretry: 5\ndata: {"n":2}\n\n',
        b'\n\ndata: {"n":1}\n\n\n\ndata: {"n":2}\n\n',
        b'data: null\n\ndata: {"n":1}\n\ndata:\n\ndata:null\n\ndata: {"n":2}\n\n',
    ],
    ids=["crlf", "no space", "comments", "other fields", "blank lines", "nothing"],
)
async def test_only_the_payload_of_data_lines_comes_through(up: Replay, text: bytes) -> None:
    assert await events_of(up, text) == [b'{"n":1}', b'{"n":2}']


async def test_every_byte_may_come_alone(up: Replay) -> None:
    text = ': ping\r\n\r\ndata: {"t":"🚀 é"}\r\n\r\ndata: [DONE]\n\n'.encode()
    chunks = [text[i : i + 1] for i in range(len(text))]
    assert await events_of(up, *chunks) == ['{"t":"🚀 é"}'.encode(), b"[DONE]"]


@pytest.mark.parametrize("seed", range(5))
async def test_chunk_boundaries_do_not_matter_on_a_recorded_stream(up: Replay, seed: int) -> None:
    body = VLLM.body("interval8_emoji")
    whole = [line[6:] for line in body.split(b"\n") if line]
    assert await events_of(up, *cut(body, seed)) == whole


async def test_an_event_is_read_as_soon_as_it_is_there(up: Replay) -> None:
    up.on("POST", "/stream", stream_reply(b'data: {"n":1}\n\n', hold=True))
    async with up.client.stream("/stream", {}, Call("s")) as events:
        assert await anext(aiter(events)) == b'{"n":1}'


async def test_a_compressed_stream_is_read_or_was_not_invited(up: Replay) -> None:
    headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
    up.on("POST", "/stream", Reply((gzip.compress(TWO_EVENTS),), headers=headers))
    async with up.client.stream("/stream", {}, Call("s")) as events:
        payloads = [payload async for payload in events]
    invited = "gzip" in up.seen[0].headers.get("Accept-Encoding", "")
    assert payloads == [b'{"n":1}', b'{"n":2}'] or not invited


async def test_leaving_a_stream_early_closes_the_connection_at_the_server(up: Replay) -> None:
    up.on("POST", "/stream", stream_reply(TWO_EVENTS, hold=True))
    async with up.client.stream("/stream", {}, Call("s")) as events:
        await anext(aiter(events))
        assert not up.left.is_set()
    await up.left.wait()


async def test_cancelling_a_waiting_stream_closes_the_connection_at_the_server(up: Replay) -> None:
    up.on("POST", "/stream", stream_reply(TWO_EVENTS, hold=True))
    await cancelled_while_waiting(up, asyncio.create_task(read_all(up, [])))
    assert outcomes(up) == [("up", "/stream", "cancelled")]


async def test_cancelling_a_waiting_post_closes_the_connection_at_the_server(up: Replay) -> None:
    up.on("POST", "/slow", Reply(hold=True))
    await cancelled_while_waiting(up, asyncio.create_task(up.client.post("/slow", {}, Call("s"))))
    assert outcomes(up) == [("up", "/slow", "cancelled")]


async def cancelled_while_waiting(up: Replay, task: "asyncio.Task[None]") -> None:
    await up.came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await up.left.wait()


async def test_a_stream_that_its_reader_finds_malformed_is_told_with_that_code(up: Replay) -> None:
    up.on("POST", "/stream", stream_reply(TWO_EVENTS))
    with pytest.raises(UpstreamError):
        async with up.client.stream("/stream", {}, Call("s")):
            raise UpstreamFailed("up", "the stream failed")
    assert outcomes(up) == [("up", "/stream", "upstream_failed")]
