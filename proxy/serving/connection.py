"""Speaks HTTP on one connection of a client, within limits of size, number and time.

httptools reads heads and trailers of any size, and uvicorn waits for them without end. The limits
here hold before anything is known of the client.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

import orjson
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from proxy.api.errors import error_body
from proxy.errors import BadRequest, HeadTooLarge, RequestError, TooSlow
from proxy.serving.head_with_body import HeadWithBody

_log = logging.getLogger(__name__)

_WARN_AGAIN_S: Final = 60.0
# What a body's chunks need in addition to what they carry: five bytes for a chunk of one byte.
_FRAMING_FACTOR: Final = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a client gets on its connections."""

    connections: int = 2048
    """Open at once; one more closes the connection that has waited longest for a request."""
    head_bytes: int = 64 * 1024
    """Bytes of a request without its body: the head, trailers, and what separates chunks."""
    headers: int = 100
    pipelined: int = 16
    """Requests that may wait for the answer to an earlier request of the same connection."""
    head_s: float = 10.0
    """Seconds until a head is whole, from the connection or the head's first byte on."""
    body_s: float = 20.0
    """Seconds until a body is whole, and one more for every `body_bytes_per_s` that came."""
    body_bytes_per_s: int = 16 * 1024
    linger_s: float = 5.0
    """Seconds in which the rest of a request is read, and dropped, once it is answered. A client
    that still sends would otherwise lose the answer."""
    linger_bytes: int = 4 * 1024 * 1024
    stall_s: float = 120.0
    """Seconds in which a client may read nothing of an answer."""


@dataclass(slots=True)
class Arrivals:
    """The connections of one server that wait for a request's head, the longest wait first."""

    limits: Limits = field(default_factory=Limits)
    waiting: "dict[Connection, None]" = field(default_factory=dict)
    _warned_at: float | None = None

    def make_room(self, num_open: int, now: float) -> None:
        """Close the connection that has waited longest if there are too many."""
        if num_open <= self.limits.connections:
            return
        if self._warned_at is None or now - self._warned_at > _WARN_AGAIN_S:
            self._warned_at = now
            message = "%d connections are open, the most allowed: the ones that wait are closed"
            _log.warning(message, self.limits.connections)
        longest = next(iter(self.waiting))
        del self.waiting[longest]
        longest.transport.abort()


