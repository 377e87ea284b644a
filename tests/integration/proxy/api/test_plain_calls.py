"""Tests requests for tools and formats, which a model that is served alone gets as they are."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.api.service import Service
from proxy.backends.base import Call
from proxy.backends.limits import ModelLimits
from proxy.errors import RequestError, UpstreamFailed
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    TEXT,
    answer,
    chat,
    chunks_of,
    error_of,
    in_process,
    samples_of,
    service_of,
    text,
)
from tests.support.scripted import ScriptedBackend, says

TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


@dataclass(slots=True)
class Route:
    """A server's chat route in this process."""

    fault: Exception | None = None
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    num_open: int = 0
    full: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once 16 requests have come."""

    async def complete(self, body: Mapping[str, Any], call: Call) -> dict[str, Any]:
        del call
        await self._ask(body)
        choice = {"index": 0, "message": CALLED, "finish_reason": "tool_calls"}
        return {"id": "1", "model": "own-name", "choices": [choice], "usage": USAGE}

    async def stream(self, body: Mapping[str, Any], call: Call) -> AsyncGenerator[dict[str, Any]]:
        del call
        await self._ask(body)
        delta = {"index": 0, "delta": {"content": "{}"}, "finish_reason": None}
        yield {"id": "1", "model": "own-name", "choices": [delta]}
        yield {"id": "1", "model": "own-name", "choices": [], "usage": USAGE}

    async def _ask(self, body: Mapping[str, Any]) -> None:
        self.asked.append(body)
        if self.gate is not None:
            self.num_open += 1
            if self.num_open == 16:
                self.full.set()
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault


def serving(route: Route, **server: Any) -> Service:
    """A service whose upstreams both have that chat route."""
    service = service_of(ScriptedBackend(says("x")), ScriptedBackend(says("y")), **server)
    for upstream in service.upstreams():
        upstream.chat = route
    return service


@pytest.mark.parametrize("model", ["student/s", "teacher/t"])
@pytest.mark.parametrize("fields", [TOOLS, FORMAT, {"functions": [{"name": "f"}]}], ids=str)
async def test_a_model_alone_gets_the_request_as_it_is(model: str, fields: dict[str, Any]) -> None:
    route = Route()
    body = chat(model=model, top_k=5, **fields)
    body["messages"] += [CALLED, {"role": "tool", "tool_call_id": "1", "content": "3"}]
    told = await answer(serving(route), CHAT, body)
    assert told.status_code == 200
    assert told.json()["choices"][0]["message"] == CALLED
    assert told.json()["model"] == model
    assert route.asked == [body]


async def test_its_stream_passes_chunk_by_chunk() -> None:
    chunks = await chunks_of(serving(Route()), CHAT, chat(model="student/s", **FORMAT))
    assert chunks.pop() == "[DONE]"
    assert [chunk["model"] for chunk in chunks] == ["student/s"] * 2
    assert chunks[0]["choices"][0]["delta"] == {"content": "{}"}


async def test_what_the_server_wrote_is_counted() -> None:
    async with in_process(serving(Route())) as client:
        for stream in (False, True):
            await client.post(CHAT, json=chat(model="student/s", stream=stream, **TOOLS))
        samples = await samples_of(client)
    assert samples["motab_tokens_total", "student", "student/s"] == 6


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(**TOOLS)),
        (CHAT, chat(**FORMAT)),
        (MOTAB_CHAT, chat(model="student/s", **TOOLS)),
        (TEXT, text(model="student/s", **FORMAT)),
        (CHAT, chat(model="student/s", logprobs=True)),
    ],
    ids=["tools", "format", "the traced route", "the text route", "another field"],
)
async def test_nothing_else_passes(path: str, body: dict[str, Any]) -> None:
    route = Route()
    status, error = await error_of(serving(route), path, body)
    assert (status, error["code"]) == (400, "unsupported_field")
    assert not route.asked
    if body["model"] == MODEL:
        assert "ask student/NAME" in error["message"]


async def test_a_request_that_asks_for_neither_is_ours() -> None:
    route = Route()
    body = chat(model="student/s", tools=[], response_format={"type": "text"})
    told = (await answer(serving(route), CHAT, body)).json()
    assert told["choices"][0]["motab"]["method"] == "student"
    assert not route.asked


async def test_a_hosted_model_has_no_route_of_its_own() -> None:
    service = service_of(ScriptedBackend())
    status, error = await error_of(service, CHAT, chat(model="student/s", **TOOLS))
    assert (status, error["param"]) == (400, "tools")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"motab": {"trace": "full"}}, "motab"),
        ({"n": 65}, "n"),
        ({"n": "2"}, "n"),
        ({"n": -1}, "n"),
    ],
)
async def test_a_field_that_a_plain_call_cannot_have_is_refused(
    fields: dict[str, Any], param: str
) -> None:
    route = Route()
    body = chat(model="student/s", **TOOLS, **fields)
    status, error = await error_of(serving(route), CHAT, body)
    assert (status, error["param"]) == (400, param)
    assert not route.asked


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status"), [(RequestError("no such format"), 400), (UpstreamFailed("s", "down"), 502)]
)
async def test_a_failure_has_its_status(stream: bool, fault: Exception, status: int) -> None:
    body = chat(model="student/s", stream=stream, **FORMAT)
    told, error = await error_of(serving(Route(fault)), CHAT, body)
    assert told == status
    assert str(fault) in error["message"]


@pytest.mark.parametrize(("most", "status"), [(16, 429), (17, 200)])
async def test_plain_calls_take_seats_and_places(most: int, status: int) -> None:
    gate = asyncio.Event()
    route = Route(gate=gate)
    service = serving(route, max_concurrent=most)
    body = chat(model="student/s", **TOOLS)
    async with in_process(service) as client, asyncio.TaskGroup() as group:
        calls = [group.create_task(client.post(CHAT, json=body)) for _ in range(16)]
        await route.full.wait()
        last = group.create_task(client.post(CHAT, json=body))
        await asyncio.sleep(0.05)
        assert route.num_open == 16  # the upstream's own limit
        gate.set()
    assert {call.result().status_code for call in calls} == {200}
    assert last.result().status_code == status
    assert service.admission.num_active == 0


async def test_a_plain_call_ends_at_the_deadline() -> None:
    service = serving(Route(gate=asyncio.Event()), request_timeout_s=0.1)
    status, _ = await error_of(service, CHAT, chat(model="student/s", **TOOLS))
    assert status == 504


@pytest.mark.parametrize(
    ("number", "about"),
    [
        ({"top_logprobs": 1001}, "top_logprobs must be at most 1000"),
        ({"top_logprobs": 10**19}, "top_logprobs must be at most 1000"),
        ({"prompt_logprobs": 10**19}, "prompt_logprobs must be at most 1000"),
        ({"top_k": 2**63}, "top_k must be below 2^63"),
        ({"temperature": 1e308}, "temperature must be below 2^63"),
        ({"seed": -1e308}, "seed must be below 2^63"),
    ],
)
async def test_a_number_that_could_end_a_server_is_not_passed_on(
    number: dict[str, Any], about: str
) -> None:
    route = Route()
    body = chat(model="teacher/t") | TOOLS | number
    status, error = await error_of(serving(route), CHAT, body)
    assert (status, error["message"], error["param"]) == (400, about, next(iter(number)))
    assert route.asked == []


PICTURE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": 2.0**31}, "top_k"),
        ({"min_tokens": -(2**31) - 1}, "min_tokens"),
        ({"stop_token_ids": [7, 2**31]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"allowed_token_ids": [1.5]}, "allowed_token_ids"),
        ({"logit_bias": {"-1": 5}}, "logit_bias"),
        ({"logit_bias": {"2147483648": 5}}, "logit_bias"),
        ({"logit_bias": {"\u0663": 5}}, "logit_bias"),
        ({"logit_bias": {"word" * 100: 5}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 5}}, "logit_bias"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        (
            {"chat_template_kwargs": {"chat_template": "{% for x in range(9**9) %}"}},
            "chat_template_kwargs.chat_template",
        ),
        ({"custom_logit_processor": "pickled"}, "custom_logit_processor"),
        ({"logits_processors": [{"qualname": "os.system"}]}, "logits_processors"),
        ({"kv_transfer_params": {"do_remote_prefill": True}}, "kv_transfer_params"),
        ({"bootstrap_host": "10.0.0.1"}, "bootstrap_host"),
        ({"bootstrap_host": ["10.0.0.1"]}, "bootstrap_host"),
        ({"bootstrap_port": 22}, "bootstrap_port"),
        ({"lora_path": "/tmp/x"}, "lora_path"),
        ({"extra": {"x": [{"remote_host": "10.0.0.1"}]}}, "extra.x[0].remote_host"),
        (
            {"messages": [{"role": "user", "content": [PICTURE]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"image_url": "file:///etc/passwd"}]}]},
            "messages[0].content[0].image_url",
        ),
    ],
    ids=str,
)
async def test_what_a_server_could_die_of_run_or_fetch_is_not_passed_on(
    fields: dict[str, Any], param: str
) -> None:
    route = Route()
    status, error = await error_of(serving(route), CHAT, chat(model="teacher/t") | TOOLS | fields)
    assert (status, error["param"]) == (400, param)
    assert len(error["message"]) < 300
    assert route.asked == []


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 2**62},
        {"stop_token_ids": [0, 2**31 - 1]},
        {"logit_bias": {"29": -100}},
        {"chat_template": ""},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"metadata": {"url": "http://tracing.example"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"url": {}}}}},
        {"tools": [{"type": "function", "function": {"parameters": {"host": "string"}}}]},
        {"messages": [{"role": "user", "content": [{"image_url": {"url": "data:,x"}}]}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": {"path": "/etc/hosts"}}}]}]},
        {"messages": [{"role": "tool", "content": "http://page.example"}]},
        {"bootstrap_host": None, "lora_path": [], "lora_paths": ""},
    ],
    ids=str,
)
async def test_what_asks_nothing_of_the_kind_is_passed_on(fields: dict[str, Any]) -> None:
    route = Route()
    told = await answer(serving(route), CHAT, chat(model="teacher/t") | TOOLS | fields)
    assert told.status_code == 200
    assert len(route.asked) == 1


@pytest.mark.parametrize("depth", [240, 300, 900, 2000])
async def test_a_deep_schema_is_passed_on_or_refused_in_words(depth: int) -> None:
    route = Route()
    schema = '{"a":' * depth + "1" + "}" * depth
    body = '{"model":"teacher/t","messages":[{"role":"user","content":"Q"}],"tools":[%s]}'
    async with in_process(serving(route)) as client:
        headers = {"content-type": "application/json"}
        told = await client.post(CHAT, content=body % schema, headers=headers)
    assert told.status_code == (200 if depth == 240 else 400)
    assert len(route.asked) == (depth == 240)


async def test_the_tokens_of_a_passed_on_request_are_the_models() -> None:
    route = Route()
    service = serving(route)
    for upstream in service.upstreams():
        upstream.limits = ModelLimits(vocabulary=30)
    for fields in ({"logit_bias": {"30": 1}}, {"stop_token_ids": [30]}):
        body = chat(model="teacher/t") | TOOLS | fields
        status, error = await error_of(service, CHAT, body)
        assert status == 400
        assert "upstream 'teacher', which has 30, not 30" in error["message"]
    assert route.asked == []


@pytest.mark.parametrize("name", ["top_logprobs", "n_probs"])
async def test_more_candidates_than_the_model_has_tokens_are_not_passed_on(name: str) -> None:
    route = Route()
    service = serving(route)
    for upstream in service.upstreams():
        upstream.limits = ModelLimits(vocabulary=30)
    about = f"{name} must be at most 30, the number of tokens of upstream 'teacher', not 31"
    status, error = await error_of(service, CHAT, chat(model="teacher/t") | TOOLS | {name: 31})
    assert (status, error["message"], error["param"]) == (400, about, name)
    assert route.asked == []
    told = await answer(service, CHAT, chat(model="teacher/t") | TOOLS | {name: 30})
    assert told.status_code == 200


async def test_a_body_of_too_many_values_is_not_parsed_at_all() -> None:
    body = chat(model="teacher/t") | TOOLS | {"metadata": [1] * 600_000}
    status, error = await error_of(serving(Route()), CHAT, body)
    assert status == 400
    assert error["message"] == "the body is too large: it has more than 524288 values"
