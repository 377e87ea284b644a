"""Defines an attack, and the raw connections that attacks are made of."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Literal

Access = Literal["no key", "key", "keyless", "file"]
"""The attacker has no key of a server with keys, such a key, a server without keys, or the place of
a file or of a model that is read.
"""
WITH_AND_WITHOUT: Final[tuple[Access, ...]] = ("no key", "key")

_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """The attacked proxy."""

    host: str
    port: int
    key: str | None
    """None: the attacker sends none."""
    num_bytes: int
    """The bytes that an attack sends in all."""
    model: str
    """A model that the proxy serves."""

    def head(self, line: str, *headers: str) -> bytes:
        """Return a whole request head, with the key if there is one."""
        own = [f"Host: {self.host}:{self.port}"]
        if self.key is not None:
            own.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([f"{line} HTTP/1.1", *own, *headers, "", ""]).encode()

    def open_head(self, line: str) -> bytes:
        """Return a request head to which headers may still be added."""
        return self.head(line).removesuffix(b"\r\n")

    @contextmanager
    def connected(self) -> Iterator["Connection"]:
        """A connection to the proxy."""
        with socket.create_connection((self.host, self.port), timeout=_PATIENCE_S) as opened:
            yield Connection(opened)

    @contextmanager
    def connections(self, num: int) -> Iterator[list["Connection"]]:
        """As many connections as the proxy accepts, at most `num`."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.connected()) for _ in range(num)]


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection on which anything can be sent."""

    socket: socket.socket

    def send(self, data: bytes) -> bool:
        """Return whether the proxy still takes data."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def flood(self, piece: bytes, num_bytes: int) -> int:
        """Send a piece again and again; return how many bytes the proxy took before it closed."""
        block = piece * max(1, 2**18 // len(piece))
        sent = 0
        while sent < num_bytes and self.send(block[: num_bytes - sent]):
            sent += min(len(block), num_bytes - sent)
        return sent

    def status(self, timeout_s: float = _PATIENCE_S) -> str:
        """Return the status of the answer, or how the connection ended without one."""
        self.socket.settimeout(timeout_s)
        try:
            first = self.socket.recv(2**16)
        except TimeoutError:
            return "no answer"
        except OSError:
            return "reset"
        return first.split(b" ", 2)[1].decode() if first[:5] == b"HTTP/" else "closed"

    def closed_after_s(self, at_most_s: float, beat: bytes = b"", every_s: float = 0.5) -> float:
        """Send `beat` again and again; return the seconds until the proxy closes."""
        began = time.monotonic()
        self.socket.settimeout(every_s)
        while time.monotonic() - began < at_most_s:
            try:
                if not self.socket.recv(2**16):
                    break
            except TimeoutError:
                if beat and not self.send(beat):
                    break
            except OSError:
                break
        return time.monotonic() - began


def mb(num_bytes: float) -> str:
    """Return a number of bytes in words."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.0f} kB"


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack: a function of this package that does it and says how the proxy answered.

    It runs in a process of its own, so it may block.
    """

    threat: str
    run: Callable[[Target], str]
    access: tuple[Access, ...] = WITH_AND_WITHOUT

    @property
    def name(self) -> str:
        """The function's name, by which the command chooses it."""
        return self.run.__name__

    @property
    def tried(self) -> str:
        """The function's docstring."""
        return " ".join((self.run.__doc__ or "").split()).rstrip(".")
