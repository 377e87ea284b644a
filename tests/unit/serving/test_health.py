"""Tests that `/health` has an answer while the event loop has none, and that a stuck loop shows."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from proxy.serving.health import Pulse, answering
from proxy.serving.serve import listen
from tests.support.patience import PATIENCE_S


@contextmanager
def answered(pulse: Pulse) -> Iterator[int]:
    """The port at which there are answers."""
    with listen("127.0.0.1", 0) as listener, answering(listener, pulse):
        yield listener.getsockname()[1]


def ask(port: int, path: str = "/health", method: str = "GET") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def state(port: int) -> tuple[int, str]:
    status, body = ask(port)
    return status, json.loads(body)["status"]


async def test_a_server_is_alive_from_its_first_beat_to_its_end() -> None:
    with Pulse() as pulse, answered(pulse) as port:
        assert await asyncio.to_thread(state, port) == (503, "starting")
        async with pulse.beating():
            assert await asyncio.to_thread(state, port) == (200, "alive")
            assert await asyncio.to_thread(ask, port, method="HEAD") == (200, b"")
            for path in ("/ready", "/metrics", "/healthy", "//health"):
                assert await asyncio.to_thread(ask, port, path) == (404, b"")
        assert await asyncio.to_thread(state, port) == (503, "starting")


async def test_a_blocked_loop_is_alive_for_a_while_and_then_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.serving.health.STUCK_AFTER_S", 1.5)
    found: list[tuple[float, str]] = []

    def watch(port: int) -> None:
        while not found or found[-1][1] != "stuck":
            asked = time.monotonic()
            _, said = state(port)
            found.append((time.monotonic() - asked, said))
            time.sleep(0.05)

    with Pulse() as pulse, answered(pulse) as port:
        async with pulse.beating():
            watching = threading.Thread(target=watch, args=(port,))
            watching.start()
            watching.join(PATIENCE_S)  # this is the loop's thread, which does nothing else now
            assert not watching.is_alive()
            states = [said for _, said in found]
            assert states.count("alive") > 3
            assert states[-1] == "stuck"
            assert max(seconds for seconds, _ in found) < 1
            while await asyncio.to_thread(state, port) != (200, "alive"):
                pass


def test_one_stuck_worker_is_enough_and_a_dead_one_is_not_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("proxy.serving.health.time.monotonic", lambda: now)

    with Pulse(2, tmp_path / "pulse") as seen, Pulse(2, tmp_path / "pulse") as other:
        other.beat(0)
        assert seen.state() == "alive"
        now += 20
        other.beat(1)
        assert seen.state() == "alive"
        now += 20
        assert seen.state() == "stuck"
        seen.clear(0)
        assert seen.state() == "alive"
        seen.clear(1)
        assert seen.state() == "starting"


async def test_clients_that_send_nothing_neither_stay_nor_keep_others_out() -> None:
    with Pulse() as pulse, answered(pulse) as port, ExitStack() as stack:
        async with pulse.beating():
            idle = [
                stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
                for _ in range(300)
            ]
            idle[0].sendall(b"GET /health HTTP/1.1\r\na: " + b"b" * 100_000)
            for one in idle[200:]:
                one.close()
            for one in idle[1:200]:
                assert await asyncio.to_thread(one.recv, 1) == b""
            assert await asyncio.to_thread(state, port) == (200, "alive")
