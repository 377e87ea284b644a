"""Tests that no reading of an ambiguous request makes two requests of it."""

import asyncio
import random
from contextlib import suppress
from typing import Final

import httpx

from tests.chaos.campaign import Campaign
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import CHAT, over_http, samples_of, service_of
from tests.support.scripted import ScriptedBackend, says

HOST: Final = b"host: localhost\r\n"
POST: Final = b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + HOST
JSON: Final = b"content-type: application/json\r\n"
HIDDEN: Final = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
"""The request that a second reading finds. Its answer would be a second one."""
LENGTH: Final = str(len(HIDDEN)).encode()
CHUNKED: Final = b"transfer-encoding: chunked\r\n"
CHUNKS: Final = b"0\r\n\r\n" + HIDDEN


def sized(size: bytes, *more: bytes) -> bytes:
    return POST + JSON + b"".join(more) + b"content-length: " + size + b"\r\n\r\n"


def encoded(line: bytes) -> bytes:
    return POST + JSON + line + b"content-length: " + LENGTH + b"\r\n\r\n" + CHUNKS


FORMS: Final[dict[str, bytes]] = {
    "CL.TE: a length of more than the chunks": sized(b"%d" % len(CHUNKS), CHUNKED) + CHUNKS,
    "TE.CL: a length of less than the chunks": sized(b"4", CHUNKED) + b"5c\r\n" + HIDDEN,
    "TE.TE: chunked twice": encoded(CHUNKED + CHUNKED),
    "TE.TE: chunked and something else": encoded(CHUNKED + b"transfer-encoding: cow\r\n"),
    "a coding that is not chunked": encoded(b"transfer-encoding: xchunked\r\n"),
    "chunked before another coding": encoded(b"transfer-encoding: chunked, identity\r\n"),
    "a vertical tab before chunked": encoded(b"transfer-encoding:\x0bchunked\r\n"),
    "a space before the colon": encoded(b"transfer-encoding : chunked\r\n"),
    "a folded line": encoded(b"transfer-encoding:\r\n chunked\r\n"),
    "a header behind a bare CR": encoded(b"x: y\rtransfer-encoding: chunked\r\n"),
    "a header behind a bare LF": encoded(b"x: y\ntransfer-encoding: chunked\r\n"),
    "a header behind a NUL": encoded(b"x: y\x00\r\ntransfer-encoding: chunked\r\n"),
    "two lengths": sized(LENGTH, b"content-length: 0\r\n") + HIDDEN,
    "two lengths in a line": sized(LENGTH + b", 0") + HIDDEN,
    "a negative length": sized(b"-1") + HIDDEN,
    "a length with a plus": sized(b"+" + LENGTH) + HIDDEN,
    "a length in hexadecimal": sized(b"0x10") + HIDDEN,
    "a length with an underscore": sized(b"1_0") + HIDDEN,
    "a length beyond 64 bits": sized(b"18446744073709551616") + HIDDEN,
    "a chunk beyond 64 bits": POST + CHUNKED + b"\r\n10000000000000000\r\n" + CHUNKS,
    "a chunk of a negative size": POST + CHUNKED + b"\r\n-1\r\n" + CHUNKS,
    "a chunk with an extension behind a bare LF": POST + CHUNKED + b"\r\n1;a\nb\r\nx\r\n" + CHUNKS,
    "a chunk that is longer than its size": POST + CHUNKED + b"\r\n1\r\n{}\r\n" + CHUNKS,
    "a version of no kind": b"GET /v1/models HTTP/9.9\r\n" + HOST + b"\r\n" + HIDDEN,
    "HTTP/0.9": b"GET /v1/models\r\n" + HIDDEN,
    "HTTP/1.0 in chunks": POST.replace(b"1.1", b"1.0") + JSON + CHUNKED + b"\r\n" + CHUNKS,
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "a control character in the target": b"GET /v1/models\x0b HTTP/1.1\r\n" + HOST + b"\r\n",
    "two hosts, ours first": b"GET /v1/models HTTP/1.1\r\n" + HOST + b"host: elsewhere\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nhost: elsewhere\r\n" + HOST + b"\r\n",
}
"""Requests of which a strict reader makes an error."""
SINGLE: Final[dict[str, bytes]] = {
    "an absolute target": b"GET http://localhost/v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "an upgrade to h2c": b"GET /v1/models HTTP/1.1\r\nconnection: upgrade, http2-settings\r\n"
    b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n" + HOST + b"\r\n",
    "a body of a GET": b"GET /v1/models HTTP/1.1\r\ncontent-length: "
    + LENGTH
    + b"\r\n"
    + HOST
    + b"\r\n"
    + HIDDEN,
    "a chunk's extension": POST + JSON + CHUNKED + b"\r\n2;a=b\r\n{}\r\n0\r\n\r\n",
}
"""Unusual requests that have one meaning."""


async def answers_to(client: httpx.AsyncClient, content: bytes, draw: random.Random) -> bytes:
    """Everything that the server says to these bytes, sent in pieces, until it closes."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while content:
                size = draw.randint(1, len(content))
                writer.write(content[:size])
                content = content[size:]
                await asyncio.sleep(0)
            with suppress(OSError):  # the server has closed it already
                writer.write_eof()
            said = b""
            with suppress(ConnectionResetError):  # it closed before it had read everything
                while piece := await reader.read(2**16):
                    said += piece
            return said
    finally:
        writer.close()


async def num_requests(client: httpx.AsyncClient) -> float:
    """Requests that had a meaning, whether their answers arrived or not."""
    samples = await samples_of(client)
    return sum(n for (name, *_), n in samples.items() if name == "motab_requests_total")


async def test_an_ambiguous_request_is_one_request_or_an_error(campaign: Campaign) -> None:
    service = service_of(ScriptedBackend(says(("A",))))
    async with over_http(service) as client:
        before = await num_requests(client)
        assert (await answers_to(client, HIDDEN * 2, random.Random(0))).count(b"HTTP/1.1 200") == 2
        own = await num_requests(client) - before - 2  # those for the metrics themselves
        assert own in {0, 1}
        for draw in campaign.rounds(0.03, rounds=3):
            campaign.done["rounds"] += 1
            for name, content in (FORMS | SINGLE).items():
                before = await num_requests(client)
                said = await answers_to(client, content, draw)
                assert await num_requests(client) - before - own <= 1, name
                assert said.count(b"HTTP/1.1 ") <= 1, (name, said)
                if name in FORMS:
                    assert not said or said.startswith(b"HTTP/1.1 4"), (name, said)
                else:
                    assert said.startswith(b"HTTP/1.1 "), (name, said)
                campaign.done["requests"] += 1
    campaign.done["forms"] = len(FORMS | SINGLE)
