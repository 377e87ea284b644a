"""Tests that a client that stops reading stops its trajectory, and in the end loses it."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import h11
import pytest
from starlette.types import Message, Scope

from proxy.api.service import Service
from proxy.api.sse import PART_BYTES, EventStream, Outbox
from proxy.backends.base import Call, Context, Draft, Sampling
from proxy.serving.serve import Server, listen
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import CHAT, chat, service_of
from tests.support.scripted import Script, ScriptedBackend, values

PIECE = "word " * 200
NUM_PIECES = 3_000
# Of which the outbox, the transport and the kernel may hold some.
MOST_PIECES = NUM_PIECES // 2
KERNEL_BYTES = 64 * 1024


@asynccontextmanager
async def silent_client(service: Service, **fields: object) -> AsyncIterator[asyncio.StreamReader]:
    """A client that has sent a request and reads only what the test reads."""
    body = json.dumps(chat(stream=True, **fields)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with listen("127.0.0.1", 0) as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        server = Server(service, on_signals=False)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        client.connect(listener.getsockname())
        reader, writer = await asyncio.open_connection(sock=client, limit=1)
        writer.write(head.encode() + body)
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield reader
        finally:
            writer.transport.abort()
            server.should_exit = True
            await serving


async def rest_of(reader: asyncio.StreamReader, *, pause_s: float = 0.0) -> bytes:
    """The body that comes until the connection is closed."""
    received = bytearray()
    while data := await reader.read(2**16):
        received += data
        await asyncio.sleep(pause_s)
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "motab")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(bytes(received))
    body = bytearray()
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Response | h11.Data)
        if isinstance(event, h11.Data):
            body += event.data
    return bytes(body)


def long_text() -> Script:
    return Script(tuple((PIECE,) for _ in range(NUM_PIECES)))


async def until_it_rests(backend: ScriptedBackend) -> int:
    """The number of pieces written, once no more are written for a while."""
    await backend.until_called("write")
    num = -1
    while num != len(backend.writes[-1].pieces):
        num = len(backend.writes[-1].pieces)
        await asyncio.sleep(0.5)
    return num


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_reads_nothing_stops_its_texts_and_gets_all_when_it_reads(
    n: int,
) -> None:
    student = ScriptedBackend(long_text())
    async with silent_client(service_of(student), model="student/s", n=n) as reader:
        assert 0 < await until_it_rests(student) < MOST_PIECES
        assert not student.writes[-1].closed.is_set()
        text = await rest_of(reader)
    assert text.endswith(b"data: [DONE]\n\n")
    assert text.count(PIECE.encode()) == n * NUM_PIECES
    assert all(writing.ended for writing in student.writes)


@pytest.mark.parametrize("busy", ["student", "teacher"])
async def test_a_client_that_never_reads_again_loses_its_trajectory(busy: str) -> None:
    drafts = Script((("A.\n\n",),)) if busy == "teacher" else long_text()
    student = ScriptedBackend(drafts)
    teacher = ScriptedBackend(long_text(), values({"A.\n\n": 0.01}))
    service = service_of(student, teacher, client_stall_timeout_s=1)
    writer = teacher if busy == "teacher" else student
    async with silent_client(service) as reader:
        await writer.until_called("write")
        await writer.writes[0].closed.wait()
        assert writer.writes[0].cancelled
        assert len(writer.writes[0].pieces) < MOST_PIECES
        # The server has closed the connection, and keeps nothing that waits.
        assert b"[DONE]" not in await reader.read()
        assert not service.admission.num_active


async def test_a_client_that_reads_slowly_is_no_client_that_has_stopped() -> None:
    service = service_of(ScriptedBackend(long_text()), client_stall_timeout_s=1)
    async with silent_client(service, model="student/s") as reader:
        text = await rest_of(reader, pause_s=0.05)
    assert text.count(PIECE.encode()) == NUM_PIECES


async def test_an_end_that_is_not_read_is_given_up_too() -> None:
    async def produce(outbox: Outbox) -> None:
        outbox.put(b"x" * 10 * PART_BYTES)  # and that is all

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 3:
            await asyncio.Event().wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope: Scope = {"type": "http"}
    async with asyncio.timeout(PATIENCE_S):
        await EventStream(produce, {}, stall_timeout_s=0.05)(scope, receive, send)
    assert [len(message["body"]) for message in sent[1:]] == [PART_BYTES] * 2


async def test_an_outbox_is_full_until_half_of_it_is_taken() -> None:
    outbox = Outbox(100)
    states: list[bool] = []
    for size in (60, 41):
        outbox.put(b"x" * size)
        states.append(outbox.is_full)
    waiting = asyncio.create_task(outbox.has_room())
    for size in (51, 50):
        assert await outbox.next()
        states.append(outbox.is_full)  # its bytes are on their way, and not yet taken
        outbox.put(b"x" * size)
    assert await outbox.next() == b"x" * 50
    states.append(outbox.is_full)
    assert states == [False, True, True, True, False]
    await waiting
    outbox.end()
    assert await outbox.next() is None


class Pausable(ScriptedBackend):
    """Stops at its gate, as a server's writer does."""

    num_pauses = 0

    async def write_gated(
        self, context: Context, sampling: Sampling, max_tokens: int, call: Call, gate: asyncio.Event
    ) -> AsyncGenerator[Draft]:
        async with aclosing(self.write(context, sampling, max_tokens, call)) as drafts:
            async for draft in drafts:
                yield draft
                self.num_pauses += not gate.is_set()
                await gate.wait()


async def test_a_server_that_can_be_stopped_is_stopped() -> None:
    student = Pausable(long_text())
    service = service_of(student)
    waits = []
    service.models["student/s"].pair.of("student").on_wait = lambda: waits.append("for a verdict")
    async with silent_client(service, model="student/s") as reader:
        assert 0 < await until_it_rests(student) < MOST_PIECES
        assert student.num_pauses
        text = await rest_of(reader)
    assert text.count(PIECE.encode()) == NUM_PIECES
    assert student.writes[0].ended
    assert not waits
