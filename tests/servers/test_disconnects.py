"""A client that goes away leaves real servers idle."""

import time
from typing import Any

import pytest

from tests.servers.real import SCORING, Real
from tests.support.patience import PATIENCE_S
from tests.support.proxy.live import client_that_is_killed


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("role", ["student/", "teacher/", "own-"])
@pytest.mark.parametrize("name", SCORING)
def test_killing_the_client_stops_the_server(
    stream: bool, role: str, name: str, base_url: str, servers: dict[str, Real]
) -> None:
    server = servers[name]
    options: dict[str, Any] = {"teacher_temperature": 0.0}
    if role == "own-":
        # Every number is a step, and all are safe: a scoring call is under way, too.
        options = {"delimiter": " ", "base_threshold": 0.0, "entropy_scale": 0.0}
    body = {
        "model": role + name,
        # Greedily, it counts on for ever.
        "prompt": " ".join(map(str, range(1, 30))) + " ",
        "temperature": 0.0,
        "max_tokens": 1500,
        "stream": stream,
        "motab": options,
    }
    before = server.num_written()
    started = time.monotonic()
    with client_that_is_killed(f"{base_url}/completions", body):
        while server.num_written() < before + 20:
            assert time.monotonic() < started + PATIENCE_S, "it never wrote"
            time.sleep(0.02)
        assert server.num_running()
    deadline = time.monotonic() + PATIENCE_S
    while server.num_running():
        assert time.monotonic() < deadline, "it is still writing"
        time.sleep(0.02)
    # And it stays so: nothing more is sent, and what was being written did not end by itself.
    written = server.num_written()
    time.sleep(0.5)
    assert server.num_written() == written < before + 1000
    assert not server.num_running()
