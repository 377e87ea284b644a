"""Writes OpenAI's chunks as raw bytes, and streams them in an ASGI answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from proxy.api.errors import as_motab_error, error_body, error_response
from proxy.api.shapes import Head

DONE = b"data: [DONE]\n\n"
# A comment line: it keeps idle connections open, and every client skips it.
PING = b": ping\n\n"
PING_INTERVAL_S = 10.0


class ChunkWriter:
    """Writes a request's chunks. Their common part is encoded once."""

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        kind = "chat.completion.chunk" if head.kind == "chat" else "text_completion"
        common = {"id": head.id, "object": kind, "created": head.created, "model": head.model}
        self._chat = head.kind == "chat"
        self._start = b"data: " + orjson.dumps(common)[:-1] + b',"choices":['
        # OpenAI: with include_usage every chunk but the last has a usage of null.
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def _choice(self, index: int, body: bytes, finish: bytes, more: bytes = b"") -> bytes:
        return b'%s{"index":%d,%s,"logprobs":null,"finish_reason":%s%s}%s' % (
            self._start,
            index,
            body,
            finish,
            more,
            self._end,
        )

    def role(self, index: int) -> bytes:
        """A chat choice begins; nothing for text completions."""
        if not self._chat:
            return b""
        return self._choice(index, b'"delta":{"role":"assistant","content":""}', b"null")

    def text(self, index: int, text: str) -> bytes:
        """More of a choice's text."""
        encoded = orjson.dumps(text)
        body = b'"delta":{"content":%s}' % encoded if self._chat else b'"text":%s' % encoded
        return self._choice(index, body, b"null")

    def finish(self, index: int, reason: str, trace: dict[str, Any] | None) -> bytes:
        """A choice ends; its trace comes with it."""
        body = b'"delta":{}' if self._chat else b'"text":""'
        more = b"" if trace is None else b',"motab":' + orjson.dumps(trace)
        return self._choice(index, body, orjson.dumps(reason), more)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk without choices that `include_usage` asks for."""
        return self._start + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """An event of motab's own, for clients that asked for `events`."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


class EventStream(Response):
    """Sends the output of `produce` until it returns; cancels it when the client leaves.

    `produce` gets a function that takes bytes and never blocks. An error that it raises before any
    output becomes an ordinary error response; a later error becomes the last event.
    """

    def __init__(
        self,
        produce: Callable[[Callable[[bytes], None]], Awaitable[None]],
        headers: dict[str, str],
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", **headers}
        )
        del self.headers["content-length"]
        self._produce = produce
        self._ping_interval_s = ping_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outbox: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            producer = group.create_task(self._run(outbox))
            sender = group.create_task(self._send(outbox, scope, receive, send))
            leaving = group.create_task(until_disconnected(receive))
            await asyncio.wait({sender, leaving}, return_when=asyncio.FIRST_COMPLETED)
            for task in (producer, sender, leaving):
                task.cancel()

    async def _run(self, outbox: "asyncio.Queue[bytes | Exception | None]") -> None:
        try:
            await self._produce(outbox.put_nowait)
        except Exception as error:  # noqa: BLE001 - the client gets any error
            outbox.put_nowait(error)
        else:
            outbox.put_nowait(None)

    async def _send(
        self,
        outbox: "asyncio.Queue[bytes | Exception | None]",
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
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
                await send(_body(b"", more=False))
                return
            if isinstance(item, Exception):
                last = b"data: %s\n\n" % orjson.dumps(error_body(as_motab_error(item)))
                await send(_body(last, more=False))
                return
            await send(_body(item, more=True))

    async def _next(
        self, outbox: "asyncio.Queue[bytes | Exception | None]"
    ) -> bytes | Exception | None:
        """The next item; all bytes that are waiting go out together."""
        try:
            async with asyncio.timeout(self._ping_interval_s):
                item = await outbox.get()
        except TimeoutError:
            return PING
        if not isinstance(item, bytes):
            return item
        parts = [item]
        while not outbox.empty():
            following = outbox.get_nowait()
            if not isinstance(following, bytes):
                # The end of the stream is put back into the queue, which is empty.
                outbox.put_nowait(following)
                break
            parts.append(following)
        return b"".join(parts)

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
