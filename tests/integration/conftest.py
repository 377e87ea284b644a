from collections.abc import AsyncIterator

import pytest

from tests.support.clock import Clock
from tests.support.replay import Replay, replay


@pytest.fixture
async def up() -> AsyncIterator[Replay]:
    """A scripted upstream whose client tries once."""
    async with replay() as playing:
        yield playing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock, which the test can put forward."""
    return Clock(monkeypatch)