class Connection(HttpToolsProtocol):
    """Reads requests as they come, refuses those beyond the limits, and ends the slow ones."""

    transport: HeadWithBody

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._arrivals = arrivals or Arrivals()
        self._limits = self._arrivals.limits
        self._problem: RequestError | None = None
        self._refused = False
        # Of the message that is being read:
        self._in_message = self._in_head = False
        self._num_messages = 0
        self._num_headers = self._num_body_bytes = self._num_other_bytes = 0
        self._num_dropped_bytes = 0
        # Of the time that it may take:
        self._timer: asyncio.TimerHandle | None = None
        self._timed: tuple[int, bool] | None = None
        self._since = 0.0
        # Of a client that reads slowly:
        self._stall_timer: asyncio.TimerHandle | None = None
        self._num_unread: float = 0.0

    def connection_made(  # type: ignore[override]  # as uvicorn's own
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self.transport = HeadWithBody(transport, self.loop, self._lingers)
        self._arrivals.waiting[self] = None
        self._arrivals.make_room(len(self.connections), self.loop.time())
        self._timed = (0, True)
        self._start_timer(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._arrivals.waiting.pop(self, None)
        for timer in (self._timer, self._stall_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Read, in pieces that cannot hold more than the limits allow."""
        start = 0
        while start < len(data):
            if self.transport.is_closing():
                self._drop(len(data) - start)
                return
            end = start + max(1, self._allowed_bytes() - self._num_other_bytes)
            piece = data[start:end]
            self._read(piece)
            if self._num_other_bytes >= self._allowed_bytes() and not self.transport.is_closing():
                self._refuse(self._too_long())
            start = end
        self._watch()

    def _read(self, piece: bytes) -> None:
        """Parse a piece, and count its bytes that are no body."""
        was_in_message, num_messages = self._in_message, self._num_messages
        num_body_bytes = self._num_body_bytes
        super().data_received(piece)
        has_begun = self._num_messages != num_messages
        if not self._in_message and (was_in_message or has_begun):
            self._num_other_bytes = self._num_body_bytes = 0
        elif has_begun:  # the end of the message before, if it is in this piece, counts, too
            self._num_other_bytes = len(piece) - self._num_body_bytes
        else:
            self._num_other_bytes += len(piece) - (self._num_body_bytes - num_body_bytes)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._limits.pipelined:
            message = "too many requests were sent without waiting for an answer"
            self._problem = BadRequest(message)
            raise self._problem
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._num_messages += 1
        self._num_headers = self._num_body_bytes = 0
        self.scope["state"]["abort"] = self.transport.abort

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > self._limits.headers:
            self._problem = HeadTooLarge(f"there are more than {self._limits.headers} headers")
            raise self._problem
        if self._in_head:  # no trailer, which nothing here reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._arrivals.waiting.pop(self, None)
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # No other protocol is spoken here, and the parser reads nothing after such a request.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        if self.cycle.response_complete:
            self._drop(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if not self.pipeline:
            self._arrivals.waiting[self] = None
        if self._is_answered_early():
            self._start_timer(self._limits.linger_s)

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses, or what a callback of this class did."""
        self._refuse(self._problem or BadRequest(msg))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._num_unread = float("inf")
        self._stall_timer = self.loop.call_later(self._limits.stall_s, self._check_stall)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _allowed_bytes(self) -> int:
        """The bytes of this message that may be anything but body."""
        return self._limits.head_bytes + _FRAMING_FACTOR * self._num_body_bytes

    def _too_long(self) -> RequestError:
        if self._in_message and not self._in_head:
            return BadRequest("the body's chunks need far more bytes than they carry")
        return HeadTooLarge(f"the request's head is larger than {self._limits.head_bytes} bytes")

    def _cycle_if_any(self) -> RequestResponseCycle | None:
        """Return the newest request; uvicorn's own type leaves out that there may be none."""
        return self.cycle

    def _is_answering(self) -> bool:
        """Return whether an earlier request of this connection is not answered yet."""
        if not self._in_message or self._in_head:
            cycle = self._cycle_if_any()
            return cycle is not None and not cycle.response_complete
        return bool(self.pipeline)

    def _is_answered_early(self) -> bool:
        """Return whether the request has its answer before all of it came."""
        if not self._in_message:
            return self._refused
        return self._refused or (not self._in_head and self.cycle.response_complete)

    def _refuse(self, error: RequestError) -> None:
        """Answer, if the answer cannot be taken for another request's, and close."""
        self._refused = True
        cycle = self._cycle_if_any()
        if self._is_answering():
            self.transport.abort()
            return
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        content = orjson.dumps(error_body(error))
        head = (
            STATUS_LINE[error.status],
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(content),
            b"connection: close\r\n\r\n",
        )
        self.transport.write(b"".join(head))
        self.transport.write(content)
        self.transport.close()

    def _lingers(self) -> bool:
        """Return whether the rest of the request is read before the connection closes."""
        if not self._is_answered_early():
            return False
        self._arrivals.waiting[self] = None
        self.flow.resume_reading()
        self._start_timer(self._limits.linger_s)
        return True

    def _drop(self, num_bytes: int) -> None:
        self._num_dropped_bytes += num_bytes
        if self._num_dropped_bytes > self._limits.linger_bytes:
            self.transport.abort()

    def _watch(self) -> None:
        """Keep a timer for what is not whole yet. A request that came as a whole needs none."""
        if self.transport.is_closing():
            return
        timed = None
        if self._in_message or self._num_other_bytes:
            timed = (self._num_messages, self._in_head or not self._in_message)
        if timed == self._timed:
            return
        self._timed = timed
        if timed is not None:
            self._start_timer(self._limits.head_s if timed[1] else self._limits.body_s)
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.timeout_keep_alive_task is None and not self._is_answering():
            # The request was answered before its end, which has stopped uvicorn's own timer.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._since = self.loop.time()
        self._timer = self.loop.call_later(seconds, self._end_of_time)

    def _end_of_time(self) -> None:
        if self.transport.is_closing() or self._is_answered_early():
            self.transport.abort()
        elif self._is_answering():  # it waits for us
            self._start_timer(self._limits.head_s)
        elif not self._in_message:
            self.transport.close()
        elif self._in_head:
            message = f"the request's head did not come within {self._limits.head_s:g} s"
            self._refuse(TooSlow(message))
        else:
            earned_s = self._num_body_bytes / self._limits.body_bytes_per_s
            end = self._since + self._limits.body_s + earned_s
            if end > self.loop.time():
                self._timer = self.loop.call_at(end, self._end_of_time)
                return
            self._refuse(TooSlow("the body comes too slowly"))

    def _check_stall(self) -> None:
        num_unread = self.transport.get_write_buffer_size()
        if num_unread >= self._num_unread:
            _log.warning("a client read nothing for %g s: it is dropped", self._limits.stall_s)
            self.transport.abort()
            return
        self._num_unread = num_unread
        self._stall_timer = self.loop.call_later(self._limits.stall_s, self._check_stall)


def connecting(limits: Limits) -> type[asyncio.Protocol]:
    """Return what makes a server's connections, for uvicorn's setting `http`."""
    made: Any = partial(Connection, arrivals=Arrivals(limits))  # uvicorn only calls it
    return cast("type[asyncio.Protocol]", made)
