"""Tests the limits that hold before a request is known: sizes, numbers and times of connections."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from proxy.serving.connection import Limits
from proxy.serving.serve import connections_that_fit
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import CHAT, over_http, service_of
from tests.support.scripted import ScriptedBackend, says

GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
OPEN_GET = GET.removesuffix(b"\r\n")
POST = (
    f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    "authorization: Bearer key\r\n"
).encode()
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
LONG = 2**20


class Raw:
    """A connection on which a test sends any bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def flood(self, num_bytes: int) -> None:
        for _ in range(num_bytes // LONG):
            self.writer.write(b" " * LONG)
            await self.writer.drain()

    async def answer(self) -> bytes:
        """One answer, its head and its body of a known length."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return head + await self.reader.readexactly(length)

    async def status(self) -> int:
        return int((await self.answer()).split(b" ", 2)[1])

    async def rest(self) -> bytes:
        """Everything until the server closes, or resets the connection because more came."""
        read = b""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                while piece := await self.reader.read(LONG):
                    read += piece
        return read


@asynccontextmanager
async def raw(client: httpx.AsyncClient) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    def limited(**limits: float) -> None:
        def made(**configured: Any) -> Limits:
            return Limits(**(configured | limits))

        monkeypatch.setattr("proxy.serving.serve.Limits", made)

    return limited


served = partial(over_http, service_of(ScriptedBackend(says("x"))))


@pytest.mark.parametrize(
    "sent",
    [
        OPEN_GET + b"a: b\r\n" * 200_000,
        OPEN_GET + b"a: " + b"b" * LONG,
        OPEN_GET + b"b" * LONG,
        b"GET /" + b"u" * LONG,
        OPEN_GET + b"a: b\r\n" * 100 + b"\r\n",
        OPEN_GET + b"a: " + b"b" * 66_000 + b"\r\n\r\n",
    ],
    ids=["headers", "value", "name", "url", "101 headers", "64 kB"],
)
async def test_a_head_that_is_too_large_is_a_431_and_the_end(sent: bytes) -> None:
    async with served() as client, raw(client) as connection:
        connection.send(sent)
        assert await connection.status() == 431
        assert await connection.rest() == b""


async def test_a_large_head_that_clients_may_send_is_taken() -> None:
    async with served() as client, raw(client) as connection:
        connection.send(OPEN_GET + b"a: bcd\r\n" * 98 + b"z: " + b"b" * 60_000 + b"\r\n\r\n")
        assert await connection.status() == 200
        connection.send(GET)
        assert await connection.status() == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"1;" + b"x" * LONG, 400),
        (b"1\r\n{\r\n0\r\n" + b"a: " + b"b" * LONG, 400),
        (b"1\r\n{\r\n0\r\n" + b"a: b\r\n" * 200_000, 431),
        (b"00000001\r\n{\r\n" * 100_000, 400),
    ],
    ids=["extension", "trailer", "trailers", "zeros"],
)
async def test_a_body_that_is_mostly_framing_is_refused(sent: bytes, status: int) -> None:
    async with served() as client, raw(client) as connection:
        connection.send(CHUNKED + sent)
        assert await connection.status() == status
        assert await connection.rest() == b""


async def test_a_body_in_chunks_of_one_byte_is_taken() -> None:
    async with served() as client, raw(client) as connection:
        connection.send(CHUNKED + b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n")
        assert b"not valid JSON" in await connection.answer()
        connection.send(GET)
        assert await connection.status() == 200


@pytest.mark.parametrize(
    ("server", "status"),
    [({"max_body_bytes": 100}, 413), ({"api_keys": ["another"]}, 401), ({"host": "::1"}, 403)],
)
@pytest.mark.parametrize("length", [b"content-length: 1000000000", b"transfer-encoding: chunked"])
async def test_after_a_refusal_the_rest_of_a_body_is_not_read(
    server: dict[str, Any], status: int, length: bytes
) -> None:
    async with over_http(service_of(ScriptedBackend(), **server)) as client, raw(client) as sender:
        post = POST.replace(b"localhost", b"rebound.example") if status == 403 else POST
        sender.send(post + length + b"\r\n\r\n1000\r\n" + b" " * 4096)
        answer = await sender.answer()
        assert int(answer.split(b" ", 2)[1]) == status
        assert b"connection: close\r\n" in answer
        with pytest.raises(ConnectionError):
            await sender.flood(30 * LONG)


async def test_a_client_that_waits_for_leave_to_send_is_refused_without_it() -> None:
    service = service_of(ScriptedBackend(), max_body_bytes=100)
    async with over_http(service) as client, raw(client) as connection:
        connection.send(POST + b"content-length: 1000\r\nexpect: 100-continue\r\n\r\n")
        assert await connection.status() == 413
        assert await connection.rest() == b""


async def test_an_answer_before_the_end_of_a_body_leaves_the_connection_open() -> None:
    async with served() as client, raw(client) as connection:
        connection.send(
            b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n1234"
        )
        assert await connection.status() == 404
        connection.send(b"56789" + GET)
        assert await connection.status() == 200


async def test_a_few_pipelined_requests_are_answered_and_many_are_not() -> None:
    async with served() as client, raw(client) as connection:
        connection.send(GET * 10)
        assert [await connection.status() for _ in range(10)] == [200] * 10
        connection.send(GET * 10_000)
        assert (await connection.rest()).count(b"HTTP/1.1 200") < 20


@pytest.mark.parametrize(
    ("start", "piece", "answered"),
    [
        (b"", b"", b""),
        (b"\r\n", b"\r\n", b""),
        (OPEN_GET, b"", b"HTTP/1.1 408 "),
        (OPEN_GET + b"a: ", b"b", b"HTTP/1.1 408 "),
        (POST + b"content-length: 4000\r\n\r\n", b"", b"HTTP/1.1 408 "),
        (POST + b"content-length: 4000\r\n\r\n", b" ", b"HTTP/1.1 408 "),
        (CHUNKED, b"1\r\n \r\n", b"HTTP/1.1 408 "),
        (CHUNKED + b"1;", b"x", b"HTTP/1.1 408 "),
        (
            b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4000\r\n\r\n",
            b" ",
            b"HTTP/1.1 404 ",
        ),
        (GET + b"\r\n", b"\r\n", b"HTTP/1.1 200 "),
        (GET + OPEN_GET + b"a: ", b"b", b"HTTP/1.1 200 "),
    ],
    ids=[
        *("nothing", "blank lines", "half a head", "slow head", "no body", "slow body", "chunks"),
        *("slow chunk", "answered", "blank lines later", "slow head later"),
    ],
)
async def test_a_request_that_does_not_come_ends(
    limit: Any, start: bytes, piece: bytes, answered: bytes
) -> None:
    limit(head_s=0.3, body_s=0.3, linger_s=0.3)
    async with served() as client, raw(client) as connection:
        connection.send(start)
        reading = asyncio.create_task(connection.rest())
        while not reading.done():
            await asyncio.wait({reading}, timeout=0.02)
            connection.send(piece)
        assert reading.result().startswith(answered)


async def test_a_slow_body_has_more_time_the_more_of_it_came(limit: Any) -> None:
    limit(body_s=0.5, body_bytes_per_s=1000)
    async with served() as client, raw(client) as connection:
        connection.send(POST + b"content-length: 2000\r\n\r\n")
        for _ in range(10):
            connection.send(b" " * 200)
            await asyncio.sleep(0.1)
        assert b"not valid JSON" in await connection.answer()


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[httpx.AsyncClient, Raw, asyncio.Event]]:
    """A server, and a connection whose answer comes once the event is set."""
    gate = asyncio.Event()
    student = ScriptedBackend(says(gate, "x"))
    body = b'{"model": "student/s", "messages": [{"role": "user", "content": "Q"}]}'
    async with over_http(service_of(student)) as client, raw(client) as busy:
        busy.send(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        await student.until_called("write")
        yield client, busy, gate


async def test_one_connection_too_many_closes_the_one_that_has_waited_longest(limit: Any) -> None:
    limit(connections=3)
    async with answering() as (client, busy, gate):
        async with raw(client) as first, raw(client) as second:
            second.send(OPEN_GET)
            async with raw(client) as third:
                assert await first.rest() == b""
                third.send(GET)
                assert await third.status() == 200
            second.send(b"\r\n")
            assert await second.status() == 200
        gate.set()
        assert await busy.status() == 200


async def test_what_is_no_request_is_never_the_answer_to_an_earlier_one() -> None:
    async with answering() as (_, connection, _):
        connection.send(b"no request\r\n\r\n")
        assert await connection.rest() == b""


async def test_after_an_offered_upgrade_the_connection_is_closed() -> None:
    upgrade = b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    async with served() as client, raw(client) as connection:
        connection.send(OPEN_GET + upgrade)
        answer = await connection.answer()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close\r\n" in answer
        assert await connection.rest() == b""


async def test_a_client_that_reads_nothing_of_any_answer_is_dropped(limit: Any) -> None:
    limit(stall_s=0.2)
    service = service_of(ScriptedBackend())
    service.metrics.render = lambda: b"x" * 30_000_000  # type: ignore[method-assign]
    get = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
    async with over_http(service) as client, raw(client) as connection:
        connection.send(get)
        await asyncio.sleep(1)
        assert len(await connection.rest()) < 30_000_000


@pytest.mark.parametrize(
    ("files", "wanted", "fitting", "raised"),
    [
        ((1024, 4096), 2048, 2048, 4096),
        ((1024, 2000), 2048, 1000, 2000),
        ((9000, 9000), 2048, 2048, None),
        ((1024, resource.RLIM_INFINITY), 2048, 2048, 4096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 2048, 2048, None),
    ],
)
def test_clients_get_half_of_the_files_that_the_process_may_open(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: tuple[int, int],
    wanted: int,
    fitting: int,
    raised: int | None,
) -> None:
    found: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: files)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: found.append(limits[0]))
    assert connections_that_fit(wanted) == fitting
    assert found == ([] if raised is None else [raised])
    assert ("ulimit -n" in caplog.text) == (fitting < wanted)
