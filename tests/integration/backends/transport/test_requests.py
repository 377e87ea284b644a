"""Checks what a request carries and which connection it takes."""

import asyncio
import socket
import time
from contextlib import ExitStack

import pytest

from proxy.backends.base import Call
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import UpstreamFailed, UpstreamUnreachable
from tests.support.clock import Clock, turns
from tests.support.replay import (
    MAX_CONNECTIONS,
    Recording,
    Replay,
    Reply,
    json_reply,
    replay,
    stream_reply,
)
from tests.support.requests import TWO_EVENTS, events_of, outcomes, read_all

VLLM = Recording("vllm-0.32.0")

LLAMACPP = Recording("llamacpp-b11549")

AFFINITY = ("x-session-id", "x-session-affinity", "X-SMG-Routing-Key")


async def test_a_post_carries_its_json_and_every_affinity_header(up: Replay) -> None:
    up.on("POST", "/echo", json_reply({"ok": True}))
    assert await up.client.post("/echo", {"q": "é 🚀"}, Call("trajectory-7")) == {"ok": True}
    (seen,) = up.seen
    assert seen.body == {"q": "é 🚀"}
    assert seen.headers["content-type"] == "application/json"
    assert [seen.headers[name] for name in AFFINITY] == ["trajectory-7"] * 3


async def test_a_stream_carries_every_affinity_header(up: Replay) -> None:
    await events_of(up, TWO_EVENTS)
    assert [up.seen[0].headers[name] for name in AFFINITY] == ["s"] * 3


async def test_the_api_key_is_sent_as_bearer_with_every_kind_of_request() -> None:
    async with replay(api_key="sk-1") as up:
        up.on("GET", "/health", json_reply({}))
        up.on("POST", "/echo", json_reply({}))
        await up.client.get("/health")
        await up.client.post("/echo", {}, Call("s"))
        await events_of(up, TWO_EVENTS)
        assert [s.headers.get("Authorization") for s in up.seen] == ["Bearer sk-1"] * 3


async def test_without_an_api_key_no_authorization_is_sent(up: Replay) -> None:
    up.on("GET", "/health", json_reply({}))
    await up.client.get("/health")
    assert "Authorization" not in up.seen[0].headers


async def test_no_cookie_is_kept(up: Replay) -> None:
    up.on("GET", "/health", Reply((b"{}",), headers={"set-cookie": "replica=3; Path=/"}))
    # Cookies of a bare IP address are kept by nobody.
    url = up.client.base_url.replace("127.0.0.1", "localhost")
    async with UpstreamClient("named", url, None, 1, lambda *_: None) as client:
        await client.get("/health")
        await client.get("/health")
    assert "Cookie" not in up.seen[1].headers


@pytest.mark.parametrize(("idle_s", "num_connections"), [(3.0, 1), (4.9, 2)])
async def test_a_connection_is_used_again_but_not_one_that_uvicorn_is_about_to_close(
    up: Replay, monkeypatch: pytest.MonkeyPatch, idle_s: float, num_connections: int
) -> None:
    up.on("GET", "/health", json_reply({}))
    now_s = time.monotonic()
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: now_s)
    await up.client.get("/health")
    now_s += idle_s
    await up.client.get("/health")
    assert len({seen.connection for seen in up.seen}) == num_connections


async def test_as_many_requests_are_open_as_was_said_and_the_next_one_waits(up: Replay) -> None:
    up.on("POST", "/slow", Reply(hold=True))
    posts = [
        asyncio.create_task(up.client.post("/slow", {}, Call("s")))
        for _ in range(MAX_CONNECTIONS + 1)
    ]
    await up.until_seen(MAX_CONNECTIONS)
    await turns()  # in which one more would come
    assert len(up.seen) == MAX_CONNECTIONS
    posts[0].cancel()
    await up.until_seen(MAX_CONNECTIONS + 1)
    for post in posts:
        post.cancel()
    await asyncio.gather(*posts, return_exceptions=True)


