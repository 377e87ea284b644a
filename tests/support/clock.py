"""Puts the clock forward, so that a test of a wait depends on no machine's speed."""

import asyncio
import time

import pytest

from tests.support.replay import Answer, Reply


class Clock:
    """Runs ahead of the real one by as much as the test says; event loops follow it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead_s = 0.0
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self._ahead_s)

    async def forward(self, seconds: float) -> None:
        """Let what is under way begin to wait, this time pass, and every timer ring that is due."""
        await turns()
        self._ahead_s += seconds
        await turns()

    def taking(self, seconds: float, reply: Reply) -> Answer:
        """A server that needs this time for its reply."""

        def answer(_: object) -> Reply:
            self._ahead_s += seconds
            return reply

        return answer


async def turns(num_turns: int = 20) -> None:
    """Give the event loop turns in which whatever can happen happens."""
    for _ in range(num_turns):
        await asyncio.sleep(0)
