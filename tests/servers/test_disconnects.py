"""A client that goes away leaves real servers idle."""

from typing import Any

import pytest

from tests.servers.real import SCORING, Real, leave_idle


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("role", ["student/", "teacher/", "own-"])
@pytest.mark.parametrize("name", SCORING)
def test_killing_the_client_stops_the_server(
    stream: bool, role: str, name: str, base_url: str, servers: dict[str, Real]
) -> None:
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
    leave_idle([servers[name]], base_url, body)
