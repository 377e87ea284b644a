"""Attacks what lies before the routes: heads, bodies, connections and hosts."""

import time
from typing import Final

from benchmarks.hostile.attack import Attack, Target, mb

_CHAT: Final = "POST /v1/chat/completions"
_WATCHED_S: Final = 40.0
_NUM_SLOW: Final = 300


def nothing(_: Target) -> str:
    """Do nothing for 10 s: the machine's own unrest."""
    time.sleep(10)
    return "nothing"


def small_headers(target: Target) -> str:
    """Send small headers without end on one connection."""
    return _flooded(target, target.open_head("GET /health"), b"a: b\r\n")


def large_header(target: Target) -> str:
    """Send one header without end."""
    return _flooded(target, target.open_head("GET /health") + b"a: ", b"b")


def long_url(target: Target) -> str:
    """Send a URL without end."""
    return _flooded(target, b"GET /", b"u")


def endless_trailers(target: Target) -> str:
    """Send trailers without end after a chunked body."""
    return _flooded(target, _chunked(target) + b"1\r\n{\r\n0\r\n", b"a: b\r\n")


def chunk_extensions(target: Target) -> str:
    """Send a chunk's extension without end."""
    return _flooded(target, _chunked(target) + b"1;", b"x")


def _chunked(target: Target) -> bytes:
    return target.head(_CHAT, "Transfer-Encoding: chunked", "Content-Type: application/json")


def _flooded(target: Target, beginning: bytes, junk: bytes) -> str:
    """Send a beginning, then the same bytes without end, and say when they were refused."""
    with target.connected() as connection:
        connection.send(beginning)
        sent = connection.flood(junk, target.num_bytes)
        return f"{connection.status(1)} after {mb(sent)}"


def body_after_413(target: Target) -> str:
    """Announce a body of 20 times the bytes and send it although the answer is a 413 or 401."""
    with target.connected() as connection:
        announced = 20 * target.num_bytes
        connection.send(target.head(_CHAT, f"Content-Length: {announced}"))
        status = connection.status()
        sent = connection.flood(b" ", announced)
        return f"{status}, then {mb(sent)} taken"


def endless_chunks(target: Target) -> str:
    """Send a chunked body of 20 times the bytes."""
    with target.connected() as connection:
        head = target.head(_CHAT, "Transfer-Encoding: chunked", "Content-Type: application/json")
        connection.send(head)
        sent = connection.flood(b"100\r\n" + b" " * 256 + b"\r\n", 20 * target.num_bytes)
        return f"{connection.status(1)} after {mb(sent)}"


def pipelined(target: Target) -> str:
    """Send requests without end and read no answer."""
    with target.connected() as connection:
        connection.socket.settimeout(5)
        sent = connection.flood(target.head("GET /v1/models"), target.num_bytes)
        return f"{mb(sent)} taken"


def half_open(target: Target) -> str:
    """Open 700 connections and send nothing."""
    with target.connections(700) as opened:
        lasted = opened[-1].closed_after_s(_WATCHED_S)
        still = sum(connection.closed_after_s(0.01) > 0.01 for connection in opened)
        return f"{still} of 700 open after {lasted:.0f} s"


def slow_heads(target: Target) -> str:
    """Open 300 connections and send a byte of a head every half second."""
    return _trickled(target, target.open_head("GET /health") + b"a: ")


def slow_bodies(target: Target) -> str:
    """Open 300 connections and send a byte of a body every half second."""
    head = target.head(_CHAT, "Content-Length: 4000", "Content-Type: application/json")
    return _trickled(target, head + b"{")


def continued(target: Target) -> str:
    """Announce a body that is too large and wait for leave to send it (100-continue)."""
    with target.connected() as connection:
        length = f"Content-Length: {target.num_bytes}"
        connection.send(target.head(_CHAT, length, "Expect: 100-continue"))
        return f"{connection.status()}, closed after {connection.closed_after_s(_WATCHED_S):.0f} s"


def rebound_host(target: Target) -> str:
    """Ask a server without keys for an answer under a foreign Host."""
    with target.connected() as connection:
        connection.send(b"GET /v1/models HTTP/1.1\r\nHost: rebound.example\r\n\r\n")
        return connection.status()


def foreign_page(target: Target) -> str:
    """Have a foreign web page ask a server without keys for an answer."""
    body = b'{"model": "%s", "messages": [{"role": "user", "content": "Q"}]}'
    body %= target.model.encode()
    with target.connected() as connection:
        origin, kind = "Origin: http://page.example", "Content-Type: application/json"
        connection.send(target.head(_CHAT, origin, kind, f"Content-Length: {len(body)}") + body)
        return connection.status()


def _trickled(target: Target, start: bytes) -> str:
    with target.connections(_NUM_SLOW) as opened:
        began = time.monotonic()
        num_open = sum(connection.send(start) for connection in opened)
        while num_open and time.monotonic() - began < _WATCHED_S:
            time.sleep(0.5)
            num_open = sum(connection.send(b" ") for connection in opened)
        lasted = time.monotonic() - began
    return f"{num_open} of {_NUM_SLOW} open after {lasted:.0f} s"


_UNBOUNDED: Final = "unbounded input before authentication"
_HELD: Final = "connections held open"
_REBINDING: Final = "web pages and DNS rebinding"
ATTACKS: Final = (
    Attack("none, for comparison", nothing, ("no key",)),
    Attack(_UNBOUNDED, small_headers),
    Attack(_UNBOUNDED, large_header),
    Attack(_UNBOUNDED, long_url),
    Attack(_UNBOUNDED, endless_trailers),
    Attack(_UNBOUNDED, chunk_extensions),
    Attack(_UNBOUNDED, body_after_413),
    Attack(_UNBOUNDED, endless_chunks),
    Attack(_UNBOUNDED, pipelined),
    Attack(_HELD, half_open, ("no key",)),
    Attack(_HELD, slow_heads),
    Attack(_HELD, slow_bodies),
    Attack(_HELD, continued),
    Attack(_REBINDING, rebound_host, ("keyless",)),
    Attack(_REBINDING, foreign_page, ("keyless",)),
)
