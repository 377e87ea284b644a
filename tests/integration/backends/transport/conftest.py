"""Makes the scene in which streams break."""

from collections.abc import AsyncIterator

import pytest

from proxy.backends.transport.http import UpstreamClient
from tests.support.resuming import QUICK, Scene


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    retried: list[str] = []
    async with UpstreamClient(
        "up",
        "http://127.0.0.1:1",
        None,
        1,
        lambda *_: None,
        QUICK,
        lambda _upstream, code: retried.append(code),
    ) as client:
        yield Scene(client, retried)
