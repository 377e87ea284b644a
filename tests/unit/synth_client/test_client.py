import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import httpx
import orjson
import pytest

from synth_client.asking.client import SynthClient
from synth_client.asking.errors import SynthesisError, Trouble
from synth_client.errors import RunAborted
from synth_client.questions.question import Question, Synthesis, Unit, units_of
from synth_client.record import Message, Record
from tests.support.records import SAFE, breached, record_of, steps_of, unbroken

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
AsyncHandler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def answer_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The proxy's answer, from which the record `fields` should come."""
    traced = ("method", "breach", "bifurcation", "spans", "steps", "params", "models", "scoring")
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
                "motab": {name: fields[name] for name in traced},
            }
        ],
        "usage": {**fields["usage"], "prompt_tokens_details": {"cached_tokens": 0}},
    }


def unit_of(synthesis: Synthesis, question: Question = QUESTION, sample: int = 0) -> Unit:
    return list(units_of(question, synthesis, sample + 1))[sample]


async def ask(handler: Handler | AsyncHandler, question: Question = QUESTION, **how: Any) -> Record:
    transport = httpx.MockTransport(handler)
    synthesis = how.pop("synthesis", SYNTHESIS)
    unit = unit_of(synthesis, question, how.pop("sample", 0))
    async with SynthClient("http://proxy/v1", synthesis, transport=transport, **how) as client:
        return await client.synthesise(unit)


async def refused(handler: Handler) -> SynthesisError:
    with pytest.raises(SynthesisError) as caught:
        await ask(handler)
    return caught.value


def answering(payload: Any, status: int = 200) -> Handler:
    content = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return lambda request: httpx.Response(status, content=content)


async def test_an_answer_becomes_the_record_it_describes() -> None:
    record = await ask(answering(answer_of(breached())))
    unverified = {"predicted": None, "correct": None, "verification": None}
    expected = record_of(breached() | unverified | {"seconds": record.seconds})
    assert record == expected.model_copy(update={"motab_version": version("motab")})


@pytest.mark.parametrize("scoring", ["forced_decode", "judge_sample"])
async def test_the_record_tells_how_the_teacher_scored(scoring: str) -> None:
    assert (await ask(answering(answer_of(breached() | {"scoring": scoring})))).scoring == scoring


async def test_where_nothing_is_scored_no_way_of_scoring_is_recorded() -> None:
    alone = unbroken(method="student", scoring=None, steps=steps_of(SAFE, [None, None]))
    assert (await ask(answering(answer_of(alone)))).scoring is None


async def test_the_record_survives_the_way_through_its_line() -> None:
    record = await ask(answering(answer_of(breached())))
    assert Record.from_json_line(record.to_json_line()) == record


