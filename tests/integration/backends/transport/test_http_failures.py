"""Checks which of our errors each failure of a request becomes."""

import socket
from typing import Any

import aiohttp
import pytest

from proxy.backends.base import Call
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from tests.support.replay import Recording, Replay, Reply, json_reply, replay, stream_reply
from tests.support.requests import TWO_EVENTS, outcomes, read_all

VLLM = Recording("vllm-0.32.0")

LLAMACPP = Recording("llamacpp-b11549")


async def test_a_refused_connection_is_unreachable_and_the_message_has_the_url() -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with UpstreamClient("teacher", url, None, 8, lambda *_: None) as client:
            with pytest.raises(UpstreamUnreachable, match=f"upstream 'teacher'.*{url}"):
                await client.get("/health")
            with pytest.raises(UpstreamUnreachable, match=url):
                await client.post("/tokenize", {}, Call("s"))
            with pytest.raises(UpstreamUnreachable, match=url):
                async with client.stream("/completion", {}, Call("s")):
                    pytest.fail("a stream without a connection was opened")


async def test_an_error_hides_the_key_that_was_sent() -> None:
    async with replay(api_key="key-of-this-test") as up:
        up.on("POST", "/x", json_reply({"error": "wrong key: key-of-this-test"}, 401))
        with pytest.raises(UpstreamDenied, match=r"wrong key: \*\*\*"):
            await up.client.post("/x", {}, Call("s"))


@pytest.mark.parametrize("num_closing", [1, 2])
async def test_a_connection_that_closes_before_the_request_is_written_is_replaced_once(
    up: Replay, num_closing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    up.on("POST", "/echo", json_reply({"whole": True}))
    request = up.client._session.request
    closing = iter(range(num_closing))

    async def written(*args: Any, **options: Any) -> aiohttp.ClientResponse:
        for _ in closing:
            cause = aiohttp.ClientConnectionResetError("Cannot write to closing transport")
            raise aiohttp.ClientOSError(None, "Can not write request body") from cause
        return await request(*args, **options)

    monkeypatch.setattr(up.client._session, "request", written)
    if num_closing == 1:
        assert await up.client.post("/echo", {}, Call("s")) == {"whole": True}
        assert outcomes(up) == [("up", "/echo", "ok")]
    else:
        with pytest.raises(UpstreamUnreachable, match="Can not write request body"):
            await up.client.post("/echo", {}, Call("s"))


@pytest.mark.parametrize("drop_after", [0, 1])
async def test_an_answer_that_breaks_off_is_unreachable(up: Replay, drop_after: int) -> None:
    headers = {"content-type": "application/json", "content-length": "100"}
    up.on("POST", "/echo", Reply((b'{"half": ',), headers=headers, drop_after=drop_after))
    with pytest.raises(UpstreamUnreachable) as caught:
        await up.client.post("/echo", {}, Call("s"))
    assert caught.value.retryable
    assert outcomes(up) == [("up", "/echo", "upstream_unreachable")]


@pytest.mark.parametrize("drop_after", [0, 1])
async def test_a_stream_that_breaks_off_is_unreachable(up: Replay, drop_after: int) -> None:
    up.on("POST", "/stream", stream_reply(TWO_EVENTS, b"da", drop_after=drop_after))
    payloads: list[bytes] = []
    with pytest.raises(UpstreamUnreachable):
        await read_all(up, payloads)
    assert payloads == [b'{"n":1}', b'{"n":2}'][: 2 * drop_after]
    assert outcomes(up) == [("up", "/stream", "upstream_unreachable")]


@pytest.mark.parametrize(
    "content",
    [b"<html>busy</html>", b"", b'{"a": 1', b'{"v": NaN}'],
    ids=["html", "nothing", "half", "nan"],
)
async def test_an_answer_that_is_no_json_has_failed(up: Replay, content: bytes) -> None:
    up.on("POST", "/echo", json_reply(content))
    with pytest.raises(UpstreamFailed, match="/echo did not answer in JSON"):
        await up.client.post("/echo", {}, Call("s"))
    assert outcomes(up) == [("up", "/echo", "upstream_failed")]


async def test_an_answer_that_does_not_decompress_is_our_error(up: Replay) -> None:
    up.on("POST", "/echo", Reply((b"no gzip",), headers={"content-encoding": "gzip"}))
    with pytest.raises(UpstreamError):
        await up.client.post("/echo", {}, Call("s"))


@pytest.mark.parametrize(
    ("status", "body", "error", "retryable"),
    [
        (400, VLLM.body("error_too_long"), ContextExceeded, False),
        (400, LLAMACPP.body("error_too_long"), ContextExceeded, False),
        (400, VLLM.body("error_top_k"), UpstreamRefused, False),
        (400, LLAMACPP.body("error_bad_id"), UpstreamRefused, False),
        (404, VLLM.body("error_unknown_model"), UpstreamRefused, False),
        (404, VLLM.body("error_wrong_path"), UpstreamRefused, False),
        (401, b'{"error":"no key"}', UpstreamDenied, False),
        (500, VLLM.body("error_engine_dead"), UpstreamFailed, True),
        # Older llama.cpp, and gateways, say 500 for it.
        (500, VLLM.body("error_too_long"), ContextExceeded, False),
        (503, b"", UpstreamFailed, True),
        (429, b"slow down", UpstreamFailed, True),
    ],
    ids=[
        "vllm: too long",
        "llama.cpp: too long",
        "vllm: top-k above its cap",
        "llama.cpp: bad token id",
        "vllm: unknown model",
        "vllm: wrong path",
        "no key",
        "vllm: dead engine",
        "500 about the context",
        "503",
        "429",
    ],
)
async def test_an_error_status_is_named_the_same_for_posts_and_streams(
    up: Replay, status: int, body: bytes, error: type[MotabError], retryable: bool
) -> None:
    up.on("POST", "/call", json_reply(body, status))
    with pytest.raises(error, match=f"upstream 'up': /call answered {status}") as posted:
        await up.client.post("/call", {}, Call("s"))
    with pytest.raises(error, match=f"upstream 'up': /call answered {status}") as streamed:
        async with up.client.stream("/call", {}, Call("s")):
            pytest.fail("a refused stream was opened")
    assert {posted.value.retryable, streamed.value.retryable} == {retryable}
    assert outcomes(up) == [("up", "/call", error.code)] * 2


async def test_a_prompt_that_just_fills_the_context_of_vllm_exceeds_it(up: Replay) -> None:
    up.on("POST", "/call", json_reply(VLLM.body("error_context_full"), 400))
    with pytest.raises(ContextExceeded):
        await up.client.post("/call", {}, Call("s"))


async def test_the_message_quotes_the_server_but_not_at_length(up: Replay) -> None:
    up.on("GET", "/big", json_reply(b"why " * 5000, 500))
    with pytest.raises(UpstreamFailed, match="why why") as caught:
        await up.client.get("/big")
    assert len(str(caught.value)) < 1000
