"""Checks which requests are sent again, and which are not."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.backends.base import Call
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.retry import NO_RETRIES
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from tests.support.replay import Recording, Replay, Reply, json_reply, replay, stream_reply
from tests.support.requests import BOTH, DOWN, OK, ONE_EVENT, OTHER_EVENT, QUICK, Send, codes, post

LLAMACPP = Recording("llamacpp-b11549")


@pytest.fixture
async def up() -> AsyncIterator[Replay]:
    async with replay(retry=QUICK) as playing:
        yield playing


async def read_into(payloads: list[bytes], up: Replay) -> None:
    async with up.client.stream("/call", {"q": 1}, Call("s")) as events:
        async for payload in events:
            payloads.append(payload)  # noqa: PERF401 - what came before a failure counts


async def read_an_error(up: Replay) -> None:
    async with up.client.stream("/call", {}, Call("s")) as events:
        raise up.client.stream_failure(await anext(aiter(events)))


@BOTH
@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_a_failed_request_is_sent_again_as_it_was(
    up: Replay, send: Send, status: int
) -> None:
    good = OK if send is post else stream_reply(ONE_EVENT)
    up.on("POST", "/call", json_reply(b"down", status), good)
    assert await send(up) == ({"ok": True} if send is post else [b'{"n":1}'])
    assert up.bodies("/call") == [{"q": 1}] * 2
    assert [seen.headers["x-session-id"] for seen in up.seen] == ["s"] * 2


@BOTH
async def test_each_attempt_is_observed_as_a_request_of_its_own(up: Replay, send: Send) -> None:
    up.on("POST", "/call", DOWN, DOWN, OK if send is post else stream_reply(ONE_EVENT))
    await send(up)
    assert codes(up) == ["upstream_failed", "upstream_failed", "ok"]
    assert up.retried == [("up", "upstream_failed")] * 2


@BOTH
async def test_an_answer_dropped_before_its_head_is_asked_for_again(up: Replay, send: Send) -> None:
    up.on("POST", "/call", Reply(drop_after=0), OK if send is post else stream_reply(ONE_EVENT))
    await send(up)
    assert codes(up) == ["upstream_unreachable", "ok"]


async def test_an_answer_that_breaks_in_its_body_is_asked_for_again(up: Replay) -> None:
    headers = {"content-length": "100"}
    up.on("POST", "/call", Reply((b'{"half": ',), headers=headers, drop_after=1), OK)
    assert await post(up) == {"ok": True}


@BOTH
async def test_a_server_that_comes_up_during_the_back_off_is_reached(send: Send) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    servers: list[asyncio.Server] = []
    with socket.socket() as taken:  # bound, but nobody listens yet
        taken.bind(("127.0.0.1", 0))

        async def come_up(_: float) -> None:
            servers.append(await asyncio.start_server(answer, sock=taken))

        playing = Replay(
            f"http://127.0.0.1:{taken.getsockname()[1]}", None, replace(QUICK, sleep=come_up)
        )
        async with playing.client:
            assert await send(playing) == ({} if send is post else [])
        assert codes(playing) == ["upstream_unreachable", "ok"]
        for server in servers:
            server.close()


@BOTH
@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b"no", UpstreamRefused),
        (401, b"no", UpstreamRefused),
        (404, b"no", UpstreamRefused),
        (400, LLAMACPP.body("error_too_long"), ContextExceeded),
    ],
)
async def test_a_refusal_is_final(
    up: Replay, send: Send, status: int, body: bytes, error: type[MotabError]
) -> None:
    up.on("POST", "/call", json_reply(body, status), OK)
    with pytest.raises(error, match=r"[^)]$"):  # and its message counts no attempts
        await send(up)
    assert len(up.seen) == 1
    assert up.retried == []


@pytest.mark.parametrize("content", [b"<html>", b"", b'{"v": NaN}'])
async def test_an_answer_that_is_no_json_is_final(up: Replay, content: bytes) -> None:
    up.on("POST", "/call", json_reply(content), OK)
    with pytest.raises(UpstreamGarbled):
        await post(up)
    assert codes(up) == ["upstream_failed"]


async def test_an_answer_that_lacks_what_was_asked_for_is_final(up: Replay) -> None:
    up.on("POST", "/call", OK)
    reply = await up.client.post("/call", {}, Call("s"))
    with pytest.raises(UpstreamMalformed), up.client.expecting("the answer"):
        reply["choices"]
    assert len(up.seen) == 1


async def test_a_get_is_not_sent_again(up: Replay) -> None:
    up.on("GET", "/health", DOWN, OK)
    with pytest.raises(UpstreamFailed):
        await up.client.get("/health")


async def test_the_client_itself_opens_a_stream_once_and_gives_no_event_twice(
    up: Replay,
) -> None:
    broken = stream_reply(ONE_EVENT, OTHER_EVENT, drop_after=1)
    up.on("POST", "/call", broken, stream_reply(ONE_EVENT, OTHER_EVENT))
    payloads: list[bytes] = []
    with pytest.raises(UpstreamUnreachable) as caught:
        await read_into(payloads, up)
    assert payloads == [b'{"n":1}']
    assert codes(up) == ["upstream_unreachable"]
    assert caught.value.num_attempts == 1


async def test_an_error_event_inside_a_stream_does_not_start_it_again(up: Replay) -> None:
    up.on("POST", "/call", stream_reply(b"data: out of memory\n\n"))
    with pytest.raises(UpstreamFailed, match="out of memory"):
        await read_an_error(up)
    assert codes(up) == ["upstream_failed"]


async def test_with_retries_off_every_failure_is_final() -> None:
    async with replay(retry=NO_RETRIES) as up:
        up.on("POST", "/call", DOWN, OK)
        with pytest.raises(UpstreamFailed, match=r"down$"):
            await post(up)
        assert len(up.seen) == 1


@BOTH
async def test_the_last_attempts_error_is_raised_and_tells_their_number(
    up: Replay, send: Send
) -> None:
    up.on("POST", "/call", Reply(drop_after=0), DOWN, DOWN, json_reply(b"the last", 503))
    with pytest.raises(UpstreamFailed, match=r"503: the last \(4 attempts\)$"):
        await send(up)
    assert len(up.seen) == 4
    assert len(up.retried) == 3  # after the last failure nothing is sent again


async def test_a_refusal_after_a_failure_is_what_is_raised(up: Replay) -> None:
    up.on("POST", "/call", DOWN, json_reply(b"no", 400))
    with pytest.raises(UpstreamRefused, match=r"400: no \(2 attempts\)$"):
        await post(up)


async def test_a_client_without_a_policy_retries_nothing() -> None:
    async with UpstreamClient("up", "http://127.0.0.1:1", None, 1, lambda *_: None) as client:
        assert client.retry is NO_RETRIES
