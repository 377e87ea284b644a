"""Serves HTTP/1.1 for simulators, with little cost: about ten microseconds per event."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import httptools

_log = logging.getLogger(__name__)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_JSON_HEAD = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

Handler = Callable[[str, bytes, "Reply"], Awaitable[None]]
"""Answers a path and a body; it is cancelled when the client leaves."""


class Reply:
    """The answer to one request: either `json` or a stream of events."""

    def __init__(self, transport: asyncio.Transport, room: asyncio.Event) -> None:
        """`room` is set while the client reads what is sent."""
        self._transport = transport
        self._room = room

    def json(self, body: bytes, status: int = 200) -> None:
        """Send the whole answer."""
        self._transport.write(_JSON_HEAD % (status, len(body)) + body)

    def begin(self) -> None:
        """Send the head of a stream."""
        self._transport.write(_STREAM_HEAD)

    async def event(self, payload: bytes) -> None:
        """Send one server-sent event, once the client has read most of the earlier ones."""
        await self._room.wait()
        self._transport.write(b"%x\r\ndata: %s\n\n\r\n" % (len(payload) + 8, payload))

    def end(self) -> None:
        """End a stream as OpenAI's servers do."""
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


class _Connection(asyncio.Protocol):
    """One client's connection; its requests come one after another."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio's class, but are not its subclasses.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    # httptools calls these methods.
    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._transport is None:
            return
        path, body = self._path.decode(), b"".join(self._body)
        self._path, self._body = b"", []
        reply = Reply(self._transport, self._room)
        self._task = asyncio.get_running_loop().create_task(self._answer(path, body, reply))

    async def _answer(self, path: str, body: bytes, reply: Reply) -> None:
        try:
            await self._handler(path, body, reply)
        except Exception:  # noqa: BLE001 - a fault of the simulator; its client sees it, too
            _log.exception("%s failed", path)
            if self._transport is not None:
                self._transport.abort()


async def serve_http(handler: Handler, listener: socket.socket) -> None:
    """Serve until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(handler), sock=listener, backlog=4096)
    async with server:
        await server.serve_forever()
