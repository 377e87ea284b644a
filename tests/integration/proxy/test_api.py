import asyncio
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from math import inf
from typing import Any, Literal, cast

import httpx
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from proxy.api.app import create_app
from proxy.api.metrics import Metrics
from proxy.api.service import Service
from proxy.api.sse import EventStream
from proxy.backends.base import Sampling, Scores
from proxy.config import ServerConfig
from proxy.core.types import StepScore
from proxy.engine.pair import Pair
from proxy.engine.served_model import ServedModel
from proxy.errors import ContextExceeded, MotabError, UpstreamFailed, UpstreamUnreachable
from proxy.serving.serve import Connection, Server, listen
from tests.support.scripted import Script, ScriptedBackend, pair, says, values

MODEL = "motab/small+large"
A, B, C = "A a.\n\n", "B b.\n\n", "C c.\n\n"
STITCHED = A + B + "However,\n\nRight."
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MOTAB_CHAT, MOTAB_TEXT, SCORE = (
    "/v1/motab/chat/completions",
    "/v1/motab/completions",
    "/v1/motab/score",
)
PROMPT_TOKENS = len("<user>Q<answer>")


def service_of(
    student: ScriptedBackend,
    teacher: ScriptedBackend | None = None,
    defaults: dict[str, Any] | None = None,
    **server: Any,
) -> Service:
    both = pair(student, teacher or ScriptedBackend())
    models = {
        MODEL: ServedModel(both, defaults or {}, {"student": "small", "teacher": "large"}),
        "student/s": ServedModel(
            Pair(both.student, None), {"method": "student"}, {"student": "small", "teacher": None}
        ),
        "teacher/t": ServedModel(
            Pair(None, both.teacher), {"method": "teacher"}, {"student": None, "teacher": "large"}
        ),
    }
    return Service(ServerConfig(**server), models, Metrics())


def straying() -> tuple[ScriptedBackend, ScriptedBackend]:
    """A student that strays at its second step, and the teacher that corrects it."""
    return ScriptedBackend(says((A, B, "tail"))), ScriptedBackend(
        says("Right", "."), values({A: 0.9, B: 0.05})
    )


