"""Writes OpenAI's chunks as raw bytes, and streams them in an ASGI answer."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from proxy.api.choices import FailedChoice, failures_of
from proxy.api.errors import as_motab_error, error_body, error_response
from proxy.api.shapes import Head, token_counts
from proxy.engine.usage import Usage

_log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
# A comment line: it keeps idle connections open, and every client skips it.
PING = b": ping\n\n"
PING_INTERVAL_S = 10.0
# More than a thousand tokens in chunks: the short pauses of a client that reads stop nobody, and
# hundreds of clients that do not read take little memory.
MOST_WAITING_BYTES = 256 * 1024
# What a send takes at once. Uvicorn waits while a connection has 64 KiB, so each send waits for a
# client's progress of about this size.
PART_BYTES = 16 * 1024


class ChunkWriter:
    """Writes a request's chunks. Their common part is encoded once."""

    def __init__(self, head: Head, *, include_usage: bool, continuous_usage: bool = False) -> None:
        kind = "chat.completion.chunk" if head.kind == "chat" else "text_completion"
        common = {"id": head.id, "object": kind, "created": head.created, "model": head.model}
        self._chat = head.kind == "chat"
        self._start = b"data: " + orjson.dumps(common)[:-1] + b',"choices":['
        self._continuous_usage = continuous_usage
        # OpenAI: with include_usage every chunk but the last has a usage of null.
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def _choice(
        self, index: int, body: bytes, finish: bytes, usage: Usage | None, more: bytes = b""
    ) -> bytes:
        end = self._end
        if self._continuous_usage and usage is not None:
            end = b'],"usage":%s}\n\n' % orjson.dumps(
                token_counts(usage.prompt_tokens, usage.completion_tokens)
            )
        return b'%s{"index":%d,%s,"logprobs":null,"finish_reason":%s%s}%s' % (
            self._start,
            index,
            body,
            finish,
            more,
            end,
        )

    def role(self, index: int, usage: Usage) -> bytes:
        """A chat choice begins; nothing for text completions."""
        if not self._chat:
            return b""
        return self._choice(index, b'"delta":{"role":"assistant","content":""}', b"null", usage)

    def text(self, index: int, text: str, usage: Usage) -> bytes:
        """More of a choice's text."""
        encoded = orjson.dumps(text)
        body = b'"delta":{"content":%s}' % encoded if self._chat else b'"text":%s' % encoded
        return self._choice(index, body, b"null", usage)

    def finish(self, index: int, reason: str, trace: dict[str, Any] | None, usage: Usage) -> bytes:
        """A choice ends; its trace comes with it."""
        body = b'"delta":{}' if self._chat else b'"text":""'
        more = b"" if trace is None else b',"motab":' + orjson.dumps(trace)
        return self._choice(index, body, orjson.dumps(reason), usage, more)

    def failed(self, failed: FailedChoice) -> bytes:
        """A choice failed: it gets no `finish_reason`, because OpenAI has none for it."""
        body = b'"delta":{}' if self._chat else b'"text":""'
        chunk = self._choice(failed.index, body, b"null", None).removesuffix(b"}\n\n")
        return chunk + b',"motab":' + orjson.dumps(failures_of([failed])) + b"}\n\n"

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk without choices that `include_usage` asks for."""
        return self._start + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """An event of motab's own, for clients that asked for `events`."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


