"""Tests requests for several choices of which one fails."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.backends.base import Sampling
from proxy.errors import ContextExceeded, UpstreamFailed, UpstreamInterrupted
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    TEXT,
    answer,
    chat,
    chunks_of,
    error_of,
    in_process,
    payloads,
    samples_of,
    service_of,
    straying,
    streamed_text,
    text,
)
from tests.support.scripted import Item, Script, ScriptedBackend, says

BROKEN = UpstreamInterrupted("student", "its stream broke")
BAD = 1
"""The choice that fails; with the request's seed 0 its seed is its index."""


def failing(*items: Item, times: int = 2) -> Callable[[Sampling], Script]:
    """Choice `BAD` gives these items and then an error, as often as said; the others write."""
    num_writes: Counter[int | None] = Counter()

    def script(sampling: Sampling) -> Script:
        num_writes[sampling.seed] += 1
        if sampling.seed == BAD and num_writes[BAD] <= times:
            return says(*items, BROKEN)
        return says("ok.\n\n", "fine")

    return script


async def test_a_choice_that_fails_is_made_once_more() -> None:
    student = ScriptedBackend(failing("lost", times=1))
    service = service_of(student)
    response = await answer(service, CHAT, chat(n=3, seed=0))
    assert response.status_code == 200
    body = response.json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"ok.\n\nfine"}
    assert "motab" not in body
    assert len(student.writes) == 4
    # What was written in vain is in the usage, of the text that the client does not see.
    assert body["usage"]["completion_tokens"] == 3 * 2
    assert body["usage"]["motab"]["student_tokens"] == 3 * 2 + 1
    assert body["usage"]["motab"]["student_tokens_discarded"] == 1
    assert body["usage"]["motab"]["student_calls"] == 4


async def test_a_choice_that_fails_twice_fails_alone() -> None:
    student = ScriptedBackend(failing("lost"))
    service = service_of(student)
    response = await answer(service, CHAT, chat(n=3, seed=0))
    assert response.status_code == 200
    body = response.json()
    assert [choice["index"] for choice in body["choices"]] == [0, 2]
    (failed,) = body["motab"]["failed"]
    assert (failed["index"], failed["error"]["code"]) == (BAD, "upstream_interrupted")
    assert set(failed["error"]) == {"message", "type", "param", "code"}
    assert len(student.writes) == 4
    assert body["usage"]["motab"]["student_tokens_discarded"] == 2
    assert service.admission.num_active == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_where_every_choice_fails_so_does_the_request(stream: bool) -> None:
    student = ScriptedBackend(says(UpstreamFailed("student", "down")))
    status, error = await error_of(service_of(student), CHAT, chat(n=3, stream=stream))
    assert (status, error["code"]) == (502, "upstream_failed")
    assert len(student.writes) == 6


@pytest.mark.parametrize("stream", [False, True])
async def test_a_single_choice_is_made_once(stream: bool) -> None:
    student = ScriptedBackend(says(UpstreamFailed("student", "down")))
    status, _ = await error_of(service_of(student), CHAT, chat(stream=stream))
    assert status == 502
    assert len(student.writes) == 1


async def test_what_no_attempt_can_help_is_not_made_again() -> None:
    student = ScriptedBackend(says("ok"), faults={("write", 1): ContextExceeded("too long")})
    body = (await answer(service_of(student), CHAT, chat(n=2))).json()
    assert [failed["error"]["code"] for failed in body["motab"]["failed"]] == [
        "context_length_exceeded"
    ]
    assert len(student.writes) == 2


async def test_the_choices_that_are_done_in_time_are_answered() -> None:
    def script(sampling: Sampling) -> Script:
        return says(asyncio.Event()) if sampling.seed == BAD else says("ok")

    student = ScriptedBackend(script)
    service = service_of(student, request_timeout_s=0.2)
    body = (await answer(service, CHAT, chat(n=2, seed=0))).json()
    assert [choice["index"] for choice in body["choices"]] == [0]
    assert body["motab"]["failed"][0]["error"]["code"] == "deadline_exceeded"
    assert all(writing.closed.is_set() for writing in student.writes)