async def test_the_question_is_posted_with_the_parameters_and_nothing_else() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answering(answer_of(breached()))(request)

    await ask(handler, synthesis=replace(SYNTHESIS, top_p=0.9, max_tokens=99, seed=5), sample=2)
    (request,) = seen
    assert (request.method, str(request.url)) == (
        "POST",
        "http://proxy/v1/motab/chat/completions",
    )
    assert "authorization" not in request.headers
    assert orjson.loads(request.content) == {
        "model": "motab/smol+big",
        "messages": [
            {"role": "system", "content": "Think in steps."},
            {"role": "user", "content": "How many apples are in 12 bags [of 3]?"},
        ],
        "temperature": 0.6,
        "top_p": 0.9,
        "max_tokens": 99,
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

    await ask(handler, synthesis=Synthesis(model="m", temperature=0.0, seed=0))
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
    assert (await ask(answering(answer_of(breached())), sample=4)).sample == 4


async def test_the_seconds_are_those_of_the_request() -> None:
    async def handler(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.05)
        return answering(answer_of(breached()))(request)

    record = await ask(handler)
    assert 0.045 < record.seconds < 30


async def test_nobody_has_verified_an_answer_that_just_came() -> None:
    record = await ask(answering(answer_of(unbroken())))
    assert (record.answer, record.predicted, record.correct) == ("36", None, None)
    assert record.verification is None


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
            assert (await client.synthesise(unit_of(SYNTHESIS))).breach == 3


def test_units_have_a_key_for_what_is_asked_and_not_for_what_it_is_called() -> None:
    keys = {unit_of(SYNTHESIS, sample=sample).key for sample in range(3)}
    assert len(keys) == 3
    renamed = replace(QUESTION, id="other", answer=None)
    assert unit_of(SYNTHESIS, renamed).key == unit_of(SYNTHESIS).key
    assert unit_of(replace(SYNTHESIS, timeout_s=1.0)).key == unit_of(SYNTHESIS).key
    asked_otherwise = [
        replace(SYNTHESIS, model="other"),
        replace(SYNTHESIS, params={"base_threshold": 0.3}),
        replace(SYNTHESIS, temperature=0.7),
        replace(SYNTHESIS, top_p=0.7),
        replace(SYNTHESIS, max_tokens=7),
        replace(SYNTHESIS, seed=7),
        replace(SYNTHESIS, params={}, plain=True),
        replace(SYNTHESIS, params={}),
    ]
    others = {unit_of(synthesis).key for synthesis in asked_otherwise}
    assert len(others | {unit_of(SYNTHESIS).key}) == 9
    said = replace(QUESTION, messages=(Message(role="user", content="another"),))
    assert unit_of(SYNTHESIS, said).key != unit_of(SYNTHESIS).key


def test_the_order_of_the_parameters_makes_no_other_key() -> None:
    turned = {name: SYNTHESIS.params[name] for name in reversed(list(SYNTHESIS.params))}
    assert list(turned) != list(SYNTHESIS.params)
    assert unit_of(replace(SYNTHESIS, params=turned)).key == unit_of(SYNTHESIS).key


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


PLAIN = Synthesis(model="m", plain=True)


def plain_answer(**message: Any) -> dict[str, Any]:
    return {
        "model": "m-2026",
        "choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "queue_time": 1},
    }


async def test_a_plain_server_is_asked_at_openais_route() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/chat/completions"
        assert "motab" not in orjson.loads(request.content)
        return answering(plain_answer(content="It is 36."))(request)

    record = await ask(handler, synthesis=PLAIN)
    assert (record.method, record.output) == ("plain", "It is 36.")
    assert record.usage.motab.teacher_tokens == 5
    assert record.scoring is None
    assert Record.from_json_line(record.to_json_line()) == record


async def test_reasoning_that_a_plain_server_keeps_apart_is_not_lost_in_silence() -> None:
    answer = plain_answer(content="36", reasoning_content="12 times 3")
    with pytest.raises(SynthesisError, match="without its reasoning parser") as caught:
        await ask(answering(answer), synthesis=PLAIN)
    assert caught.value.ends_the_run


async def test_a_question_stays_with_one_server_until_it_fails_there() -> None:
    hosts: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return answering(answer_of(breached()))(request)

    urls = ["http://a/v1", "http://b/v1", "http://c/v1"]
    transport = httpx.MockTransport(handler)
    async with SynthClient(urls, SYNTHESIS, transport=transport) as client:
        for sample in range(30):
            for attempt in (1, 1, 2, 3, 4):
                await client.synthesise(unit_of(SYNTHESIS, sample=sample), attempt=attempt)
    assert set(hosts[::5]) == {"a", "b", "c"}
    for first, again, second, third, fourth in zip(*[iter(hosts)] * 5, strict=True):
        assert first == again == fourth
        assert {first, second, third} == {"a", "b", "c"}


async def check(status: int, content: bytes) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=content))
    async with SynthClient("http://proxy/v1", SYNTHESIS, transport=transport) as client:
        await client.check()


@pytest.mark.parametrize(("status", "content"), [(200, b"{}"), (404, b"no"), (500, b"")])
async def test_before_the_first_question_a_server_need_not_know_its_models(
    status: int, content: bytes
) -> None:
    await check(status, content)


async def test_before_the_first_question_a_refused_key_is_told() -> None:
    with pytest.raises(RunAborted, match="http://proxy/v1: HTTP 401: no"):
        await check(401, b"no")


async def test_before_the_first_question_a_server_of_web_pages_is_told() -> None:
    with pytest.raises(RunAborted) as caught:
        await check(200, b"<!DOCTYPE html>\n<html>")
    assert str(caught.value).startswith(
        "http://proxy/v1 is no OpenAI-compatible server: to GET models it answers"
        " '<!DOCTYPE html> <html>'; --base-url ends in /v1"
    )


@pytest.mark.parametrize("body", [{"detail": "Not Found"}, {"error": {"message": "unknown"}}])
async def test_a_route_that_is_not_there_tells_what_may_be_wrong(body: dict[str, Any]) -> None:
    error = await refused(answering(body, 404))
    assert error.message.startswith("/v1/motab/chat/completions: ")
    assert error.message.endswith(
        "--base-url ends in /v1, and a server that is not motab's needs --plain"
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
