"""A scripted upstream: a real HTTP server on a free port that plays back recorded bytes."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from proxy.backends.base import Call, Draft, Message, Question, Sampling
from proxy.backends.transport.http import UpstreamClient
from proxy.backends.transport.retry import NO_RETRIES, RetryPolicy
from tests.support.paths import GOLDEN
from tests.support.patience import PATIENCE_S

MAX_CONNECTIONS = 8
# What the backends' tests ask for.
CALL = Call("trajectory-7")
GREEDY = Sampling(temperature=0.0)
QUESTION = Question((Message("user", "What is 7+5?"),))


@dataclass(frozen=True, slots=True)
class Recording:
    """The requests to one version of a server and its answers, from tests/golden."""

    version: str

    def body(self, name: str) -> bytes:
        (path,) = (GOLDEN / self.version).glob(f"{name}.body.*")
        return path.read_bytes()

    def json(self, name: str) -> Any:
        return orjson.loads(self.body(name))

    def events(self, name: str) -> list[Any]:
        """The stream's events, without [DONE]."""
        lines = self.body(name).splitlines()
        return [orjson.loads(line[6:]) for line in lines if line.startswith(b"data: {")]

    def request(self, name: str) -> Any:
        return orjson.loads((GOLDEN / self.version / f"{name}.request.json").read_bytes())

    def edited(self, name: str, edit: Callable[[list[Any]], object]) -> bytes:
        """The stream after `edit` of its list of events."""
        events = self.events(name)
        edit(events)
        lines = [b"data: " + orjson.dumps(event) for event in events]
        if self.body(name).rstrip().endswith(b"data: [DONE]"):
            lines.append(b"data: [DONE]")
        return b"".join(line + b"\n\n" for line in lines)

    def answering(self, *names: str) -> "Answer":
        """Answers these requests, and no others."""

        def answer(seen: Seen) -> Reply:
            for name in names:
                if self.request(name) == seen.body:
                    return json_reply(self.body(name))
            return json_reply({"error": f"not recorded: {seen.body}"}, 404)

        return answer


@dataclass(frozen=True, slots=True)
class Reply:
    """After `drop_after` chunks the connection is cut; `hold` keeps it open for ever.

    Nothing is sent before `after` is set; each chunk takes a permit of `permits`.
    """

    chunks: tuple[bytes, ...] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop_after: int | None = None
    hold: bool = False
    after: asyncio.Event | None = None
    permits: asyncio.Semaphore | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    connection: int
    """The client's port: requests on one connection have the same."""
    path: str
    headers: Mapping[str, str]
    body: Any


Answer = Callable[[Seen], Reply]


class Replay:
    """A server that answers each (method, path) with its replies, one a request; the last one
    serves all more. It has a client, and keeps what that client's observer saw.

    `came` is set once a request is there, `left` once a client went away before its answer ended.
    """

    def __init__(self, base_url: str, api_key: str | None, retry: RetryPolicy) -> None:
        self.observed: list[tuple[str, str, float, str]] = []
        self.retried: list[tuple[str, str]] = []
        self.client = UpstreamClient(
            "up",
            base_url,
            api_key,
            MAX_CONNECTIONS,
            lambda *event: self.observed.append(event),
            retry,
            lambda *event: self.retried.append(event),
        )
        self.seen: list[Seen] = []
        self.came, self.left = asyncio.Event(), asyncio.Event()
        self._arrival = asyncio.Condition()
        self._script: dict[tuple[str, str], list[Answer]] = {}

    def on(self, method: str, path: str, *replies: Reply | Answer) -> None:
        answers = (r if callable(r) else (lambda _, reply=r: reply) for r in replies)
        self._script[method, path] = list(answers)

    def bodies(self, path: str) -> list[Any]:
        return [seen.body for seen in self.seen if seen.path == path]

    async def until_seen(self, num_requests: int) -> None:
        async with asyncio.timeout(PATIENCE_S), self._arrival:
            await self._arrival.wait_for(lambda: len(self.seen) >= num_requests)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        assert request.transport is not None
        port: int = request.transport.get_extra_info("peername")[1]
        body = orjson.loads(content) if content else None
        seen = Seen(port, request.path, request.headers, body)
        async with self._arrival:
            self.seen.append(seen)
            self._arrival.notify_all()
        answers = self._script.get((request.method, request.path))
        if not answers:
            return web.Response(status=404, text=f"nothing is scripted for {request.path}")
        reply = (answers.pop(0) if len(answers) > 1 else answers[0])(seen)
        self.came.set()
        try:
            return await _play(reply, request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise


async def _play(reply: Reply, request: web.Request) -> web.StreamResponse:
    if reply.after is not None:
        await reply.after.wait()
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    for index, chunk in enumerate((*reply.chunks, b"")):
        if reply.permits is not None:
            await reply.permits.acquire()
        if reply.drop_after == index and request.transport is not None:
            request.transport.abort()
            return response
        if index == 0:
            await response.prepare(request)
        await response.write(chunk)
        for _ in range(4):  # turns of the event loop, in which the other end reads the chunk
            await asyncio.sleep(reply.delay_s / 4)
    if reply.hold:
        await asyncio.Event().wait()
    return response


@asynccontextmanager
async def replay(
    api_key: str | None = None, retry: RetryPolicy = NO_RETRIES
) -> AsyncIterator[Replay]:
    app = web.Application(client_max_size=2**24)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        replaying = Replay(url, api_key, retry)
        app.router.add_route("*", "/{path:.*}", replaying.handle)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            async with replaying.client:
                yield replaying
        finally:
            await runner.cleanup()


def json_reply(value: Any, status: int = 200) -> Reply:
    content = value if isinstance(value, bytes) else orjson.dumps(value)
    return Reply((content,), status, {"content-type": "application/json"})


def stream_reply(
    *chunks: bytes,
    drop_after: int | None = None,
    hold: bool = False,
    after: asyncio.Event | None = None,
) -> Reply:
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return Reply(chunks, 200, headers, drop_after=drop_after, hold=hold, after=after)


def cut(content: bytes, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(1, len(content)), draw.randint(1, 40)))
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def pieces_of(drafts: list[Draft]) -> list[str]:
    return [piece for draft in drafts for piece in draft.pieces]


def text_of(drafts: list[Draft]) -> str:
    return "".join(pieces_of(drafts))
