"""Tests corrections that fail, clients that leave, and requests that cannot be served."""

import asyncio
from typing import Any

import pytest

from proxy.backends.limits import ModelLimits
from proxy.errors import UpstreamUnreachable
from tests.integration.proxy.corrections.answering import (
    SEED,
    asking,
    box,
    choosing,
    choosing_of,
    teacher_of,
)
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_TEXT,
    SCORE,
    TEXT,
    answer,
    chat,
    error_of,
    over_http,
    service_of,
    straying,
    text,
)
from tests.support.scripted import says

GONE = UpstreamUnreachable("teacher", "no connection")


async def test_a_correction_whose_server_fails_is_left_out_of_the_choice() -> None:
    with choosing(box(7), says("So ", GONE), box(5), box(5, "a ")) as service:
        response = await answer(service, CHAT, chat(**asking(4)))
    body = response.json()
    chosen = body["choices"][0]["motab"]["chosen"]
    assert chosen == {
        "index": 2,
        "by": "majority",
        "answers": ["7", None, "5", "5"],
        "lost": [1],
    }
    assert body["usage"]["motab"]["teacher_tokens"] == 2 + 1 + 2 + 3
    assert body["usage"]["motab"]["teacher_tokens_discarded"] == 2 + 1 + 3


async def test_a_trajectory_fails_as_its_corrections_did_where_all_are_lost() -> None:
    with choosing(says(GONE), says("So ", GONE)) as service:
        status, error = await error_of(service, CHAT, chat(**asking(2)))
    assert (status, error["code"]) == (502, "upstream_unreachable")
    assert "no connection" in error["message"]


async def test_the_draft_has_no_other_that_could_stand_in_for_it() -> None:
    teacher = teacher_of(box(7), box(7))
    teacher.faults["score", 0] = GONE
    with choosing_of(teacher) as service:
        status, _ = await error_of(service, CHAT, chat(**asking(2)))
    assert status == 502
    assert teacher.writes == []


async def test_all_corrections_are_cancelled_when_the_client_leaves() -> None:
    never = asyncio.Event()
    teacher = teacher_of(*(says("So ", never) for _ in range(3)))
    with choosing_of(teacher) as service:
        async with over_http(service) as client:
            request = chat(stream=True, **asking(3))
            asking_ = asyncio.create_task(client.post(CHAT, json=request))
            await teacher.until_called("write", 3)
            asking_.cancel()
            async with asyncio.timeout(PATIENCE_S):
                for writing in teacher.writes:
                    await writing.closed.wait()
    assert all(writing.cancelled for writing in teacher.writes)


async def test_corrections_wait_for_places_of_their_server() -> None:
    teacher = teacher_of(*(box(index) for index in range(40)))
    with choosing_of(teacher) as service:
        response = await answer(service, CHAT, chat(**asking(40, "39")))
    assert response.json()["choices"][0]["motab"]["chosen"]["index"] == 39


@pytest.mark.parametrize(
    ("path", "fields", "param", "says_"),
    [
        (CHAT, {"corrections": 0}, "corrections", "must be at least 1, not 0"),
        (CHAT, {"corrections": 65}, "corrections", "must be at most 64, not 65"),
        (CHAT, {"corrections": "4"}, "corrections", "should be a valid integer"),
        (CHAT, {"corrections": 2.5}, "corrections", "integer"),
        (CHAT, {"corrections": True}, "corrections", "integer"),
        (CHAT, {"corrections": 4, "method": "skd"}, "corrections", "must be 1 with method 'skd'"),
        (CHAT, {"corrections": 4, "method": "teacher"}, "corrections", "must be 1 with method"),
        (CHAT, {"choose": "majority", "method": "student"}, "choose", "must be 'auto' with method"),
        (CHAT, {"corrections": 4, "choose": "best"}, "choose", "'verified' or 'majority'"),
        (CHAT, {"corrections": 4, "choose": "verified"}, "reference", "needs it"),
        (CHAT, {"corrections": 4, "reference": 7}, "reference", "valid string"),
        (CHAT, {"corrections": 4, "reference": " "}, "reference", "it is blank"),
        (CHAT, {"corrections": 4, "reference": "7" * 100_001}, "reference", "at most 100000"),
        (CHAT, {"reference": "7"}, "reference", "it has no use"),
        (CHAT, {"corrections": 1, "reference": "7"}, "reference", "it has no use"),
        (
            CHAT,
            {"corrections": 4, "choose": "majority", "reference": "7"},
            "reference",
            "where choose is 'majority'",
        ),
        (CHAT, {"method": "prefix", "reference": "7"}, "reference", "it has no use"),
    ],
)
async def test_what_cannot_be_chosen_is_refused_by_its_field(
    path: str, fields: dict[str, Any], param: str, says_: str
) -> None:
    with choosing() as service:
        status, error = await error_of(service, path, chat(motab=fields))
    assert (status, error["param"]) == (400, f"motab.{param}")
    assert says_ in error["message"]


