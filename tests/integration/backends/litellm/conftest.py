"""Makes hosted models of the scripted server."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tests.support.replay import Replay
from tests.support.servers import litellm


@pytest.fixture
async def hosted(up: Replay) -> AsyncIterator[litellm.Hosted]:
    hosting = litellm.Hosted(up)
    async with aclosing(hosting):
        yield hosting
