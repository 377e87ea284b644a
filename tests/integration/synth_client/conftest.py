"""Gives the tests a scripted server."""

from collections.abc import AsyncIterator

import pytest

from tests.support.synth_client.openai_server import Scripted, scripted


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted() as found:
        yield found