@asynccontextmanager
async def in_process(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motab") as client:
        yield client


@asynccontextmanager
async def over_http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    with listen("127.0.0.1", 0) as listener:
        server = Server(service, on_signals=False)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with asyncio.timeout(10), httpx.AsyncClient(base_url=base_url) as client:
                yield client
        finally:
            server.should_exit = True
            await task


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Q"}], **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "Q", **fields}


async def answer(service: Service, path: str, body: Any, **how: Any) -> httpx.Response:
    async with asyncio.timeout(5), in_process(service) as client:
        return await client.post(path, json=body, **how)


async def error_of(service: Service, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    response = await answer(service, path, body)
    return response.status_code, error_in(response)


def error_in(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def payloads(response: httpx.Response) -> list[Any]:
    """The payloads of the `data:` lines of unnamed events; [DONE] as the text it is."""
    found = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        lines = event.split("\n")
        if lines[0].startswith("data: "):
            assert len(lines) == 1
            payload = lines[0].removeprefix("data: ")
            found.append(payload if payload == "[DONE]" else json.loads(payload))
    return found


async def chunks_of(service: Service, path: str, body: dict[str, Any]) -> list[Any]:
    response = await answer(service, path, {**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return payloads(response)


def streamed_text(chunks: list[Any], index: int = 0) -> str:
    choices = [c for chunk in chunks if chunk != "[DONE]" for c in chunk["choices"]]
    mine = [choice for choice in choices if choice["index"] == index]
    return "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in mine)


def spans_of(choice: dict[str, Any], whole: str) -> list[tuple[str, str]]:
    return [(s["role"], whole[s["start"] : s["end"]]) for s in choice["motab"]["spans"]]


# Whole answers


async def test_a_chat_answer_has_openais_shape_and_one_more_object_a_choice() -> None:
    body = (await answer(service_of(*straying()), CHAT, chat())).json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    (choice,) = body["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason", "motab"}
    assert choice["message"] == {"role": "assistant", "content": STITCHED, "refusal": None}
    assert set(body["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens", "motab"}

    parsed = ChatCompletion.model_validate(body)
    assert parsed.object == "chat.completion"
    assert parsed.id.startswith("chatcmpl-")
    assert parsed.model == MODEL
    assert parsed.choices[0].finish_reason == "stop"
    assert parsed.usage is not None
    assert parsed.usage.prompt_tokens == PROMPT_TOKENS
    assert parsed.usage.completion_tokens == 2 + len("However,\n\n") + 2
    assert parsed.usage.total_tokens == PROMPT_TOKENS + parsed.usage.completion_tokens


async def test_a_text_answer_has_openais_shape_and_gets_the_prompt_as_it_is() -> None:
    student, teacher = straying()
    body = (await answer(service_of(student, teacher), TEXT, text(prompt=["Q: "]))).json()
    (choice,) = body["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason", "motab"}
    parsed = Completion.model_validate(body)
    assert parsed.object == "text_completion"
    assert parsed.id.startswith("cmpl-")
    assert parsed.choices[0].text == STITCHED
    assert student.writes[0].context == "Q: "
    assert teacher.writes[0].context == "Q: " + A


async def test_the_cost_of_a_trajectory_is_in_the_usage() -> None:
    body = (await answer(service_of(*straying()), CHAT, chat())).json()
    assert body["usage"]["motab"] == {
        "student_tokens": 3,
        "student_tokens_discarded": 1,
        "teacher_scored_tokens": len(A + B),
        "teacher_cached_tokens": 0,
        "teacher_tokens": 2,
        "teacher_tokens_discarded": 0,
        "student_calls": 1,
        "score_calls": 1,
        "correction_calls": 1,
    }


async def test_three_choices_are_three_trajectories_with_seeds_of_their_own() -> None:
    student = ScriptedBackend(lambda sampling: says(f"I am {sampling.seed}"))
    body = (await answer(service_of(student), CHAT, chat(n=3, seed=10))).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == [
        "I am 10",
        "I am 11",
        "I am 12",
    ]
    # The prompt is counted once, as OpenAI does.
    assert body["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert body["usage"]["completion_tokens"] == 3
    assert body["usage"]["motab"]["student_calls"] == 3
    assert len({writing.session_id for writing in student.writes}) == 3


async def test_without_a_seed_none_is_sent() -> None:
    student = ScriptedBackend(says("x"))
    await answer(service_of(student), CHAT, chat(n=2))
    assert [writing.sampling.seed for writing in student.writes] == [None, None]


async def test_the_samplings_fields_reach_the_student_and_not_the_teacher() -> None:
    student, teacher = straying()
    body = chat(temperature=0.3, top_p=0.8, seed=4, stop="END", motab={"teacher_temperature": 0.1})
    await answer(service_of(student, teacher), CHAT, body)
    assert student.writes[0].sampling == Sampling(0.3, 0.8, 4, ("END",))
    assert teacher.writes[0].sampling == Sampling(0.1, 1.0, 4, ("END",))


# Traces


async def test_the_summary_trace_tells_the_decisions_and_the_spans() -> None:
    body = (await answer(service_of(*straying()), CHAT, chat())).json()
    (choice,) = body["choices"]
    assert set(choice["motab"]) == {"method", "breach", "bifurcation", "scoring", "spans"}
    assert choice["motab"]["method"] == "motab"
    assert (choice["motab"]["breach"], choice["motab"]["bifurcation"]) == (1, 1)
    assert choice["motab"]["scoring"] == "prompt_logprobs"
    assert spans_of(choice, STITCHED) == [
        ("student", A),
        ("flawed", B),
        ("revise", "However,\n\n"),
        ("teacher", "Right."),
    ]


async def test_without_a_breach_the_trace_says_null() -> None:
    body = (await answer(service_of(ScriptedBackend(says("x"))), CHAT, chat())).json()
    trace = body["choices"][0]["motab"]
    assert (trace["breach"], trace["bifurcation"]) == (None, None)


async def test_trace_none_leaves_the_strict_openai_shape() -> None:
    body = (await answer(service_of(*straying()), CHAT, chat(motab={"trace": "none"}))).json()
    assert set(body["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert set(body["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_the_full_trace_tells_every_step_with_its_numbers() -> None:
    asked = chat(motab={"trace": "full", "base_threshold": 0.3})
    body = (await answer(service_of(*straying()), CHAT, asked)).json()
    trace = body["choices"][0]["motab"]
    assert trace["steps"] == [
        {
            "author": "student",
            "student_tokens": 1,
            "teacher_tokens": 6,
            "value": 0.9,
            "entropy": 0.0,
            "boundary": 0.3,
            "td_error": None,
            "safe": True,
            "start": 0,
            "end": 6,
        },
        {
            "author": "student",
            "student_tokens": 1,
            "teacher_tokens": 6,
            "value": 0.05,
            "entropy": 0.0,
            "boundary": 0.3,
            "td_error": pytest.approx(-0.85),
            "safe": False,
            "start": 6,
            "end": 12,
        },
    ]
    assert trace["params"]["base_threshold"] == 0.3
    assert trace["models"] == {"student": "small", "teacher": "large"}


async def test_a_step_that_is_not_in_the_text_is_told_with_its_own_text() -> None:
    asked = chat(motab={"trace": "full", "stitch": "clean"})
    body = (await answer(service_of(*straying()), CHAT, asked)).json()
    assert body["choices"][0]["message"]["content"] == A + "Right."
    kept, dropped = body["choices"][0]["motab"]["steps"]
    assert "text" not in kept
    assert (dropped["text"], dropped["start"], dropped["end"]) == (B, None, None)


@pytest.mark.parametrize(
    ("path", "body"),
    [(MOTAB_CHAT, chat()), (MOTAB_TEXT, chat()), (MOTAB_TEXT, text())],
    ids=["chat", "messages", "prompt"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_motabs_own_routes_always_tell_the_full_trace(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    asked = {**body, "motab": {"trace": "none"}, "stream": stream}
    response = await answer(service_of(*straying()), path, asked)
    whole = payloads(response)[-2] if stream else response.json()
    assert len(whole["choices"][0]["motab"]["steps"]) == 2
    name = "chat.completion" if path == MOTAB_CHAT else "text_completion"
    assert whole["object"] == (f"{name}.chunk" if stream and path == MOTAB_CHAT else name)


# Streams


async def test_a_chat_stream_is_role_text_finish_and_done() -> None:
    chunks = await chunks_of(service_of(*straying()), CHAT, chat())
    assert chunks.pop() == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(choice["delta"]) == {"content"} for choice in choices[1:-1])
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert ["motab" in choice for choice in choices] == [False] * (len(choices) - 1) + [True]
    assert spans_of(choices[-1], STITCHED)[-1] == ("teacher", "Right.")
    assert streamed_text(chunks) == STITCHED
    assert not any("usage" in chunk for chunk in chunks)

    parsed = [ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    assert len({(c.id, c.created, c.model, c.object) for c in parsed}) == 1
    assert parsed[0].object == "chat.completion.chunk"
    assert parsed[0].model == MODEL


async def test_a_text_stream_is_text_finish_and_done() -> None:
    chunks = await chunks_of(service_of(*straying()), TEXT, text())
    assert chunks.pop() == "[DONE]"
    assert streamed_text(chunks) == STITCHED
    assert chunks[0]["choices"][0]["text"]  # no role, so no empty chunk at the start
    last = chunks[-1]["choices"][0]
    assert (last["text"], last["finish_reason"]) == ("", "stop")
    assert last["motab"]["breach"] == 1
    # OpenAI's package has one type for both; its finish_reason is null until the end on the wire.
    for chunk in chunks[-1:]:
        assert Completion.model_validate(chunk).object == "text_completion"


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, text())], ids=["chat", "text"])
async def test_the_usage_comes_last_with_no_choices_and_is_null_before(
    path: str, body: dict[str, Any]
) -> None:
    asked = {**body, "stream_options": {"include_usage": True}}
    chunks = await chunks_of(service_of(*straying()), path, asked)
    assert chunks.pop() == "[DONE]"
    last = chunks.pop()
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == (
        last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    )
    assert last["usage"]["motab"]["student_tokens"] == 3
    assert all(chunk["usage"] is None for chunk in chunks)
    if path == CHAT:
        usage = ChatCompletionChunk.model_validate(last).usage
        assert usage is not None
        assert usage.completion_tokens == 14


async def test_the_streams_usage_is_the_whole_answers_usage() -> None:
    asked = chat(n=2, stream_options={"include_usage": True})
    chunks = await chunks_of(service_of(*straying()), CHAT, asked)
    whole = (await answer(service_of(*straying()), CHAT, chat(n=2))).json()
    assert chunks[-2]["usage"] == whole["usage"]


async def test_the_streams_trace_is_the_whole_answers_trace() -> None:
    asked = chat(motab={"trace": "full"})
    chunks = await chunks_of(service_of(*straying()), CHAT, asked)
    whole = (await answer(service_of(*straying()), CHAT, asked)).json()
    assert chunks[-2]["choices"][0]["motab"] == whole["choices"][0]["motab"]


async def test_a_stream_without_a_trace_has_nothing_of_motab() -> None:
    asked = chat(motab={"trace": "none"}, stream_options={"include_usage": True})
    chunks = await chunks_of(service_of(*straying()), CHAT, asked)
    assert "motab" not in json.dumps([{**c, "model": ""} for c in chunks if c != "[DONE]"])


async def test_three_streamed_choices_each_have_a_role_a_text_and_an_end() -> None:
    student = ScriptedBackend(lambda sampling: says("I am ", f"{sampling.seed}"))
    chunks = await chunks_of(service_of(student), CHAT, chat(n=3, seed=0))
    assert chunks.pop() == "[DONE]"
    for index in range(3):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert mine[-1]["finish_reason"] == "stop"
        assert streamed_text(chunks, index) == f"I am {index}"


async def test_an_empty_answer_streams_a_role_and_an_end() -> None:
    chunks = await chunks_of(service_of(ScriptedBackend(says())), CHAT, chat())
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {}]


async def test_text_is_sent_while_the_student_still_writes() -> None:
    gate = asyncio.Event()
    service = service_of(ScriptedBackend(says("early", gate, " late")))
    async with (
        over_http(service) as client,
        client.stream("POST", CHAT, json=chat(stream=True)) as response,
    ):
        lines = (line async for line in response.aiter_lines() if line.startswith("data: {"))
        async with aclosing(cast("Any", lines)):
            deltas = [json.loads((await anext(lines))[6:])["choices"][0]["delta"] for _ in "12"]
            assert deltas == [{"role": "assistant", "content": ""}, {"content": "early"}]
            gate.set()
            rest = [line async for line in lines]
    assert json.loads(rest[0][6:])["choices"][0]["delta"] == {"content": " late"}


async def test_a_clean_stitch_streams_nothing_that_is_taken_back() -> None:
    asked = chat(motab={"stitch": "clean"})
    chunks = await chunks_of(service_of(*straying()), CHAT, asked)
    assert streamed_text(chunks) == A + "Right."


async def test_named_events_tell_each_step_and_the_breach_where_they_are_asked_for() -> None:
    asked = chat(stream=True, motab={"events": True})
    response = await answer(service_of(*straying()), CHAT, asked)
    events = [e.split("\n") for e in response.text.split("\n\n") if e.startswith("event: ")]
    told = [(e[0], json.loads(e[1].removeprefix("data: "))) for e in events]
    assert [name for name, _ in told] == [
        "event: motab.step",
        "event: motab.step",
        "event: motab.breach",
    ]
    assert (told[1][1]["index"], told[1][1]["step"]) == (0, 1)
    assert told[1][1]["text"] == B
    assert told[1][1]["value"] == 0.05
    assert told[1][1]["safe"] is False
    assert told[2][1] == {"index": 0, "breach": 1, "bifurcation": 1}
    assert streamed_text(payloads(response)) == STITCHED


async def test_without_being_asked_for_there_are_no_named_events() -> None:
    response = await answer(service_of(*straying()), CHAT, chat(stream=True))
    assert "event:" not in response.text


async def test_a_waiting_stream_is_kept_open_by_comments() -> None:
    sent: list[Message] = []
    pinged = asyncio.Event()

    async def produce(put: Callable[[bytes], None]) -> None:
        await pinged.wait()
        put(b"data: x\n\n")

    async def send(message: Message) -> None:
        sent.append(message)
        if [m.get("body") for m in sent].count(b": ping\n\n") == 3:
            pinged.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope: Scope = {"type": "http"}
    async with asyncio.timeout(5):
        await EventStream(produce, {}, ping_interval_s=0.01)(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    bodies = [message["body"] for message in sent[1:]]
    assert bodies[:3] == [b": ping\n\n"] * 3
    assert bodies[-2:] == [b"data: x\n\n", b""]
    assert [message["more_body"] for message in sent[1:]][-2:] == [True, False]


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"n": 65}, "n", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_value"),
        ({"tools": [{}]}, "tools", "unsupported_field"),
        ({"logprobs": True}, "logprobs", "unsupported_field"),
        ({"motab": {"base_threshold": 2}}, "motab.base_threshold", "invalid_value"),
        ({"motab": {"gama": 1}}, "motab.gama", "invalid_value"),
        ({"motab": {"method": "guess"}}, "motab.method", "invalid_value"),
        ({"motab": {"gamma": "1.0"}}, "motab.gamma", "invalid_value"),
        ({"motab": {"gamma": 0}}, "motab.gamma", "invalid_value"),
        ({"motab": {"beta": True}}, "motab.beta", "invalid_value"),
        ({"motab": {"beta": 1.5}}, "motab.beta", "invalid_value"),
        ({"motab": {"max_total_tokens": 131073}}, "motab.max_total_tokens", "invalid_value"),
    ],
)
async def test_a_bad_request_is_a_400_that_names_the_field(
    stream: bool, fields: dict[str, Any], param: str, code: str
) -> None:
    student = ScriptedBackend(says("x"))
    status, error = await error_of(service_of(student), CHAT, chat(**fields, stream=stream))
    assert (status, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert not student.rendered


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("value", [2**64, -(2**64), "\ud800"], ids=["large", "negative", "half"])
async def test_an_option_that_json_can_hold_but_motab_cannot_is_a_400_that_names_it(
    stream: bool, value: object
) -> None:
    field = "delimiter" if isinstance(value, str) else "max_total_tokens"
    body = json.dumps(chat(stream=stream, motab={field: value}))  # escapes the lone surrogate
    async with in_process(service_of(ScriptedBackend(says("x")))) as client:
        headers = {"content-type": "application/json"}
        response = await client.post(CHAT, content=body, headers=headers)
    assert response.status_code == 400
    assert error_in(response)["param"] == f"motab.{field}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "\ud800"}, "model"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"stop": ["\ud800"]}, "stop[0]"),
        ({"user": "\ud800"}, "user"),
        ({"motab": {"\ud800": 1}}, "motab"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_half_a_surrogate_pair_which_no_upstream_can_be_sent_is_a_400(
    fields: dict[str, Any], param: str
) -> None:
    student = ScriptedBackend(says("x"))
    content = json.dumps(chat(**fields))
    async with in_process(service_of(student)) as client:
        headers = {"content-type": "application/json"}
        response = await client.post(CHAT, content=content, headers=headers)
    assert response.status_code == 400
    assert error_in(response)["param"].startswith(param)
    assert not student.rendered


async def test_events_without_a_stream_are_refused() -> None:
    service = service_of(ScriptedBackend())
    status, error = await error_of(service, CHAT, chat(motab={"events": True}))
    assert (status, error["param"]) == (400, "motab.events")


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"model": ', {"content-type": "application/json"}),
        (b"[]", {"content-type": "application/json"}),
        (b'"text"', {"content-type": "application/json"}),
        (b"", {"content-type": "application/json"}),
        (b'{"model": "\xff"}', {"content-type": "application/json"}),
        (b"model=x", {"content-type": "application/x-www-form-urlencoded"}),
    ],
    ids=["cut", "list", "string", "empty", "not UTF-8", "form"],
)
async def test_a_body_that_is_no_json_object_is_a_bad_request(
    content: bytes, headers: dict[str, str]
) -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        response = await client.post(CHAT, content=content, headers=headers)
    assert response.status_code == 400
    assert error_in(response)["code"] == "invalid_value"


@pytest.mark.parametrize(
    "field",
    [
        {"best_of": 1},
        {"echo": False},
        {"frequency_penalty": 0},
        {"frequency_penalty": 0.0},
        {"logit_bias": {}},
        {"logprobs": False},
        {"logprobs": None},
        {"metadata": {}},
        {"presence_penalty": 0},
        {"response_format": {"type": "text"}},
        {"store": False},
        {"suffix": ""},
        {"tools": []},
        {"tool_choice": None},
        {"user": "someone"},
        {"n": None, "stop": None, "temperature": None, "motab": None, "stream_options": None},
    ],
    ids=str,
)
async def test_a_field_that_asks_for_nothing_is_accepted(field: dict[str, Any]) -> None:
    service = service_of(ScriptedBackend(says("x")))
    assert (await answer(service, CHAT, chat(**field))).status_code == 200
    assert (await answer(service, TEXT, text(**field))).status_code == 200


@pytest.mark.parametrize(
    "field",
    [
        {"best_of": 2},
        {"echo": True},
        {"frequency_penalty": 0.1},
        {"logit_bias": {"1": 1}},
        {"logprobs": 1},
        {"logprobs": 0},  # of text completions: the sampled tokens' own
        {"metadata": {"a": "b"}},
        {"presence_penalty": -1},
        {"response_format": {"type": "json_object"}},
        {"store": True},
        {"suffix": "x"},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "auto"},
        {"functions": []},
        {"top_logprobs": 2},
        {"top_k": 40},
        {"service_tier": "auto"},
        {"x-unknown": 1},
    ],
    ids=str,
)
async def test_a_field_that_asks_for_something_else_is_refused_by_name(
    field: dict[str, Any],
) -> None:
    (name,) = field
    service = service_of(ScriptedBackend(says("x")))
    for path, body in ((CHAT, chat(**field)), (TEXT, text(**field))):
        status, error = await error_of(service, path, body)
        assert (status, error["param"], error["code"]) == (400, name, "unsupported_field")
        assert error["message"] == f"{name} is not supported"


@pytest.mark.parametrize("path", [CHAT, SCORE])
async def test_an_unknown_model_is_a_404_that_names_those_there_are(path: str) -> None:
    body = chat(model="gpt") if path == CHAT else {**text(model="gpt"), "text": "x"}
    status, error = await error_of(service_of(ScriptedBackend()), path, body)
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert MODEL in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", CHAT, 405), ("POST", "/v1/embeddings", 404)]
)
async def test_unknown_paths_and_methods_are_told_in_openais_shape(
    method: str, path: str, status: int
) -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    error = error_in(response)
    assert error["code"] == "unknown_url"
    assert f"{method} {path}" in error["message"]
    assert response.headers["x-request-id"]


async def test_a_plain_model_has_only_its_own_method() -> None:
    service = service_of(ScriptedBackend(says("x")), ScriptedBackend(says("y")))
    alone = (await answer(service, CHAT, chat(model="student/s"))).json()
    assert alone["choices"][0]["message"]["content"] == "x"
    assert alone["choices"][0]["motab"]["method"] == "student"
    alone = (await answer(service, CHAT, chat(model="teacher/t"))).json()
    assert alone["choices"][0]["message"]["content"] == "y"
    asked = chat(model="student/s", motab={"method": "motab"})
    status, error = await error_of(service, CHAT, asked)
    assert (status, error["param"]) == (400, "motab.method")


async def test_a_body_over_the_limit_is_refused_by_its_content_length() -> None:
    service = service_of(ScriptedBackend(says("x")), max_body_bytes=200)
    assert (await answer(service, CHAT, chat())).status_code == 200
    status, error = await error_of(service, CHAT, chat(user="u" * 200))
    assert (status, error["code"]) == (413, "body_too_large")


async def test_a_body_over_the_limit_is_refused_although_it_comes_in_chunks() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "'
        for _ in range(100):
            yield b"x" * 100

    service = service_of(ScriptedBackend(says("x")), max_body_bytes=200)
    async with over_http(service) as client:
        headers = {"content-type": "application/json"}
        response = await client.post(CHAT, content=body(), headers=headers)
    assert response.status_code == 413
    assert error_in(response)["code"] == "body_too_large"


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
@pytest.mark.parametrize(("wished_s", "told"), [(7.2, "8"), (0.0, "0"), (None, None), (inf, None)])
async def test_the_client_is_told_when_an_upstream_wants_to_be_asked_again(
    stream: bool, wished_s: float | None, told: str | None
) -> None:
    busy = UpstreamFailed("student", "busy", retry_after_s=wished_s)
    student = ScriptedBackend(says("x"), faults={("write", 0): busy})
    response = await answer(service_of(student), CHAT, chat(stream=stream))
    assert response.status_code == 502
    assert response.headers.get("retry-after") == told


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
async def test_one_choices_failure_ends_the_others_and_is_told_once(stream: bool) -> None:
    failed = UpstreamFailed("student", "down")

    def script(sampling: Sampling) -> Script:
        return says(failed if sampling.seed == 1 else asyncio.Event())

    student = ScriptedBackend(script)
    service = service_of(student)
    status, error = await error_of(service, CHAT, chat(n=3, seed=0, stream=stream))
    assert (status, error["code"]) == (502, "upstream_failed")
    assert all(writing.closed.is_set() for writing in student.writes)
    assert service.admission.num_active == 0


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
    service = service_of(student, request_timeout_s=0.05)
    status, error = await error_of(service, CHAT, chat(stream=stream))
    assert (status, error["type"], error["code"]) == (504, "timeout_error", "deadline_exceeded")
    assert student.writes[0].cancelled


async def test_a_stream_over_its_time_ends_with_the_error() -> None:
    student = ScriptedBackend(says("x", asyncio.Event()))
    chunks = await chunks_of(service_of(student, request_timeout_s=0.05), CHAT, chat())
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


# Headers, keys, what is there


async def test_a_clients_request_id_is_echoed_and_leads_to_the_answers_id() -> None:
    student = ScriptedBackend(says("x"))
    headers = {"x-request-id": "abc-123"}
    response = await answer(service_of(student), CHAT, chat(), headers=headers)
    assert response.headers["x-request-id"] == "abc-123"
    assert response.json()["id"] == "chatcmpl-abc-123"
    assert student.writes[0].session_id == "abc-123-0"


@pytest.mark.parametrize(
    "hostile", [b"", b"a b", b"a\tb", b"x" * 129, "é".encode(), b"a\x7fb", None]
)
async def test_without_a_usable_request_id_one_is_made(hostile: bytes | None) -> None:
    headers = [] if hostile is None else [(b"x-request-id", hostile)]
    async with in_process(service_of(ScriptedBackend(says("x")))) as client:
        response = await client.post(CHAT, json=chat(), headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


@pytest.mark.parametrize("stream", [False, True])
async def test_the_overhead_is_our_own_time_without_the_upstreams(stream: bool) -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(says(gate, "x"))
    async with in_process(service_of(student)) as client:
        task = asyncio.create_task(client.post(CHAT, json=chat(stream=stream)))
        await student.until_called("write")
        asyncio.get_running_loop().call_later(0.3, gate.set)
        response = await task
    assert 0 <= float(response.headers["x-motab-overhead-ms"]) < 250


async def test_errors_have_the_headers_too() -> None:
    service = service_of(ScriptedBackend(), api_keys=["key"])
    response = await answer(service, CHAT, chat(), headers={"x-request-id": "abc"})
    assert response.headers["x-request-id"] == "abc"
    assert float(response.headers["x-motab-overhead-ms"]) >= 0


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer ", "Bearer keys", "Bearer key ", "Basic key", ""]
)
async def test_a_wrong_key_is_refused_everywhere_but_on_the_open_paths(given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    student = ScriptedBackend(says("x"))
    async with in_process(service_of(student, api_keys=["key", "other"])) as client:
        for path in (CHAT, TEXT, MOTAB_CHAT, MOTAB_TEXT, SCORE):
            response = await client.post(path, json=chat(), headers=headers)
            assert response.status_code == 401
            error = error_in(response)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/docs", "/openapi.json"):
            assert (await client.get(path, headers=headers)).status_code == 401
        for path in ("/health", "/ready", "/metrics"):
            assert (await client.get(path, headers=headers)).status_code == 200
    assert not student.rendered


@pytest.mark.parametrize("key", ["key", "other"])
async def test_each_of_the_keys_opens_the_server(key: str) -> None:
    service = service_of(ScriptedBackend(says("x")), api_keys=["key", "other"])
    headers = {"authorization": f"Bearer {key}"}
    assert (await answer(service, CHAT, chat(), headers=headers)).status_code == 200


async def test_the_models_are_listed_and_found_by_names_with_slashes() -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        models = [Model.model_validate(model) for model in listed["data"]]
        assert [model.id for model in models] == [MODEL, "student/s", "teacher/t"]
        for name in (MODEL, "motab%2Fsmall+large"):
            found = await client.get(f"/v1/models/{name}")
            assert found.json() == listed["data"][0]
        missing = await client.get("/v1/models/motab/none")
    assert missing.status_code == 404
    assert error_in(missing)["param"] == "model"


async def test_health_says_alive_whatever_the_upstreams_do() -> None:
    down = ScriptedBackend(faults={("check", 0): UpstreamUnreachable("student", "down")})
    async with in_process(service_of(down)) as client:
        response = await client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_ready_says_which_upstream_does_not_answer() -> None:
    down = UpstreamUnreachable("teacher", "no connection")
    service = service_of(ScriptedBackend(), ScriptedBackend(faults={("check", 0): down}))
    async with in_process(service) as client:
        first, second = await client.get("/ready"), await client.get("/ready")
    assert first.status_code == 503
    assert first.json() == {
        "status": "unready",
        "upstreams": {"student": "ok", "teacher": "upstream 'teacher': no connection"},
    }
    assert second.status_code == 200
    assert second.json()["status"] == "ready"


async def test_ready_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.api.app._READY_TIMEOUT_S", 0.05)
    hanging = ScriptedBackend(faults={("check", 0): asyncio.Event()})
    async with asyncio.timeout(2), in_process(service_of(hanging)) as client:
        response = await client.get("/ready")
    assert response.status_code == 503
    assert response.json()["upstreams"]["student"] == "no answer within 0.05 s"


async def test_while_draining_the_server_is_not_ready_but_alive() -> None:
    service = service_of(ScriptedBackend())
    service.admission.draining = True
    async with in_process(service) as client:
        ready, health = await client.get("/ready"), await client.get("/health")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert health.status_code == 200


async def test_a_bug_behind_a_route_without_a_body_is_told_as_any_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_of(ScriptedBackend())
    monkeypatch.setattr(service.metrics, "render", lambda: 1 / 0)
    async with in_process(service) as client:
        response = await client.get("/metrics", headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert "the proxy's log has the details" in error_in(response)["message"]
    assert response.headers["x-request-id"] == "abc"
    assert "unexpected error" in caplog.text


async def test_the_api_document_describes_the_bodies_and_wrong_methods_are_refused() -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        document = (await client.get("/openapi.json")).json()
        refused = [await client.put(path, json={}) for path in (CHAT, SCORE)]
    bodies = {
        path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for path, operations in document["paths"].items()
        if "post" in operations
    }
    assert {path: ref.rpartition("/")[2] for path, ref in bodies.items()} == {
        CHAT: "ChatRequest",
        TEXT: "CompletionRequest",
        MOTAB_CHAT: "ChatRequest",
        MOTAB_TEXT: "MotabRequest",
        SCORE: "ScoreRequest",
    }
    assert [response.status_code for response in refused] == [405, 405]


# Metrics


async def samples_of(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values, in the order of the labels' names."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_the_metrics_count_requests_trajectories_tokens_and_calls() -> None:
    service = service_of(*straying())
    async with in_process(service) as client:
        await client.post(CHAT, json=chat(n=2))
        await client.post(CHAT, json=chat(stream=True))
        await client.post(CHAT, json=chat(n=0))
        await client.post("/nothing/here", json={})
        samples = await samples_of(client)
    assert samples["motab_requests_total", CHAT, "200"] == 2
    assert samples["motab_requests_total", CHAT, "400"] == 1
    assert samples["motab_requests_total", "unknown", "404"] == 1
    assert samples["motab_request_seconds_count", CHAT] == 3
    assert samples["motab_trajectories_total", "motab", MODEL, "breach"] == 3
    tokens = {key[1]: v for key, v in samples.items() if key[0] == "motab_tokens_total"}
    assert tokens == {
        "student": 9,
        "student_discarded": 3,
        "teacher_scored": 3 * len(A + B),
        "teacher_cached": 0,
        "teacher": 6,
        "teacher_discarded": 0,
    }
    calls = {key[1]: v for key, v in samples.items() if key[0] == "motab_calls_total"}
    assert calls == {"student": 3, "score": 3, "correction": 3}
    assert samples["motab_active_trajectories",] == 0


async def test_the_metrics_tell_safe_failed_and_active_trajectories_apart() -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(
        lambda sampling: says(gate, "x"), faults={("write", 0): UpstreamFailed("student", "down")}
    )
    async with in_process(service_of(student)) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 502
        running = asyncio.create_task(client.post(CHAT, json=chat(n=2)))
        await student.until_called("write", 3)
        assert (await samples_of(client))["motab_active_trajectories",] == 2
        gate.set()
        await running
        samples = await samples_of(client)
    assert samples["motab_trajectories_total", "motab", MODEL, "failed"] == 1
    assert samples["motab_trajectories_total", "motab", MODEL, "safe"] == 2
    assert samples["motab_requests_total", CHAT, "502"] == 1
    assert samples["motab_active_trajectories",] == 0


# Scoring a given text


@pytest.mark.parametrize("question", [text(), chat()], ids=["prompt", "messages"])
async def test_a_given_text_is_scored_step_by_step_in_one_call(question: dict[str, Any]) -> None:
    student, teacher = straying()
    body = {**question, "text": A + B + "tail", "motab": {"base_threshold": 0.1}}
    found = (await answer(service_of(student, teacher), SCORE, body)).json()
    assert found["object"] == "motab.score"
    assert found["model"] == MODEL
    assert (found["breach"], found["bifurcation"]) == (1, 1)
    assert [step["value"] for step in found["steps"]] == [0.9, 0.05, 0.9]
    assert [step["boundary"] for step in found["steps"]] == [0.1] * 3
    assert [step["safe"] for step in found["steps"]] == [True, False, True]
    assert [(step["start"], step["end"]) for step in found["steps"]] == [(0, 6), (6, 12), (12, 16)]
    assert found["params"]["base_threshold"] == 0.1
    prompt = "Q" if "prompt" in question else "<user>Q<answer>"
    (scoring,) = teacher.scorings
    assert scoring.context == prompt + A + B + "tail"
    assert scoring.num_new == 3
    assert found["usage"]["prompt_tokens"] == len(prompt)
    assert found["usage"]["motab"] == {
        "teacher_scored_tokens": 16,
        "teacher_cached_tokens": 0,
        "score_calls": 1,
    }
    assert not student.rendered


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": "x", "prompt": ""}, "prompt"),
        ({"text": "x", "messages": [{"role": "user", "content": "Q"}]}, "messages"),
        ({"text": "x", "model": "student/s"}, "model"),
        ({"text": "x", "temperature": 1}, "temperature"),
        ({}, "text"),
    ],
    ids=["empty", "no prompt", "both", "no teacher", "sampling", "missing"],
)
async def test_a_text_that_cannot_be_scored_is_a_400(fields: dict[str, Any], param: str) -> None:
    status, error = await error_of(service_of(ScriptedBackend()), SCORE, {**text(), **fields})
    assert (status, error["param"]) == (400, param)


async def test_a_teacher_alone_can_score() -> None:
    body = {**text(model="teacher/t"), "text": "x"}
    response = await answer(service_of(ScriptedBackend()), SCORE, body)
    assert response.status_code == 200


@pytest.mark.parametrize("fault", ["too few", "no entropy", "down"])
async def test_a_teacher_that_fails_to_score_is_a_502(fault: str) -> None:
    def too_few(scores: Scores) -> Scores:
        return Scores(scores.steps[:-1], None, scores.num_tokens, 0)

    def no_entropy(scores: Scores) -> Scores:
        nothing = values({})("", "")
        steps = [type(nothing)(s.value, None, s.num_tokens) for s in scores.steps]
        return Scores(tuple(steps), None, scores.num_tokens, 0)

    teacher = {
        "too few": ScriptedBackend(distort=too_few),
        "no entropy": ScriptedBackend(distort=no_entropy),
        "down": ScriptedBackend(faults={("score", 0): UpstreamFailed("teacher", "down")}),
    }[fault]
    body = {**text(), "text": A + B}
    status, error = await error_of(service_of(ScriptedBackend(), teacher), SCORE, body)
    assert (status, error["type"]) == (502, "upstream_error")


# A teacher that judges


STATIC = {"boundary": "static", "base_threshold": 0.5}


def judged(defaults: dict[str, Any] | None = None) -> Service:
    """The straying student, before a teacher that can only be asked for marks."""
    student, teacher = straying()
    teacher.scoring = "judge_sample"
    marks = {A: 0.9, B: 0.05}
    teacher.judge = lambda _context, step: StepScore(marks.get(step, 0.9), None, len(step))
    return service_of(student, teacher, defaults)


async def test_a_judges_trajectory_tells_in_header_trace_and_metric_how_it_was_scored() -> None:
    service = judged(STATIC)
    async with in_process(service) as client:
        response = await client.post(MOTAB_CHAT, json=chat())
        samples = await samples_of(client)
    assert response.headers["x-motab-scoring"] == "judge_sample"
    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == STITCHED
    assert choice["motab"]["scoring"] == "judge_sample"
    assert [step["entropy"] for step in choice["motab"]["steps"]] == [None, None]
    assert [step["boundary"] for step in choice["motab"]["steps"]] == [0.5, 0.5]
    assert samples["motab_score_calls_total", MODEL, "judge_sample"] == 1


async def test_a_judges_stream_tells_it_too() -> None:
    response = await answer(judged(STATIC), CHAT, chat(stream=True))
    assert response.headers["x-motab-scoring"] == "judge_sample"
    chunks = payloads(response)
    assert streamed_text(chunks) == STITCHED
    told = [chunk["choices"][0]["motab"] for chunk in chunks[:-1] if "motab" in chunk["choices"][0]]
    assert [trace["scoring"] for trace in told] == ["judge_sample"]


async def test_what_is_not_scored_tells_no_way_of_scoring() -> None:
    body = chat(motab={"method": "student"})
    response = await answer(judged(), CHAT, body)
    assert response.status_code == 200
    assert "x-motab-scoring" not in response.headers


@pytest.mark.parametrize("path", [CHAT, SCORE])
@pytest.mark.parametrize(
    ("defaults", "asked", "param"),
    [
        ({}, {"base_threshold": 0.5}, "motab.boundary"),
        ({}, {"boundary": "static"}, "motab.base_threshold"),
        (STATIC, {"boundary": "adaptive"}, "motab.boundary"),
        (STATIC, {"scoring": "prompt_logprobs"}, "motab.scoring"),
        (STATIC, {"scoring": "judge_logprob"}, "motab.scoring"),
    ],
    ids=[
        "adaptive by default",
        "no threshold",
        "adaptive",
        "no log-probs",
        "no judge of that kind",
    ],
)
async def test_a_judge_is_never_held_against_a_boundary_made_for_probabilities(
    path: str, defaults: dict[str, Any], asked: dict[str, Any], param: str
) -> None:
    body = {**text(), "text": A} if path == SCORE else chat()
    status, error = await error_of(judged(defaults), path, {**body, "motab": asked})
    assert (status, error["param"]) == (400, param)


async def test_the_thresholds_of_model_and_request_go_together() -> None:
    for defaults, asked in ((STATIC, {}), ({}, STATIC), ({"boundary": "static"}, STATIC)):
        response = await answer(judged(defaults), CHAT, chat(motab=asked))
        assert response.status_code == 200


async def test_a_given_text_is_marked_and_the_answer_says_so() -> None:
    body = {**text(), "text": A + B, "motab": {**STATIC, "scoring": "judge_sample"}}
    found = (await answer(judged(), SCORE, body)).json()
    assert found["scoring"] == "judge_sample"
    assert [step["value"] for step in found["steps"]] == [0.9, 0.05]
    assert [step["entropy"] for step in found["steps"]] == [None, None]
    assert found["breach"] == 1


# Options


async def test_a_requests_options_beat_the_models_which_beat_the_defaults() -> None:
    defaults = {"base_threshold": 0.3, "entropy_scale": 2.0}
    service = service_of(ScriptedBackend(says("x")), defaults=defaults)
    asked = chat(motab={"base_threshold": 0.4, "trace": "full"})
    params = (await answer(service, CHAT, asked)).json()["choices"][0]["motab"]["params"]
    assert (params["base_threshold"], params["entropy_scale"]) == (0.4, 2.0)
    assert params["max_step_tokens"] == 8192


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 2}, 2),
        ({"max_completion_tokens": 2}, 2),
        ({"max_tokens": 3, "max_completion_tokens": 2}, 2),
        ({"max_tokens": 2, "max_completion_tokens": 3}, 2),
        ({"max_tokens": 5, "motab": {"max_total_tokens": 2}}, 2),
        ({"max_tokens": 2, "motab": {"max_total_tokens": 5}}, 2),
        ({"max_tokens": 10**6}, 32768),
    ],
    ids=str,
)
async def test_openais_token_limits_cap_the_trajectory(fields: dict[str, Any], limit: int) -> None:
    student = ScriptedBackend(says("a", "b", "c"))
    body = (await answer(service_of(student), CHAT, chat(**fields))).json()
    (choice,) = body["choices"]
    cut = limit == 2
    assert choice["message"]["content"] == ("ab" if cut else "abc")
    assert choice["finish_reason"] == ("length" if cut else "stop")
    assert student.writes[0].max_tokens == limit


async def test_a_correction_gets_what_the_safe_prefix_left_of_the_limit() -> None:
    student, teacher = straying()
    await answer(service_of(student, teacher), CHAT, chat(max_tokens=10))
    assert teacher.writes[0].max_tokens == 9


# Messages


async def test_messages_reach_the_models_in_parts_joined_and_developer_as_system() -> None:
    student, teacher = straying()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "e"},
    ]
    await answer(service_of(student, teacher), CHAT, chat(messages=messages))
    for backend in (student, teacher):
        (question,) = backend.rendered
        told = [(message.role, message.content) for message in question.messages]
        assert told == [("system", "d"), ("user", "ab"), ("assistant", "c"), ("user", "e")]


