"""Tests which errors a client's answers become."""

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from proxy.errors import MotabError
from synth_client.asking.client import SynthClient
from synth_client.asking.errors import _TROUBLE_OF_CODE, SynthesisError, Trouble
from synth_client.errors import RunAborted
from synth_client.questions.question import Synthesis
from tests.support.records import breached, unbroken
from tests.support.synth_client.client import (
    PLAIN,
    SYNTHESIS,
    answer_of,
    answering,
    ask,
    plain_answer,
    refused,
    unit_of,
)
from trajectory_records.record import Record


async def test_an_error_of_the_proxy_is_carried_whole() -> None:
    body = {
        "error": {
            "message": "gamma must be at least 0",
            "type": "invalid_request_error",
            "param": "motab.gamma",
            "code": "invalid_value",
        }
    }
    error = await refused(answering(body, 400))
    assert (error.status, error.message) == (400, "gamma must be at least 0")
    assert (error.error_type, error.param, error.code) == (
        "invalid_request_error",
        "motab.gamma",
        "invalid_value",
    )
    assert str(error) == "HTTP 400: gamma must be at least 0"


async def test_an_error_page_of_a_gateway_is_quoted() -> None:
    error = await refused(answering(b"<html>Bad Gateway" + b"x" * 5000, 502))
    assert error.status == 502
    assert error.message.startswith("<html>Bad Gateway")
    assert len(error.message) == 200


async def test_an_error_without_a_body_still_says_something() -> None:
    error = await refused(answering(b"", 503))
    assert str(error) == "HTTP 503: Service Unavailable"


async def test_a_redirect_is_no_answer() -> None:
    error = await refused(lambda request: httpx.Response(307, headers={"location": "/elsewhere"}))
    assert error.status == 307


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("connection refused"),
        httpx.ReadTimeout("nothing came"),
        httpx.RemoteProtocolError("server disconnected"),
    ],
)
async def test_a_failed_connection_has_no_status_and_names_the_proxy(
    fault: httpx.TransportError,
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise fault

    error = await refused(handler)
    assert (error.status, error.error_type) == (None, "connection_failed")
    assert "http://proxy/v1" in str(error)
    assert str(fault) in str(error)
    assert error.__cause__ is fault


async def test_a_failure_without_words_is_named_by_its_kind() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("")

    assert "ReadError" in str(await refused(handler))


def without(*path: str | int) -> dict[str, Any]:
    """The answer, with one thing taken out of it."""
    answer: Any = answer_of(breached())
    holder = answer
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return dict(answer)


def changed(value: Any, *path: str | int) -> dict[str, Any]:
    """The answer, with one thing in it replaced."""
    answer: Any = answer_of(breached())
    holder = answer
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return dict(answer)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"", "JSON"),
        (b"<html>", "JSON"),
        ({"error": {"message": "late"}}, "choices"),
        (without("usage"), "usage"),
        (without("usage", "motab"), "usage.motab"),
        (without("choices", 0, "motab"), "choices.0.motab"),
        (without("choices", 0, "motab", "params"), "choices.0.motab.params"),
        (without("choices", 0, "motab", "models"), "choices.0.motab.models"),
        (without("choices", 0, "motab", "breach"), "choices.0.motab.breach"),
        (without("choices", 0, "motab", "steps", 0, "value"), "steps.0.value"),
        (without("choices", 0, "motab", "spans", 1), "span 1 starts at"),
        (without("choices", 0, "motab", "steps", 3), "do not fit 3 steps"),
        (changed([], "choices"), "choices"),
        (changed(None, "choices", 0, "message", "content"), "content"),
        (changed("36", "choices", 0, "message", "content"), "the spans end at"),
        (changed("tool", "choices", 0, "message", "role"), "role"),
        (changed("tool_calls", "choices", 0, "finish_reason"), "finish_reason"),
        (changed("0.5", "choices", 0, "motab", "steps", 0, "value"), "steps.0.value"),
        (changed(-1, "usage", "motab", "student_tokens"), "student_tokens"),
        (answer_of(unbroken(output=" \n", spans=[], steps=[])), "the output is empty"),
    ],
)
async def test_a_malformed_answer_is_an_error_that_names_what_is_wrong(
    answer: Any, fault: str
) -> None:
    error = await refused(answering(answer))
    assert (error.status, error.error_type) == (200, "malformed_answer")
    assert fault in str(error)


async def test_two_choices_where_one_was_asked_for_are_an_error() -> None:
    answer = answer_of(breached())
    answer["choices"] *= 2
    assert "choices" in str(await refused(answering(answer)))


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (None, Trouble.TRANSIENT),
        (408, Trouble.TRANSIENT),
        (500, Trouble.TRANSIENT),
        (502, Trouble.TRANSIENT),
        (504, Trouble.TRANSIENT),
        (429, Trouble.CAPACITY),
        (503, Trouble.CAPACITY),
        (400, Trouble.PERMANENT),
        (413, Trouble.PERMANENT),
        (422, Trouble.PERMANENT),
        (200, Trouble.CONTENT),
    ],
)
def test_every_error_has_its_class(status: int | None, trouble: Trouble) -> None:
    assert SynthesisError("", status=status).trouble is trouble


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({"status": 401}, True),
        ({"status": 403}, True),
        ({"status": 404}, True),
        ({"status": 307}, True),
        ({"status": 429, "code": "insufficient_quota"}, True),
        ({"status": 400, "param": "motab.gamma"}, True),
        ({"status": 400, "param": "temperature"}, True),
        ({"status": 400, "param": "messages[0].content"}, False),
        ({"status": 400, "param": "max_tokens"}, False),
        ({"status": 400, "param": "model", "code": "context_length_exceeded"}, False),
        ({"status": 400}, False),
        ({"status": 429}, False),
        ({"status": 500}, False),
        ({"status": 200}, False),
        ({"status": None}, False),
    ],
)
def test_what_every_question_would_meet_ends_the_run(fields: dict[str, Any], ends: bool) -> None:
    assert SynthesisError("", **fields).ends_the_run is ends


