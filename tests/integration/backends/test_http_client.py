import asyncio
import gzip
import socket
import time
from contextlib import ExitStack

import pytest

from proxy.backends.base import Call
from proxy.backends.transport.http import UpstreamClient
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from tests.support.replay import (
    MAX_CONNECTIONS,
    Recording,
    Replay,
    Reply,
    cut,
    json_reply,
    replay,
    stream_reply,
)

VLLM = Recording("vllm-0.32.0")
LLAMACPP = Recording("llamacpp-b11549")
AFFINITY = ("x-session-id", "x-session-affinity", "X-SMG-Routing-Key")
TWO_EVENTS = b'data: {"n":1}\n\ndata: {"n":2}\n\n'


async def events_of(up: Replay, *chunks: bytes) -> list[bytes]:
    up.on("POST", "/stream", stream_reply(*chunks))
    async with up.client.stream("/stream", {}, Call("s")) as events:
        return [payload async for payload in events]


async def read_all(up: Replay, payloads: list[bytes]) -> None:
    async with up.client.stream("/stream", {}, Call("s")) as events:
        async for payload in events:
            payloads.append(payload)  # noqa: PERF401 - what came before a failure counts


def outcomes(up: Replay) -> list[tuple[str, str, str]]:
    return [(upstream, path, code) for upstream, path, _, code in up.observed]


# What is sent.


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


# Connections.


@pytest.mark.parametrize(("idle_s", "num_connections"), [(3.0, 1), (4.9, 2)])
async def test_a_connection_is_used_again_but_not_one_that_uvicorn_is_about_to_close(
    up: Replay, monkeypatch: pytest.MonkeyPatch, idle_s: float, num_connections: int
) -> None:
    up.on("GET", "/health", json_reply({}))
    await up.client.get("/health")
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: time.monotonic() + idle_s)
    await up.client.get("/health")
    assert len({seen.connection for seen in up.seen}) == num_connections


async def test_as_many_requests_are_open_as_was_said_and_the_next_one_waits(up: Replay) -> None:
    up.on("POST", "/slow", Reply(hold=True))
    posts = [
        asyncio.create_task(up.client.post("/slow", {}, Call("s")))
        for _ in range(MAX_CONNECTIONS + 1)
    ]
    await up.until_seen(MAX_CONNECTIONS)
    for _ in range(20):  # turns of the event loop, in which one more would come
        await asyncio.sleep(0)
    assert len(up.seen) == MAX_CONNECTIONS
    posts[0].cancel()
    await up.until_seen(MAX_CONNECTIONS + 1)
    for post in posts:
        post.cancel()
    await asyncio.gather(*posts, return_exceptions=True)


async def test_an_answer_may_take_as_long_as_the_request_has_time(
    up: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = asyncio.Event()
    up.on("POST", "/slow", Reply((b"{}",), after=answered))
    up.on("POST", "/stream", stream_reply(TWO_EVENTS, after=answered))
    reading: list[bytes] = []
    whole = asyncio.create_task(up.client.post("/slow", {}, Call("s")))
    stream = asyncio.create_task(read_all(up, reading))
    await up.until_seen(2)
    loop, an_hour = asyncio.get_running_loop(), 3600.0
    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + an_hour)
    for _ in range(20):  # turns of the event loop, in which every timer rings
        await asyncio.sleep(0)
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
    up: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.backends.transport.http._CONNECT_TIMEOUT_S", 0.05)
    up.on("POST", "/slow", Reply((b"{}",), delay_s=0.2))
    async with UpstreamClient("up", up.client.base_url, None, 1, lambda *_: None) as client:
        posts = [client.post("/slow", {}, Call("s")) for _ in range(2)]
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


# Server-sent events.


@pytest.mark.parametrize(
    "text",
    [
        b'data: {"n":1}\r\n\r\ndata: {"n":2}\r\n\r\n',
        b'data:{"n":1}\n\ndata:{"n":2}\n\n',
        b': ping\n\ndata: {"n":1}\n\n: ping\n\n:\n\ndata: {"n":2}\n\n',
        b'event: delta\nid: 7\ndata: {"n":1}\n\nretry: 5\ndata: {"n":2}\n\n',
        b'\n\ndata: {"n":1}\n\n\n\ndata: {"n":2}\n\n',
    ],
    ids=["crlf", "no space", "comments", "other fields", "blank lines"],
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


# Leaving.


async def test_leaving_a_stream_early_closes_the_connection_at_the_server(up: Replay) -> None:
    up.on("POST", "/stream", stream_reply(TWO_EVENTS, hold=True))
    async with up.client.stream("/stream", {}, Call("s")) as events:
        await anext(aiter(events))
        assert not up.left.is_set()
    async with asyncio.timeout(2):
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
    async with asyncio.timeout(2):
        await up.came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await up.left.wait()


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


# Failures.


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
        (401, b'{"error":"no key"}', UpstreamRefused, False),
        (500, VLLM.body("error_engine_dead"), UpstreamFailed, True),
        # A 5xx stays one, whatever its text is about.
        (500, VLLM.body("error_too_long"), UpstreamFailed, True),
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


# What the observer is told.


async def test_the_observer_is_told_path_seconds_and_ok(up: Replay) -> None:
    up.on("POST", "/echo", Reply((b"{}",), delay_s=0.02))
    await up.client.post("/echo", {}, Call("s"))
    await events_of(up, TWO_EVENTS)
    assert outcomes(up) == [("up", "/echo", "ok"), ("up", "/stream", "ok")]
    assert up.observed[0][2] >= 0.02
    assert up.observed[1][2] > 0.0


async def test_a_stream_that_its_reader_finds_malformed_is_told_with_that_code(up: Replay) -> None:
    up.on("POST", "/stream", stream_reply(TWO_EVENTS))
    with pytest.raises(UpstreamError):
        async with up.client.stream("/stream", {}, Call("s")):
            raise UpstreamFailed("up", "the stream failed")
    assert outcomes(up) == [("up", "/stream", "upstream_failed")]