async def test_a_reference_answers_one_question() -> None:
    with choosing(box(7), box(5)) as service:
        body = {"model": MODEL, "prompt": ["P", "Q"], **asking(2, "7")}
        for path in (TEXT, MOTAB_TEXT):
            status, error = await error_of(service, path, body)
            assert (status, error["param"]) == (400, "motab.reference")
            assert "the answer to one question, and these are 2" in error["message"]
        one = await answer(service, TEXT, text(**asking(2, "7")))
        assert one.json()["choices"][0]["motab"]["chosen"]["by"] == "reference"


@pytest.mark.parametrize("name", ["corrections", "choose", "reference"])
async def test_a_given_text_has_no_corrections(name: str) -> None:
    value: Any = {"corrections": 2, "choose": "majority", "reference": "7"}[name]
    with choosing() as service:
        body = chat(text="T", motab={name: value})
        status, error = await error_of(service, SCORE, body)
    assert (status, error["param"], error["code"]) == (400, f"motab.{name}", "unsupported_field")


async def test_a_server_that_reads_no_answers_says_so() -> None:
    service = service_of(*straying())
    status, error = await error_of(service, CHAT, chat(motab={"corrections": 2}))
    assert (status, error["param"]) == (400, "motab.corrections")
    assert "this server reads no answers" in error["message"]


async def test_a_rule_that_cannot_be_loaded_is_named_before_anything_is_written() -> None:
    teacher = teacher_of(box(7), box(7))
    with choosing_of(teacher, rule="no.such.module:rule") as service:
        for _ in range(2):
            status, error = await error_of(service, CHAT, chat(**asking(2)))
            assert (status, error["param"]) == (400, "motab.corrections")
            assert "the rule no.such.module:rule cannot be loaded" in error["message"]
    assert teacher.writes == []


async def test_another_method_ignores_the_corrections_of_its_models_params() -> None:
    service = service_of(*straying(), {"corrections": 4, "choose": "majority"})
    response = await answer(service, CHAT, chat(motab={"method": "student"}))
    assert response.status_code == 200
    # Of the model's own method they are its own.
    status, error = await error_of(service, CHAT, chat())
    assert (status, error["param"]) == (400, "motab.corrections")


async def test_the_limit_that_is_named_is_the_kept_corrections_own() -> None:
    for first, kept in ((7, 0), (5, 1)):
        gate = asyncio.Event()
        cut = says(f"\\boxed{{{first}}}", ".\n\n", "So", " we", " are", " done")
        teacher = teacher_of(cut, says(gate, "\\boxed{7}"))
        with choosing_of(teacher) as service:
            pair = service.models[MODEL].pair
            pair.of("teacher").budget.limits = ModelLimits(output_tokens=4)
            sending = asyncio.create_task(answer(service, CHAT, chat(**asking(2, "7"))))
            await teacher.until_called("write", 2)
            await teacher.writes[0].closed.wait()
            gate.set()
            (choice,) = (await sending).json()["choices"]
        assert choice["motab"]["chosen"]["index"] == kept
        limit = {"model": "teacher", "limit": "max_output_tokens", "tokens": 4}
        assert choice["motab"].get("limited_by") == (None if kept else limit)
        assert choice["finish_reason"] == ("stop" if kept else "length")


async def test_choices_of_a_request_choose_each_for_itself() -> None:
    teacher = teacher_of()
    answers = iter([box(5), box(7), box(7, "a "), box(6)])
    teacher.script = lambda _sampling: next(answers)
    with choosing_of(teacher) as service:
        response = await answer(service, CHAT, chat(n=2, **asking(2, "7")))
    found = response.json()["choices"]
    assert [one["motab"]["chosen"]["by"] for one in found] == ["reference", "reference"]
    assert SEED in {write.sampling.seed for write in teacher.writes}
