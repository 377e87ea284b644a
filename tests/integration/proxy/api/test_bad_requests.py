"""Tests which requests are refused, and how."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.proxy.api import (
    CHAT,
    MODEL,
    NO_OPS,
    SCORE,
    TEXT,
    answer,
    chat,
    error_in,
    error_of,
    in_process,
    over_http,
    service_of,
    straying,
    text,
)
from tests.support.scripted import ScriptedBackend, says


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
        *NO_OPS,
        {"best_of": 2, "n": 2},
        {"continue_final_message": False},
        {"add_generation_prompt": True},
        {"stream_options": {"include_usage": False, "include_obfuscation": False}},
        {"frequency_penalty": 0},
        {"logprobs": None},
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
        {"logit_bias": {"1": 1}},
        {"logprobs": 1},
        {"logprobs": 0},  # of text completions: the sampled tokens' own
        {"response_format": {"type": "json_object"}},
        {"store": True},
        {"suffix": "x"},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
        {"web_search_options": {}},
        {"top_logprobs": 2},
        {"typical_p": 0.9},
        {"service_tier": "priority"},
        {"skip_special_tokens": False},
        {"x-unknown": 1},
        {"x-unknown": False},
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
        assert error["message"].startswith(f"{name} is not supported")


@pytest.mark.parametrize(
    ("fields", "param", "advice"),
    [
        ({"extra_body": {"motab": {}}}, "extra_body", "put motab at the top level"),
        ({"base_threshold": 0.2}, "base_threshold", "put it into the motab object"),
        ({"enable_thinking": False}, "enable_thinking", "send chat_template_kwargs"),
        ({"max_new_tokens": 9}, "max_new_tokens", "send max_tokens"),
        ({"logprobs": True, "top_logprobs": 5}, "logprobs", "/v1/motab/score"),
        ({"tool_choice": "required", "tools": [{}], "n": 0}, "tools", "calls no tools"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}, "top_k": 5},
            "response_format",
            "describe it in the messages",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_refusal_says_what_to_do_instead_and_names_the_cause(
    fields: dict[str, Any], param: str, advice: str
) -> None:
    service = service_of(ScriptedBackend(says("x")))
    _, error = await error_of(service, CHAT, chat(**fields))
    assert error["param"] == param
    assert advice in error["message"]


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


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/chat/completions", "use /v1/chat/completions:"),
        ("/v1/v1/chat/completions", "use /v1/chat/completions:"),
        ("/openai/v1/completions", "use /v1/completions:"),
        ("/v1/v1/motab/completions", "use /v1/motab/completions:"),
        ("/v1/chat/completions/responses", "use /v1/chat/completions:"),
        ("/v1/completions/completions", "use /v1/completions:"),
        ("/motab/score", "use /v1/motab/score:"),
        ("/models", "use /v1/models:"),
        ("/v1/responses", "POST /v1/chat/completions"),
        ("/responses", "POST /v1/chat/completions"),
        ("/v1/messages", "POST /v1/chat/completions"),
        ("/api/chat", "POST /v1/chat/completions"),
        ("/api/generate", "POST /v1/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1/nonsense", "/v1/chat/completions"),
    ],
)
async def test_a_wrong_path_is_answered_with_the_right_one(path: str, right: str) -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        response = await client.post(path, json={})
    assert response.status_code == 404
    assert right in error_in(response)["message"]


async def test_a_wrong_method_is_answered_with_the_right_one() -> None:
    async with in_process(service_of(ScriptedBackend())) as client:
        response = await client.get(CHAT)
    assert response.status_code == 405
    assert "it takes POST" in error_in(response)["message"]


@pytest.mark.parametrize("method", ["motab", "skd"])
async def test_a_delimiter_whose_end_the_teacher_s_server_hides_is_refused_at_once(
    method: str,
) -> None:
    student, teacher = straying()
    teacher.hides_ends = True
    service = service_of(student, teacher)
    for delimiter in ("🚀", "。"):
        motab = {"delimiter": delimiter, "method": method}
        status, error = await error_of(service, CHAT, chat(motab=motab))
        assert (status, error["param"]) == (400, "motab.delimiter")
        assert "set tokenizer" in error["message"]
        alone = await answer(service, CHAT, chat(motab={**motab, "method": "student"}))
        assert alone.status_code == 200
    assert (await answer(service, CHAT, chat())).status_code == 200
    assert teacher.scorings


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
