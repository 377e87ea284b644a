"""Real models behind real llama.cpp servers, and the proxy as a user starts it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.proxy.live import pretrained_server, proxy, write_config
from tests.support.proxy.workers import LIMIT, writes_after
from tests.support.replay import Replay, json_reply, replay


@pytest.fixture(scope="session")
def student_url() -> Iterator[str]:
    with pretrained_server("student") as url:
        yield url


@pytest.fixture(scope="session")
def teacher_url() -> Iterator[str]:
    with pretrained_server("teacher") as url:
        yield url


@pytest.fixture(scope="session")
def base_url(
    student_url: str, teacher_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The proxy in front of both, asking for a key."""
    path = tmp_path_factory.mktemp("e2e") / "config.yaml"
    write_config(path, student_url, teacher_url)
    with proxy(path) as url:
        yield url


@pytest.fixture
async def llama() -> AsyncIterator[Replay]:
    """A server that is up and writes one token at once."""
    async with replay() as up:
        up.on("GET", "/props", json_reply({"total_slots": 4 * LIMIT}))
        up.on("POST", "/tokenize", json_reply({"tokens": [7]}))
        up.on("POST", "/apply-template", json_reply({"prompt": "Q:"}))
        up.on("GET", "/health", json_reply({"status": "ok"}))
        writes_after(up, None)
        yield up
