"""Tests what the proxy records of its trajectories, and what it answers where it cannot."""

import asyncio
import errno
import os
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.api.service import Service
from proxy.core.params import Params
from proxy.errors import UpstreamInterrupted
from synth_client.asking.answer import traced_record
from synth_client.files.record_file import read_records
from synth_client.questions.question import Question, scoring_body
from tests.integration.proxy.api.test_rounds import TWICE, straying_twice
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    MOTAB_TEXT,
    PROMPT_TOKENS,
    SCORE,
    STITCHED,
    TEXT,
    C,
    answer,
    chat,
    error_in,
    in_process,
    iter_of,
    over_http,
    payloads,
    service_of,
    straying,
    text,
)
from tests.support.scripted import ScriptedBackend, says
from trajectory_records.appender import open_appender
from trajectory_records.record import Message, Record
from trajectory_records.record_writer import RecordWriter


class Disk(RecordWriter):
    """A file of records on a disk that is full if the test says so."""

    is_full = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.has_written = threading.Event()

    def append(self, lines: deque[bytes]) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().append(lines)
        self.has_written.set()


@dataclass
class Recorded:
    """The file and a service that records into it."""

    disk: Disk

    def records(self) -> list[Record]:
        return list(read_records(self.disk.path))


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(Disk(tmp_path / "records.jsonl"))


async def asked(recorded: Recorded, service: Service, path: str, body: Any, **how: Any) -> Any:
    async with open_appender(recorded.disk) as service.records:
        return await answer(service, path, body, **how)


async def test_a_record_is_what_motab_synth_makes_of_the_traced_answer(
    recorded: Recorded,
) -> None:
    service = service_of(*straying())
    response = await asked(recorded, service, MOTAB_CHAT, chat())
    (record,) = recorded.records()
    question = Question(record.id, (Message(role="user", content="Q"),))
    made = traced_record(response.content, question, sample=0, attempts=1, seconds=record.seconds)
    ids = {"request_id": record.request_id, "response_id": record.response_id}
    assert made.model_copy(update=ids) == record
    assert (record.breach, record.bifurcation) == (1, 1)
    assert [span.role for span in record.spans] == ["student", "flawed", "revise", "teacher"]


@pytest.mark.parametrize("trace", ["none", "summary", "full"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_record_has_all_whatever_the_client_gets(
    recorded: Recorded, trace: str, stream: bool
) -> None:
    body = chat(stream=stream, motab={"trace": trace})
    response = await asked(recorded, service_of(*straying()), CHAT, body)
    assert response.status_code == 200
    (record,) = recorded.records()
    first = payloads(response)[0] if stream else response.json()
    assert record.response_id == first["id"]
    assert record.request_id == response.headers["x-request-id"]
    assert record.output == STITCHED
    assert len(record.steps) == 2
    assert record.steps[1].value == 0.05
    assert record.params["base_threshold"] == Params().base_threshold
    assert (record.models.student, record.models.teacher) == ("small", "large")
    assert record.usage.prompt_tokens == PROMPT_TOKENS
    assert record.usage.motab.correction_calls == 1
    assert record.seconds > 0


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": {"any": ["\n\n", ";"], "keep_code": False}},
        {"boundary": "quantile", "boundary_values": [0.1, 0.2]},
    ],
    ids=["delimiter", "boundary_values"],
)
async def test_a_record_keeps_params_that_are_lists(
    recorded: Recorded, options: dict[str, Any]
) -> None:
    response = await asked(recorded, service_of(*straying()), CHAT, chat(motab=options))
    assert response.status_code == 200
    (record,) = recorded.records()
    assert {name: record.params[name] for name in options} == options
    assert [step.boundary for step in record.steps][:2] == (
        [0.1, 0.2] if "boundary" in options else [0.2, 0.2]
    )


async def test_a_record_has_the_sampling_and_the_templates_variables_of_the_request(
    recorded: Recorded,
) -> None:
    sampling = {"temperature": 0.6, "top_k": 20}
    variables = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    await asked(recorded, service_of(*straying()), CHAT, chat(**sampling, **variables))
    (record,) = recorded.records()
    assert record.sampling == sampling
    assert record.chat_template_kwargs == {"enable_thinking": False}
    assert record.reasoning_effort == "low"
    body = scoring_body(MODEL, record)
    assert body | variables == body
    assert not sampling.keys() & body.keys()


