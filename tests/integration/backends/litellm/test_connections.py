"""Tests that hosted upstreams, which share litellm's connections, do not close each other's."""

import asyncio

from tests.support.replay import CALL, GREEDY, Replay, stream_reply, text_of
from tests.support.servers import litellm

pytestmark = litellm.OWN_WARNINGS


async def test_an_upstream_that_closes_breaks_no_stream_of_another(
    up: Replay, hosted: litellm.Hosted
) -> None:
    go_on = asyncio.Event()
    begun, rest = litellm.chunk('{"content":"12 "}'), litellm.chunk('{"content":"+ 30"}', '"stop"')
    up.on("POST", litellm.CHAT, stream_reply(begun, rest, litellm.DONE, after=go_on))
    first, second = hosted(), hosted(litellm.OPENAI)
    writing = first.write(litellm.context(), GREEDY, 60, CALL)

    async def read() -> str:
        return text_of([draft async for draft in writing])

    reading = asyncio.create_task(read())
    await up.came.wait()
    await second.aclose()
    go_on.set()
    assert await reading == "12 + 30"
    # The other one's next request works as well.
    assert text_of(await litellm.drafts_of(first, litellm.context())) == "12 + 30"


async def test_the_last_upstream_closes_the_connections(up: Replay, hosted: litellm.Hosted) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.chunk('{"content":"x"}', '"stop"')))
    first, second = hosted(), hosted()
    await litellm.drafts_of(first, litellm.context())
    clients = dict(litellm.connections())
    assert clients
    await first.aclose()
    assert litellm.connections() == clients
    await second.aclose()
    assert litellm.connections() == {}
