"""Answers whether the server is alive, from a thread that does not wait for the event loop.

A loop with hundreds of streams has a long queue, and a loop that is stuck answers nothing. So every
worker's loop leaves its pulse where this thread finds it, and the thread answers from that.
"""

import asyncio
import logging
import mmap
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, Self

_log = logging.getLogger(__name__)

STUCK_AFTER_S: Final = 30.0
"""Seconds without a beat after which a loop counts as stuck. A machine without time for us, or one
long call of a library, is not that slow."""
_BEAT_S: Final = 0.5
_TIMEOUT_S: Final = 2.0
_MOST_CLIENTS: Final = 128
_MOST_HEAD_BYTES: Final = 8192
_STAMP: Final = struct.Struct("d")
_PATHS: Final = {b"GET /health", b"HEAD /health"}

State = Literal["alive", "starting", "stuck"]


class Pulse:
    """The time of each worker's last beat, by the clock that all processes of a machine share.

    With a `path` the workers share the file; without it there is one process.
    """

    def __init__(self, num_workers: int = 1, path: Path | None = None) -> None:
        size = num_workers * _STAMP.size
        if path is None:
            self._stamps = mmap.mmap(-1, size)
        else:
            with path.open("a+b") as file:
                file.truncate(size)
                self._stamps = mmap.mmap(file.fileno(), size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stamps.close()

    @asynccontextmanager
    async def beating(self, worker: int = 0) -> AsyncIterator[None]:
        """Beat for `worker` as long as the running event loop takes its turns."""

        async def keep_beating() -> None:
            while True:
                await asyncio.sleep(_BEAT_S)
                self.beat(worker)

        self.beat(worker)
        task = asyncio.create_task(keep_beating())
        try:
            yield
        finally:
            task.cancel()
            self.clear(worker)

    def beat(self, worker: int) -> None:
        """The worker's loop takes a turn."""
        self._put(worker, time.monotonic())

    def clear(self, worker: int) -> None:
        """Expect nothing of a worker that has ended."""
        self._put(worker, 0.0)

    def state(self) -> State:
        """Return `stuck` if any worker is, because the kernel keeps sending it connections."""
        beats = [beat for (beat,) in _STAMP.iter_unpack(self._stamps[:]) if beat]
        if not beats:
            return "starting"
        return "alive" if time.monotonic() - min(beats) < STUCK_AFTER_S else "stuck"

    def _put(self, worker: int, stamp: float) -> None:
        start = worker * _STAMP.size
        self._stamps[start : start + _STAMP.size] = _STAMP.pack(stamp)


@contextmanager
def answering(listener: socket.socket | None, pulse: Pulse) -> Iterator[None]:
    """Answer on a listener, if there is one, in a thread of its own, until the context ends."""
    if listener is None:
        yield
        return
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()
    answers = _Answers(pulse.state)
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(answers.serve(listener, ending)), name="health"
    )
    thread.start()
    _log.info("health is at port %d", listener.getsockname()[1])
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()


class _Answers:
    """Answers each client once. Nobody is known here, so everything is small and short."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket, ending: asyncio.Event) -> None:
        server = await asyncio.start_server(self._met, sock=listener, limit=_MOST_HEAD_BYTES)
        async with server:
            await ending.wait()
            for client in self._clients:
                client.cancel()

    def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _MOST_CLIENTS:
            writer.transport.abort()
            return
        client = asyncio.create_task(self._answer(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that sends no request, or leaves, gets no answer.
        unusable = (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        try:
            with suppress(*unusable):
                async with asyncio.timeout(_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._response(head))
                    await writer.drain()
        finally:
            writer.close()

    def _response(self, head: bytes) -> bytes:
        request = head.partition(b" HTTP/")[0].partition(b"?")[0]
        if request not in _PATHS:
            return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        state = self._state()
        status = b"200 OK" if state == "alive" else b"503 Service Unavailable"
        body = b'{"status":"%s"}' % state.encode()
        fields = b"content-type: application/json\r\ncontent-length: %d" % len(body)
        sent = body if request.startswith(b"GET") else b""
        return b"HTTP/1.1 %s\r\n%s\r\nconnection: close\r\n\r\n%s" % (status, fields, sent)
