from collections.abc import AsyncIterator

import pytest

from tests.support.replay import Replay, replay


@pytest.fixture
async def up() -> AsyncIterator[Replay]:
    """A scripted upstream whose client tries once."""
    async with replay() as playing:
        yield playing
