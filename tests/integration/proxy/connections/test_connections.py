"""Tests the packets that one connection sends."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from proxy.serving.connection import Connection
from proxy.serving.serve import Server
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import CHAT, chat, service_of
from tests.support.scripted import ScriptedBackend, says


class Wire(asyncio.Transport):
    """One client's connection, and the packets that are sent on it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.packets = asyncio.Queue[bytes]()
        self.closed = False
        config.load()
        protocol_class: Any = config.http_protocol_class
        self.protocol: asyncio.Protocol = protocol_class(config, ServerState(), {})
        self.protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.packets.put_nowait(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    async def packet(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.packets.get()


_GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def nothing() -> None:
    pass


def in_two_parts(between: Callable[[], Coroutine[Any, Any, object]], **head: bytes) -> Config:
    """An app that sends its head, waits for `between`, and sends its body."""
    headers = [(name.encode(), value) for name, value in head.items()]

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await between()
        await send({"type": "http.response.body", "body": b"body"})

    return Config(app, http=Connection)


async def test_an_answers_head_and_its_body_are_one_packet() -> None:
    service = service_of(ScriptedBackend(says("x")))
    wire = Wire(Server(service, on_signals=False).config)
    body = json.dumps(chat(model="student/s")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    for _ in range(2):
        wire.protocol.data_received(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        packet = await wire.packet()
        assert packet.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(packet.partition(b"\r\n\r\n")[2])["object"] == "chat.completion"
    assert not wire.closed


async def test_a_head_does_not_wait_for_a_late_body() -> None:
    gate = asyncio.Event()
    wire = Wire(in_two_parts(gate.wait))
    wire.protocol.data_received(_GET)
    assert (await wire.packet()).endswith(b"\r\n\r\n")
    gate.set()
    assert await wire.packet() == b"4\r\nbody\r\n0\r\n\r\n"


async def test_a_head_is_sent_before_its_connection_is_closed() -> None:
    wire = Wire(in_two_parts(nothing, connection=b"close"))
    wire.protocol.data_received(_GET.replace(b"GET", b"HEAD"))
    assert (await wire.packet()).startswith(b"HTTP/1.1 200 OK\r\n")
    assert wire.closed


async def test_no_head_is_sent_to_a_client_that_has_left() -> None:
    async def leave() -> None:
        wire.close()
        wire.protocol.connection_lost(None)

    wire = Wire(in_two_parts(leave))
    wire.protocol.data_received(_GET)
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.packets.empty()
