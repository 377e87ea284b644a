"""Checks how requests pass through to a server's own chat route, and its answers back."""

from typing import Any

import pytest

from proxy.backends.base import Call
from proxy.backends.servers.chat_route import ChatRoute
from proxy.errors import MotabError, RequestError, UpstreamMalformed, UpstreamRefused
from tests.support.replay import Recording, Replay, json_reply, stream_reply

PATH = "/v1/chat/completions"
CALL = Call("t")
BODY = {"model": "student/s", "messages": [], "tools": [{"type": "function"}], "x": 1}
VLLM = Recording("vllm-0.32.0")


async def chunks_of(up: Replay) -> list[dict[str, Any]]:
    return [chunk async for chunk in ChatRoute(up.client, "m").stream(BODY, CALL)]


async def test_a_request_goes_out_as_it_came_for_the_servers_own_model(up: Replay) -> None:
    up.on("POST", PATH, json_reply(VLLM.body("chat_digit")))
    told = await ChatRoute(up.client, "m").complete(BODY, CALL)
    assert told == VLLM.json("chat_digit")
    assert up.bodies(PATH) == [{**BODY, "model": "m"}]


async def test_a_stream_comes_back_event_by_event(up: Replay) -> None:
    up.on("POST", PATH, stream_reply(VLLM.body("chat_length")))
    assert await chunks_of(up) == [row for row in VLLM.events("chat_length") if row != "[DONE]"]


@pytest.mark.parametrize("status", [400, 422])
async def test_a_refusal_of_the_request_is_the_clients(up: Replay, status: int) -> None:
    up.on("POST", PATH, json_reply({"error": {"message": "no such format"}}, status))
    with pytest.raises(RequestError, match="no such format"):
        await ChatRoute(up.client, "m").complete(BODY, CALL)
    with pytest.raises(RequestError, match="no such format"):
        await chunks_of(up)


async def test_a_server_without_a_chat_route_is_not_the_clients_fault(up: Replay) -> None:
    up.on("POST", PATH, json_reply({}, 404))
    with pytest.raises(UpstreamRefused):
        await ChatRoute(up.client, "m").complete(BODY, CALL)


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": None}])
async def test_an_answer_without_choices_is_malformed(up: Replay, reply: dict[str, Any]) -> None:
    up.on("POST", PATH, json_reply(reply))
    with pytest.raises(UpstreamMalformed):
        await ChatRoute(up.client, "m").complete(BODY, CALL)


@pytest.mark.parametrize(
    "content",
    [
        b'data: {"choices":[]}\n\n',
        b'data: {"error":{"message":"out of memory"}}\n\ndata: [DONE]\n\n',
        b"data: {oops\n\ndata: [DONE]\n\n",
    ],
    ids=["no end", "an error", "no JSON"],
)
async def test_a_stream_that_breaks_is_an_error(up: Replay, content: bytes) -> None:
    up.on("POST", PATH, stream_reply(content))
    with pytest.raises(MotabError):
        await chunks_of(up)


async def test_fields_that_a_request_leaves_out_or_null_are_not_the_server_s_to_choose(
    up: Replay,
) -> None:
    up.on("POST", "/v1/chat/completions", json_reply({"choices": [{}]}))
    defaults = {"top_k": 0, "top_p": 1.0, "chat_template_kwargs": {"a": 1, "b": 1}}
    body = {**BODY, "top_p": 0.5, "top_k": None, "chat_template_kwargs": {"b": 2}}
    await ChatRoute(up.client, "m", defaults).complete(body, CALL)
    (sent,) = up.bodies("/v1/chat/completions")
    assert (sent["top_k"], sent["top_p"]) == (0, 0.5)
    assert sent["chat_template_kwargs"] == {"a": 1, "b": 2}
