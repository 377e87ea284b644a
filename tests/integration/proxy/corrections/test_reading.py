"""Tests how `motab serve` reads the answers of corrections: by the client's rules."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from motab.answers import JudgedAnswers
from proxy.core.types import FoundAnswer
from proxy.errors import MotabError, RequestError
from synth_client.errors import InputError
from tests.support.patience import PATIENCE_S


async def read(rule: str, reference: str | None, *texts: str) -> tuple[FoundAnswer, ...]:
    with JudgedAnswers(rule) as reader:
        await reader.start()
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read(texts, reference)


async def test_answers_that_the_rule_takes_for_equal_are_in_one_group() -> None:
    answers = ("\\frac{1}{2}", "5", "0.5", "", "5", "1/2")
    texts = [f"\\boxed{{{answer}}}" if answer else "" for answer in answers]
    found = await read("math", None, *texts)
    assert [one.text for one in found] == ["\\frac{1}{2}", "5", "0.5", None, "5", "1/2"]
    groups = [one.group for one in found]
    assert groups[0] == groups[2] == groups[5] != groups[1] == groups[4]
    assert groups[3] is None
    assert {one.is_right for one in found} == {None}


async def test_answers_are_compared_with_the_reference_first() -> None:
    found = await read("number", "7", "\\boxed{5}", "\\boxed{7}", "\\boxed{7.0}")
    assert [one.is_right for one in found] == [False, True, True]
    found = await read("number", '["6", "7"]', "\\boxed{5}", "\\boxed{7}")
    assert [one.is_right for one in found] == [False, True]
    found = await read("number", "8", "\\boxed{5}", "\\boxed{7}", "\\boxed{7.0}")
    assert [one.is_right for one in found] == [False] * 3
    assert found[1].group == found[2].group != found[0].group


async def test_a_text_that_is_in_doubt_is_neither_right_nor_wrong() -> None:
    (found,) = await read(f"{__name__}:raises", "7", "\\boxed{7}")
    assert found == FoundAnswer(None, None, None)


def raises(record: Mapping[str, str]) -> tuple[str, bool]:
    """A rule of a user's own that makes no sense of any text."""
    raise ValueError(record["output"])


def waits(record: Mapping[str, str]) -> tuple[str, bool]:
    """A rule that takes until the file that the text names is there."""
    while not Path(record["output"]).exists():
        time.sleep(0.01)
    return "7", record["answer"] == "7"


async def test_the_event_loop_runs_while_answers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "go"
    with JudgedAnswers(f"{__name__}:waits") as reader:
        await reader.start()
        reading = asyncio.create_task(reader.read([str(path)], "7"))
        await asyncio.sleep(0)
        path.touch()
        async with asyncio.timeout(PATIENCE_S):
            (found,) = await reading
    assert (found.text, found.is_right) == ("7", True)


async def test_a_rule_that_cannot_be_loaded_is_refused_at_the_start() -> None:
    with pytest.raises(InputError, match="no such rule: 'maths'"):
        JudgedAnswers("maths")
    with JudgedAnswers("no.such:rule") as reader:
        with pytest.raises(RequestError, match=r"none could be chosen: the rule no\.such:rule"):
            await reader.start()
        with pytest.raises(MotabError, match="answers cannot be read"):
            await reader.read(["7"], None)
