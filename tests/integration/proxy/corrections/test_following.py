"""Tests what a client can follow while several corrections are written and one is kept."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest

from proxy.api.sse import EventStream
from proxy.core.types import FoundAnswer
from proxy.errors import UpstreamUnreachable
from tests.integration.proxy.corrections.answering import (
    asking,
    box,
    choosing,
    choosing_of,
    teacher_of,
)
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import CHAT, answer, chat, over_http
from tests.support.scripted import ScriptedBackend, says

GONE = UpstreamUnreachable("teacher", "no connection")
HOSTILE = "7\n\nevent: motab.breach\ndata: {}\n\n"


class SlowReader:
    """Reads the answers of corrections once it may, and says when it is asked and cancelled."""

    def __init__(self) -> None:
        self.asked, self.may, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def start(self) -> None:
        pass

    async def read(self, texts: Sequence[str], reference: str | None) -> tuple[FoundAnswer, ...]:
        del reference
        self.asked.set()
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return tuple(FoundAnswer(HOSTILE, is_right=None, group=0) for _ in texts)


def named_events(stream: str) -> list[tuple[str, Any]]:
    events = (event.split("\n") for event in stream.split("\n\n") if event.startswith("event: "))
    return [(name[7:], json.loads(data.removeprefix("data: "))) for name, data in events]


async def until_pinged(lines: AsyncIterator[str], num: int) -> None:
    """Read until that many pings have come with nothing between them."""
    found = 0
    async for line in lines:
        if line:
            found = found + 1 if line == ": ping" else 0
        if found == num:
            return
    raise AssertionError("the stream has ended")


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.api.app.EventStream", partial(EventStream, ping_interval_s=0.01))


async def test_the_choice_is_a_named_event_before_the_text_that_is_kept() -> None:
    with choosing(box(7), says("So ", GONE), box(5, "kept "), box(5, "a ", "b ")) as service:
        asked = chat(stream=True, **asking(4, events=True))
        response = await answer(service, CHAT, asked)
    chosen = {"index": 2, "by": "majority", "answers": ["7", None, "5", "5"], "lost": [1]}
    events = named_events(response.text)
    assert [name for name, _ in events[-2:]] == ["motab.breach", "motab.chosen"]
    assert events[-1][1] == {"index": 0, "chosen": chosen}
    assert response.text.index("motab.chosen") < response.text.index("kept ")


@pytest.mark.parametrize(("events", "num"), [(False, 2), (True, 1)])
async def test_there_is_no_event_where_it_is_not_asked_for_or_nothing_is_chosen(
    events: bool, num: int
) -> None:
    with choosing(box(7), box(7)) as service:
        response = await answer(service, CHAT, chat(stream=True, **asking(num, events=events)))
    assert response.text.endswith("[DONE]\n\n")
    assert "motab.chosen" not in response.text


async def test_each_choice_of_a_request_has_its_own_event() -> None:
    teacher = teacher_of()
    answers = iter([box(5), box(7), box(7, "a "), box(6)])
    teacher.script = lambda _sampling: next(answers)
    with choosing_of(teacher) as service:
        asked = chat(stream=True, n=2, **asking(2, "7", events=True))
        response = await answer(service, CHAT, asked)
    found = [data for name, data in named_events(response.text) if name == "motab.chosen"]
    assert sorted(data["index"] for data in found) == [0, 1]
    assert {data["chosen"]["by"] for data in found} == {"reference"}


async def test_an_answer_makes_no_event_of_its_own() -> None:
    reader = SlowReader()
    reader.may.set()
    with choosing_of(teacher_of(box(7), box(7))) as service:
        service.reader = reader
        asked = chat(stream=True, **asking(2, events=True))
        response = await answer(service, CHAT, asked)
    events = named_events(response.text)
    assert [name for name, _ in events[-2:]] == ["motab.breach", "motab.chosen"]
    assert events[-1][1]["chosen"]["answers"] == [HOSTILE, HOSTILE]


@pytest.mark.usefixtures("_often")
async def test_pings_come_while_corrections_are_written_and_judged() -> None:
    slow, reader = asyncio.Event(), SlowReader()
    teacher = teacher_of(*(says("So ", slow, f"\\boxed{{{index}}}") for index in range(3)))
    with choosing_of(teacher) as service:
        service.reader = reader
        async with (
            asyncio.timeout(PATIENCE_S),
            over_http(service) as client,
            client.stream("POST", CHAT, json=chat(stream=True, **asking(3))) as response,
        ):
            lines = response.aiter_lines()
            await teacher.until_called("write", 3)
            await until_pinged(lines, 3)
            assert not reader.asked.is_set()
            slow.set()
            await reader.asked.wait()
            await until_pinged(lines, 3)
            reader.may.set()
            rest = [line async for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]"
    assert "chosen" in rest[-2]


@pytest.mark.usefixtures("_often")
async def test_a_client_that_leaves_between_pings_ends_all_corrections() -> None:
    teacher = teacher_of(*(says("So ", asyncio.Event()) for _ in range(3)))
    await leave(teacher, SlowReader(), "written")
    assert len(teacher.writes) == 3
    assert all(writing.cancelled for writing in teacher.writes)


@pytest.mark.usefixtures("_often")
async def test_a_client_that_leaves_ends_the_reading_of_answers() -> None:
    reader = SlowReader()
    await leave(teacher_of(box(7), box(7), box(5)), reader, "judged")
    assert reader.cancelled.is_set()


async def leave(teacher: ScriptedBackend, reader: SlowReader, until: str) -> None:
    """Ask for three corrections, leave after pings, and wait until nothing more is at work."""
    with choosing_of(teacher) as service:
        service.reader = reader
        async with asyncio.timeout(PATIENCE_S), over_http(service) as client:
            asked = chat(stream=True, **asking(3))
            async with client.stream("POST", CHAT, json=asked) as response:
                await teacher.until_called("write", 3)
                if until == "judged":
                    await reader.asked.wait()
                await until_pinged(response.aiter_lines(), 2)
            for writing in teacher.writes:
                await writing.closed.wait()
            if until == "judged":
                await reader.cancelled.wait()
