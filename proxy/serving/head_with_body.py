"""Sends an answer's head and the body that is ready with it as one packet.

Uvicorn writes the one and then the other, and the first wakes the client for nothing.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_HEAD: Final = b"HTTP/1.1 "  # how uvicorn begins an answer's


class HeadWithBody(asyncio.Transport):
    """Takes what uvicorn writes of an answer; flow control stays with the transport.

    `lingers` says, when the connection is to be closed, whether the client is still sending; then
    only this side is closed.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        lingers: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._lingers = lingers
        self._head: bytes | bytearray | memoryview | None = None
        self._is_half_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep a head until more is written, at the longest until the loop has its next turn."""
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines([head, data])
        elif data[: len(_HEAD)] == _HEAD:
            self._head = data
            self._loop.call_soon(self._send_head)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close, once all is sent."""
        self._send_head()
        if self._is_half_closed or self._transport.is_closing():
            return
        if self._lingers():
            self._is_half_closed = True
            self._transport.write_eof()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what is not sent yet is lost."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Nothing more can be sent."""
        return self._is_half_closed or self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def _send_head(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)
