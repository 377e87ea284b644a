"""Sends requests and streams to the scripted server and collects their outcomes."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from proxy.backends.base import Call, Context, Draft, Sampling, Segment
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.resume import ResumingWriter
from proxy.backends.transport.retry import RetryPolicy
from tests.support.replay import Replay, Reply, json_reply, stream_reply
from tests.support.scripted import ScriptedBackend

QUICK = RetryPolicy(attempts=4, total_s=60, first_s=0.001)
OK = json_reply({"ok": True})
DOWN = json_reply(b"down", 500)
ONE_EVENT, OTHER_EVENT = b'data: {"n":1}\n\n', b'data: {"n":2}\n\n'
Send = Callable[[Replay], Awaitable[object]]
TWO_EVENTS = b'data: {"n":1}\n\ndata: {"n":2}\n\n'


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


BOTH = pytest.mark.parametrize("send", [post, stream])


def busy(status: int, retry_after: str) -> Reply:
    return Reply((b"busy",), status, {"retry-after": retry_after})


def codes(up: Replay) -> list[str]:
    return [code for *_, code in up.observed]


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