async def test_a_stream_names_the_choice_that_failed_and_ends_well() -> None:
    student = ScriptedBackend(failing("half "))
    body = chat(n=3, seed=0, stream_options={"include_usage": True}, motab={"trace": "none"})
    chunks = await chunks_of(service_of(student), CHAT, body)
    assert chunks[-1] == "[DONE]"
    ends = {c["index"]: c["finish_reason"] for chunk in chunks[:-1] for c in chunk["choices"]}
    assert ends == {0: "stop", 1: None, 2: "stop"}
    (named,) = (chunk for chunk in chunks[:-1] if "motab" in chunk)
    (failed,) = named["motab"]["failed"]
    assert (failed["index"], failed["error"]["code"]) == (BAD, "upstream_interrupted")
    assert [choice["index"] for choice in named["choices"]] == [BAD]
    assert [streamed_text(chunks, index) for index in range(3)] == [
        "ok.\n\nfine",
        "half ",
        "ok.\n\nfine",
    ]
    # Its text was sent, so that no other could take its place.
    assert len(student.writes) == 3


async def test_a_choice_of_which_nothing_was_sent_is_made_again_in_a_stream() -> None:
    student = ScriptedBackend(failing(times=1))
    chunks = await chunks_of(service_of(student), TEXT, text(n=3, seed=0))
    assert [streamed_text(chunks, index) for index in range(3)] == ["ok.\n\nfine"] * 3
    assert not any("motab" in chunk for chunk in chunks[:-1])


@pytest.mark.parametrize(("path", "asked"), [(CHAT, chat), (TEXT, text)])
async def test_an_answer_without_a_choice_has_openais_shape(
    path: str, asked: Callable[..., dict[str, Any]]
) -> None:
    shape = ChatCompletion if path == CHAT else Completion
    response = await answer(service_of(ScriptedBackend(failing())), path, asked(n=3, seed=0))
    found = shape.model_validate(response.json(), strict=True)
    assert [choice.index for choice in found.choices] == [0, 2]
    if path == CHAT:
        stream = await answer(
            service_of(ScriptedBackend(failing("half"))), path, asked(n=3, seed=0, stream=True)
        )
        for chunk in payloads(stream)[:-1]:
            ChatCompletionChunk.model_validate(chunk, strict=True)


async def test_openais_client_reads_what_is_left_of_an_answer() -> None:
    async with (
        in_process(service_of(ScriptedBackend(failing("half", times=3)))) as http,
        openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0
        ) as client,
    ):
        asked: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Q"}],
            "n": 3,
            "seed": 0,
        }
        whole = await client.chat.completions.create(**asked)
        assert [choice.message.content for choice in whole.choices] == ["ok.\n\nfine"] * 2
        assert whole.model_extra is not None
        assert whole.model_extra["motab"]["failed"][0]["index"] == BAD
        async with client.chat.completions.stream(**asked) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        told = {choice.index: choice.finish_reason for choice in final.choices}
        assert told == {0: "stop", 1: None, 2: "stop"}


async def test_a_failed_trajectory_is_counted_in_the_metrics() -> None:
    student, teacher = straying()
    teacher.script = says("Right", BROKEN)
    async with in_process(service_of(student, teacher)) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 502
        samples = await samples_of(client)
    assert samples["motab_trajectories_total", "motab", MODEL, "failed"] == 1
    tokens = {key[1]: value for key, value in samples.items() if key[0] == "motab_tokens_total"}
    assert tokens["student"] == tokens["student_discarded"] == 3
    assert tokens["teacher"] == tokens["teacher_discarded"] == 1
    assert tokens["teacher_scored"] > 0
    calls = {key[1]: value for key, value in samples.items() if key[0] == "motab_calls_total"}
    assert calls["student"] == calls["correction"] == 1
    assert calls["score"] > 0


async def test_an_abandoned_trajectory_is_counted_in_the_metrics() -> None:
    student = ScriptedBackend(says("one ", "two ", asyncio.Event()))
    async with in_process(service_of(student, request_timeout_s=0.1)) as client:
        assert (await client.post(CHAT, json=chat())).status_code == 504
        samples = await samples_of(client)
    tokens = {key[1]: value for key, value in samples.items() if key[0] == "motab_tokens_total"}
    assert tokens["student"] == tokens["student_discarded"] == 2