async def test_an_answer_may_take_as_long_as_the_request_has_time(up: Replay, clock: Clock) -> None:
    answered = asyncio.Event()
    up.on("POST", "/slow", Reply((b"{}",), after=answered))
    up.on("POST", "/stream", stream_reply(TWO_EVENTS, after=answered))
    reading: list[bytes] = []
    whole = asyncio.create_task(up.client.post("/slow", {}, Call("s")))
    stream = asyncio.create_task(read_all(up, reading))
    await up.until_seen(2)
    await clock.forward(3600)
    answered.set()
    assert await whole == {}
    await stream
    assert len(reading) == 2


async def test_a_server_that_takes_no_connection_is_unreachable_and_was_not_just_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backends.transport.http._CONNECT_TIMEOUT_S", 0.05)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # until the kernel takes no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with UpstreamClient("teacher", url, None, 1, lambda *_: None) as client:
            with pytest.raises(UpstreamUnreachable, match=f"no connection to {url}.*timeout"):
                await client.post("/call", {}, Call("s"))


async def test_the_wait_for_a_free_connection_is_no_attempt_to_connect(
    up: Replay, clock: Clock
) -> None:
    answered = asyncio.Event()
    up.on("POST", "/slow", Reply((b"{}",), after=answered))
    async with UpstreamClient("up", up.client.base_url, None, 1, lambda *_: None) as client:
        posts = [asyncio.create_task(client.post("/slow", {}, Call("s"))) for _ in range(2)]
        await up.until_seen(1)
        await clock.forward(3600)
        answered.set()
        assert await asyncio.gather(*posts) == [{}, {}]


async def test_a_server_may_lie_under_a_path(up: Replay) -> None:
    up.on("POST", "/team/a/call", json_reply({"ok": True}), json_reply({}, 500))
    url = f"{up.client.base_url}/team/a"
    async with UpstreamClient("up", url, None, 1, lambda *_: None) as client:
        assert await client.post("/call", {}, Call("s")) == {"ok": True}
        with pytest.raises(UpstreamFailed, match="/team/a/call answered 500"):
            await client.post("/call", {}, Call("s"))


async def test_no_redirect_is_followed(up: Replay) -> None:
    up.on("POST", "/call", Reply((b"moved",), 307, {"location": "/elsewhere"}))
    up.on("POST", "/elsewhere", json_reply({}))
    with pytest.raises(UpstreamFailed, match="/call did not answer in JSON: 'moved'"):
        await up.client.post("/call", {}, Call("s"))
    assert [seen.path for seen in up.seen] == ["/call"]


async def test_a_proxy_of_the_environment_is_not_asked(
    up: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    up.on("GET", "/health", json_reply({}))
    async with UpstreamClient("up", up.client.base_url, None, 1, lambda *_: None) as client:
        assert await client.get("/health") == {}


async def test_the_clock_runs_while_a_stream_is_open_and_stops_when_it_is_left(up: Replay) -> None:
    up.on("POST", "/stream", stream_reply(TWO_EVENTS, hold=True))
    call = Call("s")
    async with up.client.stream("/stream", {}, call) as events:
        await anext(aiter(events))
        before = call.clock.seconds()
        await asyncio.sleep(0.01)
        assert call.clock.seconds() >= before + 0.009
    after = call.clock.seconds()
    await asyncio.sleep(0.01)
    assert call.clock.seconds() == after


async def test_the_observer_is_told_path_seconds_and_ok(up: Replay) -> None:
    up.on("POST", "/echo", Reply((b"{}",), delay_s=0.02))
    await up.client.post("/echo", {}, Call("s"))
    await events_of(up, TWO_EVENTS)
    assert outcomes(up) == [("up", "/echo", "ok"), ("up", "/stream", "ok")]
    assert up.observed[0][2] >= 0.02
    assert up.observed[1][2] > 0.0
