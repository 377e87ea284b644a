"""Checks how long a request waits before it is sent again, and what the metrics count."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from proxy.backends.base import Call
from proxy.backends.transport.retry import RetryPolicy, parse_retry_after
from proxy.errors import UpstreamError, UpstreamFailed
from proxy.wiring.models import open_service
from tests.support.clock import Clock
from tests.support.proxy.api import in_process
from tests.support.replay import Replay, json_reply, replay, stream_reply
from tests.support.requests import BOTH, DOWN, OK, ONE_EVENT, QUICK, Send, busy, codes, post
from tests.support.servers.configured import one_upstream


@pytest.fixture
async def up() -> AsyncIterator[Replay]:
    async with replay(retry=QUICK) as playing:
        yield playing


@dataclass
class FakeSleep:
    """Does not wait, but remembers for how many seconds."""

    waits: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


async def asleep_for_ever(_: float) -> None:
    await asyncio.Event().wait()


async def test_no_attempt_begins_after_the_total_time(clock: Clock) -> None:
    async with replay(retry=replace(QUICK, attempts=1000, total_s=250)) as up:
        up.on("POST", "/call", clock.taking(100, DOWN))
        with pytest.raises(UpstreamFailed, match=r"\(3 attempts\)$"):
            await post(up)
        assert len(up.seen) == 3


async def test_the_total_time_begins_with_the_first_attempt(clock: Clock) -> None:
    async with replay(retry=QUICK) as up:
        up.on("POST", "/call", clock.taking(QUICK.total_s + 1, DOWN))
        with pytest.raises(UpstreamFailed):
            await post(up)
        assert len(up.seen) == 1


async def test_an_attempt_under_way_is_not_cut_off_by_the_total_time(clock: Clock) -> None:
    async with replay(retry=QUICK) as up:
        up.on("POST", "/call", clock.taking(QUICK.total_s + 1, OK))
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
    async with replay(retry=replace(QUICK, total_s=7200, sleep=sleep)) as up:
        date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
        up.on("POST", "/call", busy(503, date), OK)
        await post(up)
    (wait,) = sleep.waits
    assert 3000 < wait < 3600.1


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


@BOTH
async def test_cancelling_during_the_back_off_ends_at_once(send: Send) -> None:
    backing_off = asyncio.Event()

    async def sleep(_: float) -> None:
        backing_off.set()
        await asyncio.Event().wait()

    async with replay(retry=replace(QUICK, sleep=sleep)) as up:
        up.on("POST", "/call", DOWN)
        task = asyncio.ensure_future(send(up))
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


async def test_the_configuration_rules_and_the_metrics_count(tmp_path: Path) -> None:
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 1}))
        up.on("GET", "/health", json_reply({}))
        tokens = json_reply({"tokens": [5]})
        up.on("POST", "/tokenize", tokens, tokens, busy(503, "0"), busy(503, "0"), tokens)
        retries = {"attempts": 2, "total_s": 3600}
        config = one_upstream(up, tmp_path, "llamacpp", retries=retries)
        async with open_service(config) as service:
            async with in_process(service) as client:
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
        config = one_upstream(up, tmp_path, "llamacpp")
        with pytest.raises(UpstreamError, match=r"down$"):
            async with open_service(config):
                pytest.fail("it serves without its upstream")
        assert [seen.path for seen in up.seen] == ["/props", "/tokenize"]