@pytest.mark.parametrize("path", [CHAT, MOTAB_TEXT])
async def test_an_image_is_refused_by_its_place(path: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://x"}}
    asked = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, image]}])
    status, error = await error_of(service_of(ScriptedBackend()), path, asked)
    assert status == 400
    assert error["param"].startswith("messages[0].content[1]")


# Clients


async def test_openais_client_talks_a_second_turn_with_the_first_ones_message() -> None:
    student = ScriptedBackend(says("x"))
    async with (
        in_process(service_of(student)) as http,
        openai.AsyncOpenAI(
            base_url="http://motab/v1", api_key="none", http_client=http, max_retries=0
        ) as client,
    ):
        messages: list[Any] = [{"role": "user", "content": "Q"}]
        first = await client.chat.completions.create(
            model=MODEL, messages=messages, extra_body={"motab": {"trace": "full"}}
        )
        messages += [first.choices[0].message, {"role": "user", "content": "and then?"}]
        second = await client.chat.completions.create(model=MODEL, messages=messages)
    assert second.choices[0].message.content == "x"
    assert [m.content for m in student.rendered[1].messages] == ["Q", "x", "and then?"]


async def test_openais_client_reads_a_stream_and_its_errors() -> None:
    service = service_of(*straying(), api_keys=["key"])
    async with over_http(service) as http:
        base_url = f"{http.base_url}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key="key", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Q"}], stream=True
            )
            told = [c.choices[0].delta.content or "" async for c in stream]
            assert "".join(told) == STITCHED
            with pytest.raises(openai.NotFoundError) as caught:
                await client.completions.create(model="none", prompt="Q")
            assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="wrong").models.list()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("correcting", [False, True])
