"""Checks what becomes of litellm's errors, and who retries."""

import asyncio
import importlib
from typing import Any

import pytest

from proxy.backends.base import Sampling
from proxy.backends.servers.litellm_library import load_library
from proxy.backends.transport.calls import Timeouts
from proxy.backends.transport.retry import RetryPolicy
from proxy.errors import (
    ConfigError,
    ContextExceeded,
    MotabError,
    UnsupportedField,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnreachable,
)
from tests.support.replay import CALL, Replay, Reply, json_reply, stream_reply
from tests.support.servers import litellm
from tests.support.servers.litellm import drafts_of, failing

pytestmark = litellm.OWN_WARNINGS


@pytest.mark.parametrize(
    ("reply", "timeouts"),
    [
        (
            stream_reply(litellm.chunk('{"content":"12 "}'), hold=True),
            Timeouts(answer_s=3600, stall_s=0.1),
        ),
        (stream_reply(hold=True), Timeouts(answer_s=0.1, stall_s=3600)),
        (Reply(after=asyncio.Event()), Timeouts(answer_s=0.1, stall_s=3600)),
    ],
)
async def test_a_silent_server_counts_as_unreachable(
    up: Replay, hosted: litellm.Hosted, reply: Reply, timeouts: Timeouts
) -> None:
    up.on("POST", litellm.CHAT, reply)
    with pytest.raises(UpstreamUnreachable, match=r"it was silent for 0\.1 s"):
        await drafts_of(hosted(timeouts=timeouts), litellm.context())
    await up.left.wait()


@pytest.mark.parametrize("model", [litellm.HOSTED_VLLM, litellm.OPENAI])
@pytest.mark.parametrize("how", ["write", "ask"])
async def test_cancelling_a_waiting_call_closes_the_connection(
    up: Replay, hosted: litellm.Hosted, model: str, how: str
) -> None:
    up.on("POST", litellm.CHAT, Reply(after=asyncio.Event()))
    backend = hosted(model)
    waiting = (
        backend.ask("Q", 1, None, CALL) if how == "ask" else drafts_of(backend, litellm.context())
    )
    task = asyncio.ensure_future(waiting)
    await up.came.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await up.left.wait()
    assert [code for *_, code in up.observed] == ["cancelled"]


@pytest.mark.parametrize("model", [litellm.HOSTED_VLLM, litellm.OPENAI])
@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (json_reply(litellm.RECORDED.body("chat_unknown_model"), 404), UpstreamRefused),
        (json_reply(litellm.RECORDED.body("chat_top_logprobs_refused"), 400), UpstreamRefused),
        (json_reply(litellm.RECORDED.body("chat_too_long"), 400), ContextExceeded),
        (failing(401), UpstreamDenied),
        (failing(403), UpstreamDenied),
        (failing(422), UpstreamRefused),
        (failing(429), UpstreamFailed),
        (failing(500), UpstreamFailed),
        (failing(502), UpstreamFailed),
        (failing(503), UpstreamFailed),
        (Reply(drop_after=0), UpstreamUnreachable),
    ],
)
@pytest.mark.parametrize("how", ["write", "ask"])
async def test_litellms_errors_become_ours_with_the_servers_words(
    up: Replay, hosted: litellm.Hosted, model: str, reply: Reply, fault: type[MotabError], how: str
) -> None:
    up.on("POST", litellm.CHAT, reply)
    backend = hosted(model)
    with pytest.raises(MotabError) as caught:
        await (
            backend.ask("Q", 1, None, CALL)
            if how == "ask"
            else drafts_of(backend, litellm.context())
        )
    assert type(caught.value) is fault
    assert "\n" not in str(caught.value)
    assert "upstream 'up'" in str(caught.value)
    assert len(up.seen) == 1
    assert [(name, path, code) for name, path, _, code in up.observed] == [
        ("up", "/chat/completions", fault.code)
    ]


async def test_a_server_that_is_not_there_is_unreachable(hosted: litellm.Hosted) -> None:
    for model in (litellm.HOSTED_VLLM, litellm.OPENAI):
        with pytest.raises(UpstreamUnreachable):
            await hosted(model, base_url="http://127.0.0.1:1/v1").ask("Q", 1, None, CALL)


@pytest.mark.parametrize("model", [litellm.HOSTED_VLLM, litellm.OPENAI])
@pytest.mark.parametrize("how", ["write", "ask"])
async def test_only_our_own_policy_retries_and_it_waits_as_the_server_wishes(
    up: Replay, hosted: litellm.Hosted, model: str, how: str
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    content = litellm.RECORDED.body("chat_stop")
    last = (
        json_reply(litellm.RECORDED.body("chat_digit")) if how == "ask" else stream_reply(content)
    )
    up.on("POST", litellm.CHAT, failing(429, **{"retry-after": "7"}), failing(503), last)
    backend = hosted(model, RetryPolicy(3, 60.0, first_s=0.0, sleep=sleep))
    await (
        backend.ask("Q", 1, None, CALL) if how == "ask" else drafts_of(backend, litellm.context())
    )
    assert waits == [7.0, 0.0]
    assert up.retried == [("up", "upstream_failed")] * 2
    assert [code for *_, code in up.observed] == ["upstream_failed", "upstream_failed", "ok"]


async def test_a_parameter_that_the_model_does_not_take_is_refused_by_name(
    up: Replay, hosted: litellm.Hosted
) -> None:
    with pytest.raises(UnsupportedField, match="temperature"):
        await drafts_of(hosted("openai/o3"), litellm.context(), Sampling(0.5))
    assert up.seen == []


async def test_a_model_without_temperature_0_is_asked_at_its_own(
    up: Replay, hosted: litellm.Hosted
) -> None:
    up.on("POST", litellm.CHAT, json_reply(litellm.RECORDED.body("chat_digit")))
    await hosted("openai/o3").ask("Q", 8, None, CALL)
    await hosted(litellm.OPENAI).ask("Q", 8, None, CALL)
    assert "temperature" not in up.bodies(litellm.CHAT)[0]
    assert up.bodies(litellm.CHAT)[1]["temperature"] == 0.0


async def test_an_unknown_provider_is_told_in_one_line(hosted: litellm.Hosted) -> None:
    with pytest.raises(UpstreamRefused, match="LLM Provider NOT provided") as refusal:
        hosted("nonsense")
    assert "\n" not in str(refusal.value)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith("litellm"):
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'motab\[litellm\]'"):
        load_library()
