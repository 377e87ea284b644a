"""Tests what a hosted API gets of the sampling values and of the template's variables."""

from dataclasses import replace
from typing import Any, Final

import pytest

from proxy.backends.base import Sampling
from tests.support.replay import Replay, stream_reply
from tests.support.servers import litellm

pytestmark = litellm.OWN_WARNINGS

EVERY: Final[dict[str, Any]] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.25,
}


async def test_a_vllm_server_behind_litellm_gets_every_value(
    up: Replay, hosted: litellm.Hosted
) -> None:
    backend = hosted()
    assert backend.unsampled == frozenset()
    body = stream_reply(litellm.RECORDED.body("chat_stop"))
    up.on("POST", litellm.CHAT, body)
    await litellm.drafts_of(backend, litellm.context(), Sampling(**EVERY))
    await litellm.drafts_of(backend, litellm.context(), Sampling(0.7))
    changed, unchanged = up.bodies(litellm.CHAT)
    assert EVERY.items() <= changed.items()
    assert {**litellm.NEUTRAL, "temperature": 0.7}.items() <= unchanged.items()


@pytest.mark.parametrize(
    ("model", "unsampled"),
    [
        ("openai/gpt-4o", {"top_k", "min_p", "repetition_penalty"}),
        ("gemini/gemini-2.5-flash", {"min_p", "repetition_penalty"}),
        (
            "anthropic/claude-sonnet-4-5",
            {"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"},
        ),
    ],
)
async def test_a_hosted_api_says_which_values_it_has_no_field_for(
    hosted: litellm.Hosted, model: str, unsampled: set[str]
) -> None:
    assert hosted(model).unsampled == unsampled


async def test_a_hosted_api_gets_only_values_that_change_something(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_stop")))
    backend = hosted(litellm.OPENAI)
    await litellm.drafts_of(backend, litellm.context(), Sampling(0.7))
    penalised = Sampling(0.7, presence_penalty=0.5)
    await litellm.drafts_of(backend, litellm.context(), penalised)
    plain, other = up.bodies(litellm.CHAT)
    assert EVERY.keys() & plain.keys() == {"temperature"}
    assert other == {**plain, "presence_penalty": 0.5}


async def test_a_hosted_api_gets_the_effort_only_where_it_is_asked_for(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_stop")))
    question = replace(litellm.QUESTION, template_kwargs={"reasoning_effort": "low"})
    for model in ("openai/o3", "openai/gpt-4o"):
        backend = hosted(model)
        assert backend.takes_effort == (model == "openai/o3")
        await litellm.drafts_of(backend, litellm.context(question=question), Sampling(1.0))
        await litellm.drafts_of(backend, litellm.context(), Sampling(1.0))
    efforts = [body.get("reasoning_effort") for body in up.bodies(litellm.CHAT)]
    assert efforts == ["low", None, None, None]


async def test_a_vllm_server_behind_litellm_gets_the_template_s_variables(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, stream_reply(litellm.RECORDED.body("chat_stop")))
    backend = hosted(template_kwargs={"enable_thinking": False, "a": 1})
    question = replace(litellm.QUESTION, template_kwargs={"a": 2})
    await litellm.drafts_of(backend, litellm.context(question=question), Sampling(1.0))
    (body,) = up.bodies(litellm.CHAT)
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "a": 2}