@pytest.mark.parametrize(("path", "body"), [(TEXT, text()), (MOTAB_TEXT, text())])
async def test_a_raw_prompt_is_recorded_as_what_it_is(
    recorded: Recorded, path: str, body: Any
) -> None:
    await asked(recorded, service_of(*straying()), path, body)
    (record,) = recorded.records()
    assert record.raw_prompt
    assert record.question == "Q"
    assert record.response_id is not None
    assert record.response_id.startswith("cmpl-")


async def test_each_prompt_and_each_begun_answer_has_the_record_of_its_question(
    recorded: Recorded,
) -> None:
    student = ScriptedBackend(lambda _sampling: says("One."))
    await asked(recorded, service_of(student), TEXT, {**text(n=2), "prompt": ["P", "Q"]})
    found = {record.sample: record.question for record in recorded.records()}
    assert found == {0: "P", 1: "P", 2: "Q", 3: "Q"}
    begun = [{"role": "user", "content": "R"}, {"role": "assistant", "content": "First, "}]
    await asked(recorded, service_of(student), CHAT, {**chat(), "messages": begun})
    (record,) = (one for one in recorded.records() if one.question == "R")
    assert [message.model_dump() for message in record.messages] == begun
    assert record.output == "One."


@pytest.mark.parametrize(
    ("model", "role", "models"),
    [("student/s", "student", ("small", None)), ("teacher/t", "teacher", (None, "large"))],
)
async def test_a_plain_call_is_recorded_as_its_models_own(
    recorded: Recorded, model: str, role: str, models: tuple[str | None, str | None]
) -> None:
    writes = ScriptedBackend(says("One.\n\n", "Two."))
    await asked(recorded, service_of(writes, writes), CHAT, {**chat(), "model": model})
    (record,) = recorded.records()
    assert record.method == role
    assert [span.role for span in record.spans] == [role]
    assert (record.models.student, record.models.teacher) == models
    assert (record.breach, record.scoring) == (None, None)


@pytest.mark.parametrize("method", ["imitkd", "skd", "prefix", "student", "teacher"])
async def test_every_method_is_recorded(recorded: Recorded, method: str) -> None:
    student = ScriptedBackend(lambda _sampling: says("A.\n\n", "B."))
    teacher = ScriptedBackend(lambda _sampling: says("C.\n\n", "D."))
    body = chat(motab={"method": method}, seed=1, max_tokens=40)
    response = await asked(recorded, service_of(student, teacher), CHAT, body)
    (record,) = recorded.records()
    assert record.method == method
    assert record.output == response.json()["choices"][0]["message"]["content"]


async def test_every_choice_has_a_record_of_its_own(recorded: Recorded) -> None:
    student = ScriptedBackend(lambda sampling: says(f"seed {sampling.seed}"))
    response = await asked(recorded, service_of(student), CHAT, chat(n=3, seed=0))
    records = sorted(recorded.records(), key=lambda record: record.sample)
    assert [record.sample for record in records] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in response.json()["choices"]]
    assert [record.output for record in records] == texts
    assert len({record.id for record in records}) == 3
    assert {record.response_id for record in records} == {response.json()["id"]}


async def test_a_question_that_is_asked_again_by_the_same_name_has_two_records(
    recorded: Recorded,
) -> None:
    service = service_of(ScriptedBackend(lambda _sampling: says("x")))
    async with open_appender(recorded.disk) as service.records:
        for _ in range(2):
            await answer(service, CHAT, chat(), headers={"x-request-id": "again"})
    first, second = recorded.records()
    assert (first.request_id, first.response_id) == ("again", "chatcmpl-again")
    assert first.id != second.id


async def test_what_failed_attempts_cost_is_in_the_record(recorded: Recorded) -> None:
    broken = UpstreamInterrupted("student", "its stream broke")
    student = ScriptedBackend(iter_of(says("ok"), says("lost", broken), says("good")))
    response = await asked(recorded, service_of(student), CHAT, chat(n=2))
    records = {record.output: record for record in recorded.records()}
    assert len(response.json()["choices"]) == 2
    assert records["ok"].attempts == 1
    assert records["good"].attempts == 2
    assert records["good"].usage.motab.student_tokens == 2
    assert records["good"].usage.motab.student_tokens_discarded == 1
    assert records["good"].usage.motab.student_calls == 2


