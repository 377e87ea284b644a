import asyncio
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import httpx
import orjson
import pytest

from synth_client.client import Question, SynthClient, Synthesis, SynthesisError, last_number
from synth_client.record import Message, Record
from tests.unit.test_record import breached, record_of, unbroken

QUESTION = Question(
    id="apples",
    messages=(
        Message(role="system", content="Think in steps."),
        Message(role="user", content="How many apples are in 12 bags [of 3]?"),
    ),
    answer="36",
)
SYNTHESIS = Synthesis(
    model="motab/smol+big", params={"base_threshold": 0.3, "stitch": "clean"}, temperature=0.6
)
Handler = Callable[[httpx.Request], httpx.Response]


def answer_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The proxy's answer, from which the record `fields` should come."""
    traced = ("method", "breach", "bifurcation", "spans", "steps", "params", "models")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1770000000,
        "model": "motab/smol+big",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": fields["output"], "refusal": None},
                "logprobs": None,
                "finish_reason": fields["finish_reason"],
                "motab": {**{name: fields[name] for name in traced}, "scoring": "prompt_logprobs"},
            }
        ],
        "usage": {**fields["usage"], "prompt_tokens_details": {"cached_tokens": 0}},
    }


async def ask(handler: Handler, question: Question = QUESTION, **how: Any) -> Record:
    transport = httpx.MockTransport(handler)
    async with SynthClient(
        "http://proxy/v1", how.pop("synthesis", SYNTHESIS), transport=transport, **how
    ) as client:
        return await client.synthesise(question)


async def refused(handler: Handler) -> SynthesisError:
    with pytest.raises(SynthesisError) as caught:
        await ask(handler)
    return caught.value


def answering(payload: Any, status: int = 200) -> Handler:
    content = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return lambda request: httpx.Response(status, content=content)


async def test_an_answer_becomes_the_record_it_describes() -> None:
    record = await ask(answering(answer_of(breached())))
    expected = record_of(breached() | {"seconds": record.seconds, "motab_version": "0"})
    assert record == expected.model_copy(update={"motab_version": version("motab")})


async def test_the_record_survives_the_way_through_its_line() -> None:
    record = await ask(answering(answer_of(breached())))
    assert Record.from_json_line(record.to_json_line()) == record


async def test_the_question_is_posted_with_the_parameters_and_nothing_else() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answering(answer_of(breached()))(request)

    async with SynthClient(
        "http://proxy:8800/v1", SYNTHESIS, transport=httpx.MockTransport(handler)
    ) as client:
        await client.synthesise(QUESTION, sample=2, seed=7)
    (request,) = seen
    assert (request.method, str(request.url)) == (
        "POST",
        "http://proxy:8800/v1/motab/chat/completions",
    )
    assert "authorization" not in request.headers
    assert orjson.loads(request.content) == {
        "model": "motab/smol+big",
        "messages": [
            {"role": "system", "content": "Think in steps."},
            {"role": "user", "content": "How many apples are in 12 bags [of 3]?"},
        ],
        "temperature": 0.6,
        "seed": 7,
        "n": 1,
        "motab": {"base_threshold": 0.3, "stitch": "clean"},
    }


async def test_what_was_not_chosen_is_left_to_the_proxy() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(orjson.loads(request.content))
        return answering(answer_of(breached()))(request)

    await ask(handler, synthesis=Synthesis(model="m"))
    assert bodies[0].keys() == {"model", "messages", "n", "motab"}
    assert bodies[0]["motab"] == {}


async def test_a_temperature_and_a_seed_of_zero_are_chosen_and_sent() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(orjson.loads(request.content))
        return answering(answer_of(breached()))(request)

    transport = httpx.MockTransport(handler)
    greedy = Synthesis(model="m", temperature=0.0)
    async with SynthClient("http://proxy/v1", greedy, transport=transport) as client:
        await client.synthesise(QUESTION, seed=0)
    assert (bodies[0]["temperature"], bodies[0]["seed"]) == (0.0, 0)


async def test_a_trajectory_may_take_long_but_a_connection_may_not() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        timeout = request.extensions["timeout"]
        assert (timeout["read"], timeout["connect"]) == (1800.0, 10.0)
        return answering(answer_of(breached()))(request)

    await ask(handler, synthesis=Synthesis(model="m", timeout_s=1800.0))


async def test_the_api_key_is_sent_as_a_bearer_token() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        return answering(answer_of(breached()))(request)

    await ask(handler, api_key="secret")


async def test_the_record_carries_the_sample_it_was_asked_as() -> None:
    transport = httpx.MockTransport(answering(answer_of(breached())))
    async with SynthClient("http://proxy/v1", SYNTHESIS, transport=transport) as client:
        assert (await client.synthesise(QUESTION, sample=4)).sample == 4


async def test_the_seconds_are_those_of_the_request() -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.05)
        return answering(answer_of(breached()))(request)

    async with SynthClient(
        "http://proxy/v1", SYNTHESIS, transport=httpx.MockTransport(handler)
    ) as client:
        record = await client.synthesise(QUESTION)
    assert 0.045 < record.seconds < 30


@pytest.mark.parametrize(
    ("answer", "correct"),
    [("3", True), (" 3 ", True), ("36", False), ("3.0", False), (None, None)],
)
async def test_the_last_number_is_compared_with_the_answer_where_there_is_one(
    answer: str | None, correct: bool | None
) -> None:
    question = Question("bags", QUESTION.messages, answer)
    record = await ask(answering(answer_of(unbroken())), question)
    assert (record.answer, record.predicted, record.correct) == (answer, "3", correct)


async def test_an_output_without_a_number_is_wrong_not_unknown() -> None:
    text = "Who knows?"
    fields = unbroken(
        output=text, spans=[{"role": "student", "start": 0, "end": len(text)}], steps=[]
    )
    record = await ask(answering(answer_of(fields)))
    assert (record.predicted, record.correct) == (None, False)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("none at all", None),
        ("first 1, then 2", "2"),
        ("The answer is 36.", "36"),
        ("It costs $1,234,567.50.", "1234567.50"),
        ("1,2", "2"),
        ("12,3456", "3456"),
        ("x = -5", "-5"),
        ("7-5", "5"),
        ("(7)-5", "5"),
        ("well-5", "5"),
        ("\\boxed{-0.5}", "-0.5"),
        ("Answer:\n42\n", "42"),
        ("_42_ apples", "42"),
        ("USD42", "42"),
    ],
)
def test_the_last_number_is_read_as_it_is_written(text: str, number: str | None) -> None:
    assert last_number(text) == number


async def test_an_answer_with_grouped_thousands_is_the_same_number() -> None:
    text = "So 1234."
    fields = unbroken(
        output=text, spans=[{"role": "student", "start": 0, "end": len(text)}], steps=[]
    )
    record = await ask(
        answering(answer_of(fields)), Question("thousands", QUESTION.messages, "1,234")
    )
    assert (record.answer, record.correct) == ("1,234", True)


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


async def test_a_proxy_on_loopback_is_reached_past_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = orjson.dumps(answer_of(breached()))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length is not None
        await reader.readexactly(int(length[1]))
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with SynthClient(f"http://127.0.0.1:{port}/v1", SYNTHESIS) as client:
            assert (await client.synthesise(QUESTION)).correct
