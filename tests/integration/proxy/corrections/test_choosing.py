"""Tests which of several corrections is kept, and what the answer, its trace and its cost say."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy.api.service import Service
from synth_client.asking.answer import traced_record
from synth_client.files.record_file import read_records
from synth_client.questions.question import Question
from tests.integration.proxy.corrections.answering import (
    BEFORE,
    asking,
    box,
    choosing,
    choosing_of,
    teacher_of,
)
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    A,
    B,
    C,
    answer,
    chat,
    chunks_of,
    in_process,
    iter_of,
    payloads,
    samples_of,
    service_of,
    straying,
    streamed_text,
)
from tests.support.scripted import Script, ScriptedBackend, says, values
from trajectory_records.appender import open_appender
from trajectory_records.record import Message
from trajectory_records.record_writer import RecordWriter

D = "D d.\n\n"


async def choice_of(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    response = await answer(service, CHAT, body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return {**choice, "usage": response.json()["usage"]}


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice["message"]["content"]
    return text


@pytest.mark.parametrize(
    ("corrections", "reference", "kept", "by", "answers"),
    [
        # The first right one, though it is not the shortest and few answer so.
        ((box(5), box(7, "long "), box(7), box(5)), "7", 1, "reference", ["5", "7", "7", "5"]),
        ((box("0.5"), box("\\frac{1}{2}")), "1/2", 0, "reference", ["0.5", "\\frac{1}{2}"]),
        # None is right: the majority, said in the trace.
        ((box(4), box(5, "a "), box(5), box(6)), "7", 2, "majority", ["4", "5", "5", "6"]),
        # No reference: equal answers are counted together, however they are written.
        (
            (box(5), box("\\frac{1}{2}", "a "), box("0.5"), box(5, "b "), box("1/2", "c ")),
            None,
            2,
            "majority",
            ["5", "\\frac{1}{2}", "0.5", "5", "1/2"],
        ),
        # A tie: the majority that has the shortest.
        ((box(5, "a "), box(6), box(5, "b "), box(6, "c ")), None, 1, "majority", list("5656")),
        # All of the same length: the first.
        ((box(5), box(6)), None, 0, "majority", ["5", "6"]),
    ],
)
async def test_a_right_correction_is_kept_or_the_shortest_of_the_majority(
    corrections: tuple[Script, ...], reference: str | None, kept: int, by: str, answers: list[str]
) -> None:
    num = len(corrections)
    with choosing(*corrections, rule="math") as service:
        choice = await choice_of(service, chat(**asking(num, reference)))
    text = "".join(item for item in corrections[kept].items if isinstance(item, str))
    assert text_of(choice) == BEFORE + text
    assert choice["motab"]["chosen"] == {"index": kept, "by": by, "answers": answers}


async def test_corrections_without_an_answer_have_no_vote() -> None:
    with choosing(says(" "), says("a", "b", "c"), box(5, "x ", "y "), rule="choice") as service:
        choice = await choice_of(service, chat(**asking(3)))
    # None has an option that could be read, so the shortest that is not blank is kept.
    assert choice["motab"]["chosen"] == {"index": 1, "by": "majority", "answers": [None] * 3}


async def test_a_correction_that_is_cut_off_votes_only_where_none_has_ended() -> None:
    cut = says("\\boxed{5}", end="length")
    with choosing(cut, cut, box(6)) as service:
        choice = await choice_of(service, chat(**asking(3)))
    assert choice["motab"]["chosen"]["index"] == 2
    assert choice["finish_reason"] == "stop"
    with choosing(cut, cut, says("So \\boxed{6}.", end="length")) as service:
        choice = await choice_of(service, chat(**asking(3)))
    assert choice["motab"]["chosen"]["index"] == 0
    assert choice["finish_reason"] == "length"


async def test_all_corrections_continue_the_same_text_with_seeds_of_their_own() -> None:
    teacher = teacher_of(box(5), box(6), box(7))
    with choosing_of(teacher) as service:
        await choice_of(service, chat(**asking(3, "7", stitch="clean")))
    assert len({write.sampling.seed for write in teacher.writes}) == 3
    assert {write.context for write in teacher.writes} == {"<user>Q<answer>" + A}
    assert len({write.max_tokens for write in teacher.writes}) == 1


async def test_the_cost_of_all_corrections_is_stated_and_counted() -> None:
    with choosing(box(5, *"abcd"), box(7)) as service:
        choice = await choice_of(service, chat(**asking(2, "7")))
        async with in_process(service) as client:
            samples = await samples_of(client)
    cost = choice["usage"]["motab"]
    assert cost["correction_calls"] == 2
    assert cost["teacher_tokens"] == 6 + 2
    assert cost["teacher_tokens_discarded"] == 6
    assert choice["usage"]["completion_tokens"] == 1 + 1 + len("However,\n\n") + 2
    counted = {name[1]: v for name, v in samples.items() if name[0] == "motab_tokens_total"}
    assert (counted["teacher"], counted["teacher_discarded"]) == (8, 6)


async def test_a_stream_has_nothing_of_a_correction_before_one_is_kept() -> None:
    slow = asyncio.Event()
    teacher = teacher_of(box(7), says("So ", slow, "\\boxed{7}"))
    with choosing_of(teacher) as service:
        sending = asyncio.create_task(
            chunks_of(service, CHAT, chat(**asking(2, "7", events=True, trace="full")))
        )
        await teacher.until_called("write", 2)
        await teacher.writes[0].closed.wait()
        assert not sending.done()
        slow.set()
        chunks = await sending
    assert streamed_text(chunks) == BEFORE + "So \\boxed{7}"
    pieces = [c["choices"][0]["delta"].get("content") for c in chunks[:-1] if c["choices"]]
    assert pieces[-2:] == ["\n\nSo \\boxed{7}", None]
    trace = chunks[-2]["choices"][0]["motab"]
    assert trace["chosen"] == {"index": 0, "by": "reference", "answers": ["7", "7"]}
    assert trace["params"]["corrections"] == 2
    assert "reference" not in trace["params"]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_correction_is_what_it_was(stream: bool) -> None:
    async def body_of(options: dict[str, Any]) -> Any:
        request = chat(stream=stream, motab={"trace": "full", **options})
        response = await answer(service_of(*straying()), CHAT, request)
        found = payloads(response) if stream else [response.json()]
        return [{**one, "id": "", "created": 0} if isinstance(one, dict) else one for one in found]

    plain = await body_of({})
    assert await body_of({"corrections": 1}) == plain
    assert "corrections" not in str(plain)
    assert "chosen" not in str(plain)


async def test_a_trajectory_without_a_breach_chooses_nothing() -> None:
    teacher = ScriptedBackend(judge=values({}))
    with choosing_of(teacher) as service:
        choice = await choice_of(service, chat(**asking(4, "7")))
    assert "chosen" not in choice["motab"]
    assert choice["usage"]["motab"]["correction_calls"] == 0


async def test_the_record_is_what_the_client_makes_of_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with choosing(box(5), box(7)) as service:
        async with open_appender(RecordWriter(path)) as service.records:
            response = await answer(service, MOTAB_CHAT, chat(**asking(2, "7")))
    (record,) = read_records(path)
    assert record.chosen is not None
    assert (record.chosen.index, record.chosen.by) == (1, "reference")
    assert record.chosen.answers == ("5", "7")
    question = Question(record.id, (Message(role="user", content="Q"),))
    made = traced_record(response.content, question, sample=0, attempts=1, seconds=1.0)
    assert made.chosen == record.chosen
    assert made.params == record.params


async def test_with_several_rounds_the_last_rounds_corrections_are_chosen_from() -> None:
    drafts = iter_of(says((A, B, "tail")), says((C, "tail")))
    written = iter([says((D, "and more")), box(5), box(7)])
    teacher = ScriptedBackend(lambda _: next(written), values({A: 0.9, B: 0.05, C: 0.05}))
    with choosing_of(teacher) as service:
        student = service.models[MODEL].pair.of("student").writer
        assert isinstance(student, ScriptedBackend)
        student.script = drafts
        choice = await choice_of(service, chat(**asking(2, "7", rounds=2)))
    assert text_of(choice) == f"{BEFORE}{D}{C}However,\n\nSo \\boxed{{7}}"
    assert choice["motab"]["chosen"] == {"index": 1, "by": "reference", "answers": ["5", "7"]}
    assert len(choice["motab"]["breaches"]) == 2
    assert choice["usage"]["motab"]["correction_calls"] == 3