async def test_how_long_the_server_wants_to_be_left_alone_is_known() -> None:
    error = await refused(lambda request: httpx.Response(429, headers={"retry-after": "2.5"}))
    assert error.retry_after_s == 2.5


async def test_reasoning_that_a_plain_server_keeps_apart_is_not_lost_in_silence() -> None:
    answer = plain_answer(content="36", reasoning_content="12 times 3")
    with pytest.raises(SynthesisError, match="without its reasoning parser") as caught:
        await ask(answering(answer), synthesis=PLAIN)
    assert caught.value.ends_the_run


@pytest.mark.parametrize("body", [{"detail": "Not Found"}, {"error": {"message": "unknown"}}])
async def test_a_route_that_is_not_there_tells_what_may_be_wrong(body: dict[str, Any]) -> None:
    error = await refused(answering(body, 404))
    assert error.message.startswith("/v1/motab/chat/completions: ")
    assert error.message.endswith(
        "--base-url ends in /v1, and a server other than motab needs --plain"
    )
    assert error.ends_the_run


async def test_a_connection_that_is_refused_is_told_in_the_systems_words() -> None:
    async with SynthClient("http://127.0.0.1:9/v1", SYNTHESIS) as client:
        with pytest.raises(SynthesisError) as caught:
            await client.synthesise(unit_of(SYNTHESIS))
        assert caught.value.message == "no answer from http://127.0.0.1:9/v1: Connection refused"
        with pytest.raises(RunAborted, match="Connection refused; is the server running there"):
            await client.check()


async def test_an_answer_that_is_no_json_is_quoted() -> None:
    error = await refused(answering(b"<html>\n<body>hello"))
    assert error.message.endswith(": '<html> <body>hello'")


@pytest.mark.parametrize(
    ("trouble", "failures"),
    [
        (Trouble.PERMANENT, {"upstream_refused": 502, "tokenizer_failed": 500}),
        (Trouble.PERMANENT, {"context_length_exceeded": 400, "content_policy_violation": 400}),
        (Trouble.CONTENT, {"upstream_malformed": 502, "internal_error": 500}),
        (Trouble.CONTENT, {"deadline_exceeded": 504}),
        (Trouble.TRANSIENT, {"upstream_failed": 502, "upstream_unreachable": 502}),
        (Trouble.TRANSIENT, {"upstream_interrupted": 502, "upstream_denied": 502}),
        (Trouble.TRANSIENT, {"upstream_refused": None}),
        (Trouble.CAPACITY, {"draining": 503, "over_capacity": 429, "record_not_written": 503}),
    ],
)
def test_the_proxys_code_says_what_its_status_cannot(
    trouble: Trouble, failures: dict[str, int | None]
) -> None:
    for code, status in failures.items():
        error = SynthesisError("", status=status, code=code)
        assert error.trouble is trouble
        assert not error.ends_the_run


def test_every_code_of_the_proxy_has_its_class() -> None:
    codes = {kind.code for kind in _kinds(MotabError) if kind.status >= 400}
    ends = {"invalid_api_key", "model_not_found", "foreign_page"}
    by_status = {"over_capacity", "draining", "upstream_failed", "upstream_unreachable"}
    by_status |= {"upstream_interrupted", "upstream_denied", "unsupported_field", "request_timeout"}
    by_status |= {"scoring_unavailable", "invalid_value", "body_too_large", "record_not_written"}
    assert codes == ends | by_status | set(_TROUBLE_OF_CODE)


def _kinds(kind: type[MotabError]) -> Iterator[type[MotabError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


@pytest.mark.parametrize("left_out", ["usage", "model", "role", "finish_reason", "content"])
async def test_what_a_plain_server_leaves_out_keeps_no_record_from_being_made(
    left_out: str,
) -> None:
    answer = plain_answer(content="It is 36.")
    for part in (answer, answer["choices"][0], answer["choices"][0]["message"]):
        part.pop(left_out, None)
    if left_out == "content":
        with pytest.raises(SynthesisError, match="the output is empty"):
            await ask(answering(answer), synthesis=PLAIN)
        return
    record = await ask(answering(answer), synthesis=PLAIN)
    assert (record.output, record.finish_reason) == ("It is 36.", "stop")
    assert record.models.teacher == ("m" if left_out == "model" else "m-2026")
    num_tokens = None if left_out == "usage" else 5
    assert record.usage.completion_tokens == num_tokens
    assert record.usage.motab.teacher_tokens == num_tokens
    assert Record.from_json_line(record.to_json_line()) == record


@pytest.mark.parametrize(
    ("word", "means"),
    [
        ("eos", "stop"),
        ("content_filter", "content_filter"),
        ("MAX_TOKENS", "length"),
        ("x", "stop"),
    ],
)
async def test_a_plain_servers_own_word_for_the_end_is_understood(word: str, means: str) -> None:
    answer = plain_answer(content="It is 36.")
    answer["choices"][0]["finish_reason"] = word
    assert (await ask(answering(answer), synthesis=PLAIN)).finish_reason == means


@pytest.mark.parametrize("synthesis", [PLAIN, SYNTHESIS])
async def test_a_byte_order_mark_costs_no_answer(synthesis: Synthesis) -> None:
    answer = plain_answer(content="36") if synthesis is PLAIN else answer_of(breached())
    content = b"\xef\xbb\xbf" + orjson.dumps(answer)
    assert (await ask(answering(content), synthesis=synthesis)).output