async def test_when_the_client_leaves_what_runs_upstream_is_cancelled(
    stream: bool, correcting: bool
) -> None:
    student, teacher = straying()
    author = teacher if correcting else student
    author.script = says("x", asyncio.Event())
    service = service_of(student, teacher)
    async with over_http(service) as client:
        if stream:
            async with client.stream("POST", CHAT, json=chat(stream=True)) as response:
                await anext(response.aiter_lines())
                await author.until_called("write")
        else:
            task = asyncio.create_task(client.post(CHAT, json=chat()))
            await author.until_called("write")
            task.cancel()
        async with asyncio.timeout(1):
            await author.writes[0].closed.wait()
        assert author.writes[0].cancelled
        samples = await samples_of(client)
    assert service.admission.num_active == 0
    assert samples["motab_trajectories_total", "motab", MODEL, "failed"] == 1
    assert samples["motab_requests_total", CHAT, "200" if stream else "499"] == 1


async def test_when_the_client_leaves_a_scoring_call_is_cancelled() -> None:
    teacher = ScriptedBackend(faults={("score", 0): asyncio.Event()})
    async with over_http(service_of(ScriptedBackend(), teacher)) as client:
        task = asyncio.create_task(client.post(SCORE, json={**text(), "text": "x"}))
        await teacher.until_called("score")
        task.cancel()
        async with asyncio.timeout(1):
            await teacher.scorings[0].closed.wait()


