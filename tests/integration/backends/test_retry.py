import asyncio
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from proxy.api.app import create_app
from proxy.backends.base import Call, Context, Draft, Sampling, Segment
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy, parse_retry_after
from proxy.config import load_config
from proxy.errors import (
    ContextExceeded,
    MotabError,
    UpstreamError,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from proxy.wiring.models import open_service
from tests.support.replay import Recording, Replay, Reply, json_reply, replay, stream_reply
from tests.support.scripted import ScriptedBackend

LLAMACPP = Recording("llamacpp-b11549")
QUICK = RetryPolicy(attempts=4, total_s=60, first_s=0.001)
OK = json_reply({"ok": True})
DOWN = json_reply(b"down", 500)
ONE_EVENT, OTHER_EVENT = b'data: {"n":1}\n\n', b'data: {"n":2}\n\n'

Send = Callable[[Replay], Awaitable[object]]


@pytest.fixture
async def up() -> AsyncIterator[Replay]:
    async with replay(retry=QUICK) as playing:
        yield playing


async def post(up: Replay) -> object:
    return await up.client.post("/call", {"q": 1}, Call("s"))


class EventWriter(ScriptedBackend):
    """Writes each event's payload as a piece."""

    def __init__(self, client: UpstreamClient) -> None:
        super().__init__()
        self._client = client

    async def write(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call
    ) -> AsyncGenerator[Draft]:
        async with self._client.stream("/call", {"q": 1}, call) as events:
            async for payload in events:
                yield Draft((payload.decode(),))
        yield Draft((), "stop")


async def stream(up: Replay) -> object:
    writer = ResumingWriter(EventWriter(up.client), up.client)
    drafts = writer.write(Context(Segment("", (1,))), Sampling(0.0), 9, Call("s"))
    return [piece.encode() async for draft in drafts for piece in draft.pieces]


async def read_into(payloads: list[bytes], up: Replay) -> None:
    async with up.client.stream("/call", {"q": 1}, Call("s")) as events:
        async for payload in events:
            payloads.append(payload)  # noqa: PERF401 - what came before a failure counts


async def read_an_error(up: Replay) -> None:
    async with up.client.stream("/call", {}, Call("s")) as events:
        raise up.client.stream_failure(await anext(aiter(events)))


BOTH = pytest.mark.parametrize("send", [post, stream])


def busy(status: int, retry_after: str) -> Reply:
    return Reply((b"busy",), status, {"retry-after": retry_after})


def codes(up: Replay) -> list[str]:
    return [code for *_, code in up.observed]


@dataclass
class FakeSleep:
    """Does not wait, but remembers for how many seconds."""

    waits: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


async def asleep_for_ever(_: float) -> None:
    await asyncio.Event().wait()


# What is sent again.


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


# What is not.


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


# How often, and how long.


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


async def test_no_attempt_begins_after_the_total_time() -> None:
    policy = RetryPolicy(attempts=1000, total_s=0.3, first_s=0.001, longest_s=0.001)
    async with replay(retry=policy) as up:
        up.on("POST", "/call", replace(DOWN, delay_s=0.06))  # twice that: once a chunk
        began = time.monotonic()
        with pytest.raises(UpstreamFailed, match=r"attempts\)$"):
            await post(up)
        assert 2 <= len(up.seen) <= 4
        assert time.monotonic() - began < 1


async def test_the_total_time_begins_with_the_first_attempt() -> None:
    async with replay(retry=replace(QUICK, total_s=0.1)) as up:
        up.on("POST", "/call", replace(DOWN, delay_s=0.06))  # twice that
        with pytest.raises(UpstreamFailed):
            await post(up)
        assert len(up.seen) == 1


async def test_an_attempt_under_way_is_not_cut_off_by_the_total_time() -> None:
    async with replay(retry=replace(QUICK, total_s=0.01)) as up:
        up.on("POST", "/call", replace(OK, delay_s=0.05))
        assert await post(up) == {"ok": True}


async def test_waits_are_random_below_a_bound_that_doubles_up_to_the_longest() -> None:
    sleep = FakeSleep()
    policy = RetryPolicy(attempts=6, total_s=60, first_s=1, longest_s=5, sleep=sleep)
    async with replay(retry=policy) as up:
        up.on("POST", "/call", DOWN)
        for _ in range(30):
            with pytest.raises(UpstreamFailed):
                await post(up)
    for index, bound in enumerate([1, 2, 4, 5, 5]):
        waits = sleep.waits[index::5]
        assert bound / 2 < max(waits) <= bound
        assert min(waits) < bound / 2


# Retry-After.


@BOTH
@pytest.mark.parametrize("status", [429, 503])
async def test_the_servers_retry_after_is_waited_for(send: Send, status: int) -> None:
    sleep = FakeSleep()
    async with replay(retry=replace(QUICK, sleep=sleep)) as up:
        good = OK if send is post else stream_reply(ONE_EVENT)
        up.on("POST", "/call", busy(status, "1"), good)
        await send(up)
    (wait,) = sleep.waits
    assert 1 <= wait < 1.1


async def test_a_retry_after_date_is_waited_for() -> None:
    sleep = FakeSleep()
    async with replay(retry=replace(QUICK, sleep=sleep)) as up:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
        up.on("POST", "/call", busy(503, date), OK)
        await post(up)
    (wait,) = sleep.waits
    assert 15 < wait < 20.1


@BOTH
@pytest.mark.parametrize("retry_after", ["61", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_retry_after_beyond_the_total_time_fails_at_once(
    send: Send, retry_after: str
) -> None:
    async with replay(retry=replace(QUICK, sleep=asleep_for_ever)) as up:
        up.on("POST", "/call", busy(429, retry_after), OK)
        with pytest.raises(UpstreamFailed) as caught:
            await send(up)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 60
        assert len(up.seen) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 99 Foo 2026 25:61:61 GMT", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun Nov  6 08:49:37 1994", 0.0),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_or_nothing(
    value: str | None, seconds: float | None
) -> None:
    assert parse_retry_after(value) == seconds


# Who waits, and for what.


@BOTH
async def test_cancelling_during_the_back_off_ends_at_once(send: Send) -> None:
    backing_off = asyncio.Event()

    async def sleep(_: float) -> None:
        backing_off.set()
        await asyncio.Event().wait()

    async with replay(retry=replace(QUICK, sleep=sleep)) as up:
        up.on("POST", "/call", DOWN)
        task = asyncio.ensure_future(send(up))
        async with asyncio.timeout(2):
            await backing_off.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(up.seen) == 1
        assert codes(up) == ["upstream_failed"]


async def test_the_back_off_is_not_upstream_time() -> None:
    async def sleep(_: float) -> None:
        await asyncio.sleep(0.2)

    async with replay(retry=replace(QUICK, sleep=sleep)) as up:
        up.on("POST", "/call", DOWN, OK)
        call = Call("s")
        began = time.perf_counter()
        await up.client.post("/call", {}, call)
        assert time.perf_counter() - began >= 0.2
        assert 0 < call.clock.seconds() <= time.perf_counter() - began - 0.19


# From the configuration to the metrics.


async def test_the_configuration_rules_and_the_metrics_count(tmp_path: Path) -> None:
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 1}))
        up.on("GET", "/health", json_reply({}))
        tokens = json_reply({"tokens": [5]})
        up.on("POST", "/tokenize", tokens, busy(503, "0"), busy(503, "0"), tokens)
        path = tmp_path / "motab.yaml"
        path.write_text(
            f"upstreams: {{only: {{kind: llamacpp, base_url: '{up.client.base_url}', model: m, "
            "retries: {attempts: 2, total_s: 9}}}\n"
            "models: {pair: {student: only, teacher: only}}\n",
            encoding="utf-8",
        )
        async with open_service(load_config(path)) as service:
            app = httpx.ASGITransport(create_app(service))
            async with httpx.AsyncClient(transport=app, base_url="http://motab") as client:
                body = {"model": "student/only", "prompt": "q"}
                reply = await client.post("/v1/completions", json=body)
            metrics = service.metrics.render().decode()
    assert reply.status_code == 502
    assert "/tokenize answered 503: busy (2 attempts)" in reply.json()["error"]["message"]
    line = 'motab_upstream_retries_total{code="upstream_failed",upstream="only"} 1.0'
    assert line in metrics


async def test_connecting_is_not_retried_beneath_the_wait_for_servers(tmp_path: Path) -> None:
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 1}))
        up.on("POST", "/tokenize", DOWN)
        path = tmp_path / "motab.yaml"
        path.write_text(
            f"upstreams: {{only: {{kind: llamacpp, base_url: '{up.client.base_url}', model: m}}}}\n"
            "models: {pair: {student: only, teacher: only}}\n",
            encoding="utf-8",
        )
        with pytest.raises(UpstreamError, match=r"down$"):
            async with open_service(load_config(path)):
                pytest.fail("it serves without its upstream")
        assert [seen.path for seen in up.seen] == ["/props", "/tokenize"]


async def test_a_client_without_a_policy_retries_nothing() -> None:
    async with UpstreamClient("up", "http://127.0.0.1:1", None, 1, lambda *_: None) as client:
        assert client.retry is NO_RETRIES