class Outbox:
    """Holds a stream's bytes until the client takes them. It is full while many wait."""

    def __init__(self, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._most_bytes = most_bytes
        self._items: deque[bytes] = deque()
        self._num_bytes = 0
        self._num_sending = 0
        self._end: Exception | None = None
        self._has_ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_full(self) -> bool:
        return not self._room.is_set()

    async def has_room(self) -> None:
        await self._room.wait()

    def put(self, chunk: bytes) -> None:
        """Add bytes. Never blocks: whoever writes much looks at `is_full`."""
        self._items.append(chunk)
        self._num_bytes += len(chunk)
        if self._num_bytes > self._most_bytes:
            self._room.clear()
        self._news.set()

    def end(self, error: Exception | None = None) -> None:
        """End the stream, after the bytes that wait."""
        self._end, self._has_ended = error, True
        self._news.set()

    async def next(self) -> bytes | Exception | None:
        """The bytes that wait, up to a part's size and at least one chunk; the end once none wait.

        The bytes of the last call count as taken.
        """
        self._num_bytes -= self._num_sending
        self._num_sending = 0
        if self._num_bytes <= self._most_bytes // 2:
            self._room.set()
        if not self._items and not self._has_ended:
            self._news.clear()
            await self._news.wait()
        parts: list[bytes] = []
        while self._items and self._num_sending < PART_BYTES:
            parts.append(self._items.popleft())
            self._num_sending += len(parts[-1])
        return b"".join(parts) if parts else self._end


class EventStream(Response):
    """Sends the output of `produce` until it returns; cancels it when the client leaves, or reads
    nothing for `stall_timeout_s`.

    `produce` gets an outbox whose `put` never blocks. An error that it raises before any output
    becomes an ordinary error response; a later error becomes the last event.
    """

    def __init__(
        self,
        produce: Callable[[Outbox], Awaitable[None]],
        headers: dict[str, str],
        *,
        stall_timeout_s: float,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", **headers}
        )
        del self.headers["content-length"]
        self._produce = produce
        self._ping_interval_s = ping_interval_s
        self._stall_timeout_s = stall_timeout_s
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outbox = Outbox()
        async with asyncio.TaskGroup() as group:
            producer = group.create_task(self._run(outbox))
            sender = group.create_task(self._send(outbox, scope, receive, send))
            leaving = group.create_task(until_disconnected(receive))
            stalled = group.create_task(self._until_stalled())
            await asyncio.wait({sender, leaving, stalled}, return_when=asyncio.FIRST_COMPLETED)
            if stalled.done():
                producer.cancel()
                _log.warning(
                    "the client read nothing for %g s: its request ends", self._stall_timeout_s
                )
                if abort := scope.get("state", {}).get("abort"):
                    # Closing the connection would wait until the client has read the rest.
                    abort()
                    await leaving
            for task in (producer, sender, leaving, stalled):
                task.cancel()

    async def _run(self, outbox: Outbox) -> None:
        try:
            await self._produce(outbox)
        except Exception as error:  # noqa: BLE001 - the client gets any error
            outbox.end(error)
        else:
            outbox.end()

    async def _until_stalled(self) -> None:
        """Return when one part has been on its way to the client for too long.

        One timer for all parts, because a timer for each costs more than the sending.
        """
        clock = asyncio.get_running_loop().time
        left = self._stall_timeout_s
        while left > 0:
            await asyncio.sleep(left)
            since = clock() if self._sending_since is None else self._sending_since
            left = since + self._stall_timeout_s - clock()

    async def _send(self, outbox: Outbox, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        while True:
            item = await self._next(outbox)
            if isinstance(item, Exception) and not started:
                await error_response(as_motab_error(item))(scope, receive, send)
                return
            if not started:
                await send(self._head())
                started = True
            if item is None:
                await self._send_parts(b"", send, more=False)
                return
            if isinstance(item, Exception):
                last = b"data: %s\n\n" % orjson.dumps(error_body(as_motab_error(item)))
                await self._send_parts(last, send, more=False)
                return
            await self._send_parts(item, send, more=True)

    async def _send_parts(self, content: bytes, send: Send, *, more: bool) -> None:
        """Send a large content in parts, so that a slow client makes progress that can be seen."""
        clock = asyncio.get_running_loop().time
        for start in range(0, max(1, len(content)), PART_BYTES):
            end = start + PART_BYTES
            self._sending_since = clock()
            await send(_body(content[start:end], more=more or end < len(content)))
        self._sending_since = None

    async def _next(self, outbox: Outbox) -> bytes | Exception | None:
        """The outbox's next item, or a comment if there is none for a while."""
        try:
            async with asyncio.timeout(self._ping_interval_s):
                return await outbox.next()
        except TimeoutError:
            return PING

    def _head(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }


async def until_disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(content: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}
