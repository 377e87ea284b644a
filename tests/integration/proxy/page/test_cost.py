"""Nobody looks at the page: what it then costs, in instructions of Python's interpreter."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tests.support.proxy.api import CHAT, chat, in_process, service_of
from tests.support.scripted import ScriptedBackend, says

_TOKENS = 400


@contextmanager
def counting() -> Iterator[list[int]]:
    """Yield a list whose one number is the instructions so far."""
    found, before = [0], sys.gettrace()

    def begun(frame: FrameType, _event: str, _value: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return counted

    def counted(_frame: FrameType, event: str, _value: Any) -> Any:
        found[0] += event == "opcode"
        return counted

    sys.settrace(begun)
    try:
        yield found
    finally:
        sys.settrace(before)


async def instructions(*, page: bool) -> float:
    """Return the fewest instructions for a token of some streams, after one that fills the caches.

    The event loop's turns differ a little from one to the next.
    """
    student = ScriptedBackend(says(*["word "] * _TOKENS))
    async with in_process(service_of(student, page=page)) as client:
        body = chat(stream=True, seed=1, motab={"events": True})
        headers = {"x-request-id": "same"}
        assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200
        counts = []
        for _ in range(5):
            with counting() as found:
                await client.post(CHAT, json=body, headers=headers)
            counts.append(found[0])
    return min(counts) / _TOKENS


async def test_a_token_costs_no_more_with_the_page_than_without() -> None:
    without, with_page = await instructions(page=False), await instructions(page=True)
    assert with_page <= without + 1
