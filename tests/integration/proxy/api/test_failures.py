"""Tests what a client is answered when a server, a limit or the proxy itself fails."""

import asyncio
from math import inf

import pytest

from proxy.backends.base import Scores
from proxy.errors import ContextExceeded, MotabError, UpstreamFailed, UpstreamUnreachable
from tests.support.patience import longer_and_longer
from tests.support.proxy.api import (
    CHAT,
    MOTAB_CHAT,
    PROMPT_TOKENS,
    SCORE,
    A,
    answer,
    chat,
    chunks_of,
    error_in,
    error_of,
    in_process,
    payloads,
    service_of,
    straying,
    streamed_text,
    text,
)
from tests.support.scripted import ScriptedBackend, says


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_over_capacity_is_told_when_to_come_again(stream: bool) -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(says(gate, "x"))
    service = service_of(student, max_concurrent=2)
    async with in_process(service) as client:
        first = asyncio.create_task(client.post(CHAT, json=chat()))
        await student.until_called("write")
        response = await client.post(CHAT, json=chat(n=2, stream=stream))
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        error = error_in(response)
        assert (error["type"], error["code"]) == ("rate_limit_error", "over_capacity")
        gate.set()
        assert (await first).status_code == 200
        assert (await client.post(CHAT, json=chat(n=2))).status_code == 200


async def test_more_choices_than_the_server_ever_runs_are_a_bad_request() -> None:
    service = service_of(ScriptedBackend(says("x")), max_concurrent=2)
    status, error = await error_of(service, CHAT, chat(n=3))
    assert (status, error["param"]) == (400, "n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (UpstreamFailed("student", "/write answered 500: down"), 502, "upstream_failed"),
        (UpstreamUnreachable("student", "no connection"), 502, "upstream_unreachable"),
        (ContextExceeded("too long for 'student'"), 400, "context_length_exceeded"),
    ],
    ids=lambda fault: fault.code if isinstance(fault, MotabError) else None,
)
async def test_an_upstreams_failure_before_the_first_byte_is_a_status(
    stream: bool, fault: Exception, status: int, code: str
) -> None:
    student = ScriptedBackend(says("x"), faults={("write", 0): fault})
    found, error = await error_of(service_of(student), CHAT, chat(stream=stream))
    assert (found, error["code"], error["message"]) == (status, code, str(fault))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wished_s", "header"), [(7.2, "8"), (0.0, "0"), (None, None), (inf, None)]
)
async def test_the_client_is_told_when_an_upstream_wants_to_be_asked_again(
    stream: bool, wished_s: float | None, header: str | None
) -> None:
    busy = UpstreamFailed("student", "busy", retry_after_s=wished_s)
    student = ScriptedBackend(says("x"), faults={("write", 0): busy})
    response = await answer(service_of(student), CHAT, chat(stream=stream))
    assert response.status_code == 502
    assert response.headers.get("retry-after") == header


async def test_an_upstreams_failure_in_a_stream_is_its_last_event() -> None:
    failed = UpstreamFailed("teacher", "down")
    teacher = ScriptedBackend(faults={("score", 0): failed})
    chunks = await chunks_of(service_of(ScriptedBackend(says(A))), CHAT, chat())
    assert chunks[-1] == "[DONE]"
    chunks = await chunks_of(service_of(ScriptedBackend(says(A)), teacher), CHAT, chat())
    assert streamed_text(chunks[:-1]) == A
    assert chunks[-1] == {
        "error": {
            "message": "upstream 'teacher': down",
            "type": "upstream_error",
            "param": None,
            "code": "upstream_failed",
        }
    }


async def test_an_impossible_score_is_a_502_and_never_an_answer() -> None:
    def distort(scores: Scores) -> Scores:
        return Scores((), None, scores.num_tokens, 0)

    service = service_of(ScriptedBackend(says(A)), ScriptedBackend(distort=distort))
    status, error = await error_of(service, CHAT, chat())
    assert (status, error["code"]) == (502, "upstream_malformed")


@pytest.mark.parametrize("stream", [False, True])
async def test_while_draining_new_requests_are_turned_away(stream: bool) -> None:
    service = service_of(ScriptedBackend(says("x")))
    service.admission.draining = True
    status, error = await error_of(service, CHAT, chat(stream=stream))
    assert (status, error["code"]) == (503, "draining")
    status, _ = await error_of(service, SCORE, {**text(), "text": "x"})
    assert status == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_over_its_time_is_a_504_and_ends_upstream(stream: bool) -> None:
    student = ScriptedBackend(says(asyncio.Event()))
    for limit_s in longer_and_longer(0.05):
        service = service_of(student, request_timeout_s=limit_s)
        status, error = await error_of(service, CHAT, chat(stream=stream))
        assert (status, error["type"], error["code"]) == (504, "timeout_error", "deadline_exceeded")
        if student.writes:  # the student was asked before the time was over
            break
    else:
        pytest.fail("no limit was long enough")
    assert student.writes[0].cancelled


async def test_a_stream_over_its_time_ends_with_the_error() -> None:
    student = ScriptedBackend(says("x", asyncio.Event()))
    for limit_s in longer_and_longer(0.05):
        service = service_of(student, request_timeout_s=limit_s)
        response = await answer(service, CHAT, chat(stream=True))
        if response.status_code == 200:  # it had begun before the time was over
            break
        assert response.status_code == 504
    else:
        pytest.fail("no limit was long enough")
    chunks = payloads(response)
    assert streamed_text(chunks[:-1]) == "x"
    assert chunks[-1]["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_of_ours_is_a_500_that_tells_nothing_but_the_id_to_look_for(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    student = ScriptedBackend(says(RuntimeError("secret")))
    body = chat(stream=stream)
    response = await answer(service_of(student), CHAT, body, headers={"x-request-id": "find-me"})
    assert response.status_code == 500
    error = error_in(response)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in response.text
    assert "unexpected error" in caplog.text
    assert response.headers["x-request-id"] == "find-me"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_says_what_it_cost_where_the_whole_trace_is_wanted(stream: bool) -> None:
    student, teacher = straying()
    teacher.faults["write", 0] = UpstreamFailed("teacher", "it is down")
    response = await answer(service_of(student, teacher), MOTAB_CHAT, chat(stream=stream))
    body = payloads(response)[-1] if stream else response.json()
    assert body["error"]["code"] == "upstream_failed"
    spent = body["usage"]
    assert spent["prompt_tokens"] == PROMPT_TOKENS
    assert spent["motab"]["student_tokens"] == spent["motab"]["student_tokens_discarded"] > 0
    assert (spent["motab"]["student_calls"], spent["motab"]["correction_calls"]) == (1, 1)