async def test_failed_choices_and_empty_texts_have_no_record(recorded: Recorded) -> None:
    broken = UpstreamInterrupted("student", "its stream broke")
    student = ScriptedBackend(iter_of(says("ok"), says(broken), says(broken), says()))
    service = service_of(student)
    async with open_appender(recorded.disk) as service.records:
        partly = await answer(service, CHAT, chat(n=2))
        empty = await answer(service, CHAT, chat())
    assert len(partly.json()["motab"]["failed"]) == 1
    assert empty.status_code == 200
    assert [record.output for record in recorded.records()] == ["ok"]


async def test_a_given_text_is_no_trajectory(recorded: Recorded) -> None:
    body = {**chat(), "text": "One.\n\nTwo."}
    response = await asked(recorded, service_of(ScriptedBackend()), SCORE, body)
    assert response.status_code == 200
    assert recorded.records() == []


async def test_a_choice_is_recorded_when_it_ends_although_the_client_leaves_before_the_others(
    recorded: Recorded,
) -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(iter_of(says("quick"), says("slow", gate)))
    service = service_of(student)
    async with open_appender(recorded.disk) as service.records, over_http(service) as client:
        asking = asyncio.create_task(client.post(CHAT, json=chat(n=2)))
        assert await asyncio.to_thread(recorded.disk.has_written.wait, PATIENCE_S)
        asking.cancel()
        await student.writes[1].closed.wait()
    assert [record.output for record in recorded.records()] == ["quick"]


@pytest.fixture
async def full(recorded: Recorded) -> AsyncIterator[Service]:
    """A service whose disk is full."""
    service = service_of(ScriptedBackend(lambda _sampling: says("x")))
    async with open_appender(recorded.disk) as service.records:
        recorded.disk.is_full = True
        yield service


async def test_an_answer_whose_record_is_not_on_disk_is_an_error(
    recorded: Recorded, full: Service
) -> None:
    response = await answer(full, CHAT, chat())
    assert response.status_code == 503
    assert error_in(response)["code"] == "record_not_written"
    message = "the answer is complete, but its record is not on disk"
    assert error_in(response)["message"] == (
        f"{message}: {recorded.disk.path}: No space left on device"
    )


async def test_a_stream_whose_record_is_not_on_disk_has_no_good_end(full: Service) -> None:
    *_, last = payloads(await answer(full, CHAT, chat(stream=True)))
    assert last["error"]["code"] == "record_not_written"


async def test_no_trajectory_begins_until_the_disk_has_room_and_none_is_lost(
    recorded: Recorded, full: Service
) -> None:
    async with in_process(full) as client:
        await client.post(CHAT, json=chat())
        assert "No space left on device" in (await client.get("/ready")).json()["records"]
        for stream in (False, True):
            refused = await client.post(CHAT, json=chat(stream=stream))
            assert refused.status_code == 503
            assert "no trajectory begins" in error_in(refused)["message"]
        student = full.models[MODEL].pair.of("student").writer
        assert isinstance(student, ScriptedBackend)
        assert len(student.writes) == 1
        assert (await client.get("/ready")).status_code == 503
        recorded.disk.is_full = False
        assert (await client.post(CHAT, json=chat())).status_code == 200
        ready_again = await client.get("/ready")
        assert (ready_again.status_code, ready_again.json()["records"]) == (200, "ok")
    assert len(recorded.records()) == 2


async def test_without_records_ready_does_not_mention_them() -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        assert set((await client.get("/ready")).json()) == {"status", "upstreams"}


@pytest.mark.parametrize("stitch", ["flawed", "clean"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_record_of_two_rounds_lists_both_breaches(
    recorded: Recorded, stream: bool, stitch: str
) -> None:
    body = chat(stream=stream, motab={**TWICE, "stitch": stitch})
    response = await asked(recorded, service_of(*straying_twice()), CHAT, body)
    (record,) = recorded.records()
    assert [(one.breach, one.bifurcation) for one in record.all_breaches] == [(1, 1), (3, 3)]
    corrections = [[piece.text for piece in pieces] for pieces in record.corrections()]
    revise = ["However,\n\n"] if stitch == "flawed" else []
    assert corrections == [[*revise, C], [*revise, "Right."]]
    assert [record.step_role(index) for index in range(4)] == ["student", "flawed"] * 2
    if not stream:
        question = Question(record.id, (Message(role="user", content="Q"),))
        seconds = record.seconds
        made = traced_record(response.content, question, sample=0, attempts=1, seconds=seconds)
        ids = {"request_id": record.request_id, "response_id": record.response_id}
        assert made.model_copy(update=ids) == record