async def test_a_client_that_leaves_while_it_sends_is_counted_and_asks_for_nothing() -> None:
    student = ScriptedBackend(says("x"))
    async with over_http(service_of(student)) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: motab\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: 1000\r\n\r\n".encode() + b'{"model":')
        await writer.drain()
        writer.close()
        async with asyncio.timeout(5):
            await reader.read()
            samples = await samples_of(client)
            while ("motab_requests_total", CHAT, "499") not in samples:
                samples = await samples_of(client)
    assert samples["motab_requests_total", CHAT, "499"] == 1
    assert not student.rendered


async def test_a_server_that_ends_lets_running_requests_finish() -> None:
    gate = asyncio.Event()
    student = ScriptedBackend(says("x", gate, "y"))
    service = service_of(student)
    with listen("127.0.0.1", 0) as listener:
        server = Server(service, on_signals=False)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with asyncio.timeout(10), httpx.AsyncClient(base_url=base_url) as client:
            request = asyncio.create_task(client.post(CHAT, json=chat()))
            await student.until_called("write")
            server.drain()
            gate.set()
            response = await request
            await serving
    assert response.json()["choices"][0]["message"]["content"] == "xy"
    assert service.admission.draining


class Wire(asyncio.Transport):
    """One client's connection, and the packets that are sent on it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.packets = asyncio.Queue[bytes]()
        self.closed = False
        config.load()
        protocol_class: Any = config.http_protocol_class
        self.protocol: asyncio.Protocol = protocol_class(config, ServerState(), {})
        self.protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.packets.put_nowait(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    async def packet(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.packets.get()


_GET = b"GET / HTTP/1.1\r\nhost: motab\r\n\r\n"


async def nothing() -> None:
    pass


def in_two_parts(between: Callable[[], Coroutine[Any, Any, object]], **head: bytes) -> Config:
    """An app that sends its head, waits for `between`, and sends its body."""
    headers = [(name.encode(), value) for name, value in head.items()]

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await between()
        await send({"type": "http.response.body", "body": b"body"})

    return Config(app, http=Connection)


async def test_an_answers_head_and_its_body_are_one_packet() -> None:
    service = service_of(ScriptedBackend(says("x")))
    wire = Wire(Server(service, on_signals=False).config)
    body = json.dumps(chat(model="student/s")).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: motab\r\ncontent-type: application/json\r\n"
    for _ in range(2):
        wire.protocol.data_received(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        packet = await wire.packet()
        assert packet.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(packet.partition(b"\r\n\r\n")[2])["object"] == "chat.completion"
    assert not wire.closed


async def test_a_head_does_not_wait_for_a_late_body() -> None:
    gate = asyncio.Event()
    wire = Wire(in_two_parts(gate.wait))
    wire.protocol.data_received(_GET)
    assert (await wire.packet()).endswith(b"\r\n\r\n")
    gate.set()
    assert await wire.packet() == b"4\r\nbody\r\n0\r\n\r\n"


async def test_a_head_is_sent_before_its_connection_is_closed() -> None:
    wire = Wire(in_two_parts(nothing, connection=b"close"))
    wire.protocol.data_received(_GET.replace(b"GET", b"HEAD"))
    assert (await wire.packet()).startswith(b"HTTP/1.1 200 OK\r\n")
    assert wire.closed


async def test_no_head_is_sent_to_a_client_that_has_left() -> None:
    async def leave() -> None:
        wire.close()
        wire.protocol.connection_lost(None)

    wire = Wire(in_two_parts(leave))
    wire.protocol.data_received(_GET)
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.packets.empty()


# The methods that share the pen.


async def test_skd_is_asked_for_by_its_parameters_and_tells_what_it_rejected() -> None:
    student = ScriptedBackend(iter_of(says(A, B), says()), written_logprob=math.log(0.5))
    teacher = ScriptedBackend(says("T.\n\n"), values({A: 0.5, B: 0.3}))
    asked = chat(motab={"method": "skd", "gamma": 0.9, "trace": "full"})
    response = await answer(service_of(student, teacher), CHAT, asked)
    assert response.headers["x-motab-scoring"] == "prompt_logprobs"
    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == A + "T.\n\n"
    assert choice["motab"]["method"] == "skd"
    kept, rejected, rewritten = choice["motab"]["steps"]
    assert (kept["author"], kept["safe"], kept["boundary"]) == (
        "student",
        True,
        pytest.approx(0.45),
    )
    assert (rejected["safe"], rejected["start"], rejected["text"]) == (False, None, B)
    assert (rewritten["author"], rewritten["value"], rewritten["safe"]) == ("teacher", None, None)


def iter_of(*scripts: Script) -> Callable[[Sampling], Script]:
    left = iter(scripts)
    return lambda _sampling: next(left)


@pytest.mark.parametrize(
    ("tells", "fields", "param", "about"),
    [
        ("no", {}, "motab.method", "needs the student's log-probabilities"),
        ("scaled", {"temperature": 0.7}, "temperature", "needs temperature 0 or 1 here"),
    ],
)
async def test_skd_without_the_students_own_probabilities_is_a_400(
    tells: Literal["no", "scaled"], fields: dict[str, Any], param: str, about: str
) -> None:
    service = service_of(student := ScriptedBackend(says("x")))
    found = service.models[MODEL].pair.student
    assert found is not None
    found.writes_logprobs = tells
    status, error = await error_of(service, CHAT, chat(motab={"method": "skd"}, **fields))
    assert (status, error["param"]) == (400, param)
    assert about in error["message"]
    assert not student.writes
    # The other methods do not mind.
    asked = chat(motab={"method": "imitkd", "beta": 0}, **fields)
    assert (await answer(service, CHAT, asked)).status_code == 200


@pytest.mark.parametrize("temperature", [0, 1])
async def test_what_a_server_scaled_is_good_where_that_changes_nothing(temperature: int) -> None:
    service = service_of(ScriptedBackend(says("x"), written_logprob=-1.0))
    found = service.models[MODEL].pair.student
    assert found is not None
    found.writes_logprobs = "scaled"
    asked = chat(motab={"method": "skd"}, temperature=temperature)
    assert (await answer(service, CHAT, asked)).status_code == 200


async def test_skd_compares_no_marks_with_probabilities() -> None:
    teacher = ScriptedBackend(scoring="judge_sample")
    service = service_of(ScriptedBackend(says("x")), teacher)
    asked = chat(motab={"method": "skd", "boundary": "static", "base_threshold": 0.5})
    status, error = await error_of(service, CHAT, asked)
    assert (status, error["param"]) == (400, "motab.method")
    assert "judge_sample" in error["message"]


@pytest.mark.parametrize("method", ["imitkd", "skd", "prefix"])
async def test_a_plain_model_shares_no_pen(method: str) -> None:
    service = service_of(ScriptedBackend(says("x")))
    for model in ("student/s", "teacher/t"):
        status, error = await error_of(service, CHAT, chat(model=model, motab={"method": method}))
        assert (status, error["param"]) == (400, "motab.method")


async def test_a_seed_repeats_what_was_drawn() -> None:
    def service() -> Service:
        return service_of(ScriptedBackend(says("s")), ScriptedBackend(says("t")))

    async def text_of(seed: int) -> str:
        asked = chat(motab={"method": "imitkd"}, seed=seed)
        content: str = (await answer(service(), CHAT, asked)).json()["choices"][0]["message"][
            "content"
        ]
        return content

    first = [await text_of(seed) for seed in range(8)]
    assert [await text_of(seed) for seed in range(8)] == first
    assert set(first) == {"s", "t"}


async def test_token_logprobs_need_two_servers_that_tell_them() -> None:
    async with over_http(service_of(ScriptedBackend())) as client:
        body = {"model": MODEL, "prompt": "Q", "text": A, "token_logprobs": True}
        answer = await client.post(SCORE, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "scoring_unavailable"
    assert "upstream 'student' cannot give token_logprobs" in error["message"]
    assert "it has: prompt_logprobs" in error["message"]


_ALLOCATIONS = """
import ctypes, sys

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]

if sys.argv[1] == "settled":
    from proxy.serving.serve import settle_memory
    settle_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.mallinfo2.restype = [ctypes.c_void_p], Info
libc.free(libc.malloc(2**24))
before = libc.mallinfo2().hblks
libc.malloc(2**20)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
@pytest.mark.parametrize(("how", "num_mapped"), [("settled", "1"), ("as it is", "0")])
def test_a_large_block_is_mapped_even_after_a_larger_one_was_freed(
    how: str, num_mapped: str
) -> None:
    command = [sys.executable, "-c", _ALLOCATIONS, how]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == num_mapped
