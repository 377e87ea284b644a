"""Tests what the client asks and which records it makes."""

import asyncio
import re
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import httpx
import orjson
import pytest
from pydantic import JsonValue

from synth_client.asking.client import SynthClient
from synth_client.asking.errors import SynthesisError
from synth_client.errors import RunAborted
from synth_client.questions.question import Synthesis, scoring_body, scoring_unit, seed_of
from tests.support.records import SAFE, breached, record_of, several, steps_of, unbroken
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


async def test_an_answer_becomes_the_record_it_describes() -> None:
    record = await ask(answering(answer_of(breached())))
    unverified = {"predicted": None, "correct": None, "verification": None}
    asked = {"sampling": {"temperature": 0.6}, "seconds": record.seconds}
    expected = record_of(breached() | unverified | asked)
    assert record == expected.model_copy(update={"motab_version": version("motab")})


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("num", [0, 1, 2, 3])
async def test_an_answer_of_any_number_of_rounds_becomes_its_record(num: int, clean: bool) -> None:
    fields = several(*[(1, 2), (0, 1), (2, 1)][:num], tail=1, clean=clean)
    record = await ask(answering(answer_of(fields)))
    assert record.all_breaches == record_of(fields).all_breaches
    assert len(record.all_breaches) == num
    assert (b'"breaches"' in record.to_json_line()) == (num > 1)


async def test_an_answer_whose_list_of_breaches_contradicts_it_is_malformed() -> None:
    answer = answer_of(several((1, 1), (1, 1)))
    answer["choices"][0]["motab"]["breaches"].pop()
    error = await refused(answering(answer))
    assert "malformed answer: breaches lists 1, but must be there only for two" in str(error)


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
        "seed": seed_of(5, "apples", 2),
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
    assert (bodies[0]["temperature"], bodies[0]["seed"]) == (0.0, seed_of(0, "apples", 0))


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

    began = time.perf_counter()
    record = await ask(handler)
    assert 0.045 < record.seconds <= time.perf_counter() - began


async def test_nobody_has_verified_an_answer_that_just_came() -> None:
    record = await ask(answering(answer_of(unbroken())))
    assert (record.answer, record.predicted, record.correct) == ("36", None, None)
    assert record.verification is None


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
        "http://proxy/v1 is not an OpenAI-compatible server: it answers GET models with"
        " '<!DOCTYPE html> <html>'; --base-url ends in /v1"
    )


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


async def test_the_record_says_which_steps_another_judge_had_to_mark() -> None:
    judged = {"scoring": "judge_logprob", "scoring_fallbacks": {"judge_sample": [1, 3]}}
    record = await ask(answering(answer_of(breached() | judged)))
    assert record.scoring_fallbacks == {"judge_sample": (1, 3)}
    ways = [record.step_scoring(index) for index in range(4)]
    assert ways == ["judge_logprob", "judge_sample", "judge_logprob", "judge_sample"]
    assert Record.from_json_line(record.to_json_line()) == record


async def test_the_record_says_which_limit_ended_the_text() -> None:
    limit = {"model": "teacher", "limit": "context_tokens", "tokens": None}
    answer = answer_of(breached())
    answer["choices"][0]["motab"]["limited_by"] = limit
    record = await ask(answering(answer))
    assert record.limited_by is not None
    assert record.limited_by.model_dump() == limit
    assert Record.from_json_line(record.to_json_line()) == record


@pytest.mark.parametrize("plain", [False, True])
async def test_the_record_has_what_it_was_asked_with_and_is_scored_under_the_same_templates(
    *, plain: bool
) -> None:
    variables: dict[str, JsonValue] = {
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "none",
    }
    how = replace(SYNTHESIS, plain=plain, top_p=0.9, fields={"min_p": 0.1, **variables})
    answer = plain_answer(content="It is 36.") if plain else answer_of(breached())
    record = await ask(answering(answer), synthesis=how)
    assert record.sampling == {"temperature": 0.6, "top_p": 0.9, "min_p": 0.1}
    assert Record.from_json_line(record.to_json_line()) == record
    body = scoring_body("m", record)
    assert body == {**scoring_body("m", record_without(record)), **variables}
    keys = {scoring_unit(one, "m").key for one in (record, record_without(record))}
    assert len(keys) == 2


def record_without(record: Record) -> Record:
    nothing = {"sampling": None, "chat_template_kwargs": None, "reasoning_effort": None}
    return record.model_copy(update=nothing)


async def test_a_record_of_a_request_without_them_has_no_such_fields() -> None:
    record = await ask(answering(answer_of(breached())), synthesis=Synthesis(model="m"))
    line = orjson.loads(record.to_json_line())
    names = {"sampling", "chat_template_kwargs", "reasoning_effort", "limited_by"}
    assert not names & line.keys()


ERROR = {"error": {"message": "down", "code": "upstream_failed"}}
EMPTY = unbroken(output="", spans=[], steps=[])


@pytest.mark.parametrize(
    ("answer", "status"), [({**ERROR, "usage": EMPTY["usage"]}, 502), (answer_of(EMPTY), 200)]
)
async def test_an_attempt_that_becomes_no_record_says_what_it_cost(
    answer: dict[str, Any], status: int
) -> None:
    error = await refused(answering(answer, status))
    assert error.spent == record_of(unbroken()).usage


async def test_a_plain_servers_empty_answer_has_cost_what_it_says() -> None:
    with pytest.raises(SynthesisError) as caught:
        await ask(answering(plain_answer(content="")), synthesis=PLAIN)
    assert caught.value.spent is not None
    assert caught.value.spent.motab.teacher_tokens == 5


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": "many"}}])
async def test_an_error_that_states_no_cost_has_none(usage: dict[str, Any]) -> None:
    assert (await refused(answering({**ERROR, **usage}, 502))).spent is None
