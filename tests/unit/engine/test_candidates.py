"""Tests what the writes of several corrections share."""

import asyncio
import logging

import pytest

from proxy.backends.base import Context, Segment
from proxy.engine.corrections.candidates import Candidates
from proxy.errors import MotabError, UpstreamUnreachable


async def test_the_context_is_made_once_and_again_only_after_a_failure() -> None:
    made: list[Context] = []
    gate = asyncio.Event()

    async def make() -> Context:
        await gate.wait()
        made.append(Context(Segment("", (1,))))
        if len(made) == 1:
            raise UpstreamUnreachable("teacher", "no connection")
        return made[-1]

    candidates = Candidates()
    asking = [asyncio.create_task(candidates.context(make)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    failed, *found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(failed, UpstreamUnreachable)
    assert found[0] is found[1] is made[1]
    assert len(made) == 2


async def test_the_first_loss_is_the_error_where_all_are_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    candidates = Candidates()
    first = UpstreamUnreachable("teacher", "no connection")
    with caplog.at_level(logging.WARNING):
        candidates.lose("r-0", first)
        candidates.lose("r-0", UpstreamUnreachable("teacher", "no answer"))
    assert "r-0: one of the corrections is lost: upstream 'teacher': no connection" in caplog.text
    with pytest.raises(UpstreamUnreachable, match="no connection"):
        await candidates.read(())
    with pytest.raises(MotabError, match="nothing reads the answers"):
        await candidates.read(("text",))
