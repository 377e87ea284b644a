"""Tests what streamed answers are."""

import asyncio
import json
from contextlib import aclosing
from typing import Any, cast

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from starlette.types import Message, Scope

from proxy.api.sse import EventStream, Outbox
from tests.support.patience import PATIENCE_S
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    STITCHED,
    TEXT,
    A,
    B,
    answer,
    chat,
    chunks_of,
    over_http,
    payloads,
    service_of,
    spans_of,
    straying,
    streamed_text,
    text,
)
from tests.support.scripted import ScriptedBackend, says, values


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

    async def produce(outbox: Outbox) -> None:
        await pinged.wait()
        outbox.put(b"data: x\n\n")

    async def send(message: Message) -> None:
        sent.append(message)
        if [m.get("body") for m in sent].count(b": ping\n\n") == 3:
            pinged.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope: Scope = {"type": "http"}
    async with asyncio.timeout(PATIENCE_S):
        stream = EventStream(produce, {}, stall_timeout_s=60, ping_interval_s=0.01)
        await stream(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    bodies = [message["body"] for message in sent[1:]]
    assert bodies[:3] == [b": ping\n\n"] * 3
    assert bodies[-2:] == [b"data: x\n\n", b""]
    assert [message["more_body"] for message in sent[1:]][-2:] == [True, False]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"motab": {"stitch": "clean"}},
        {"motab": {"method": "student"}},
        {"motab": {"method": "teacher"}},
        {"motab": {"method": "imitkd"}, "seed": 3},
        {"motab": {"method": "skd"}, "max_tokens": 40},
        {"motab": {"method": "prefix"}, "seed": 3},
        {"n": 2},
    ],
    ids=str,
)
async def test_continuous_usage_counts_the_tokens_sent_so_far(
    path: str, fields: dict[str, Any]
) -> None:
    student = ScriptedBackend(says(*A, *B, "", "t", "ail"))
    teacher = ScriptedBackend(says("\n", "Right", "."), values({A: 0.9, B: 0.05}))
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**(chat if path == CHAT else text)(**fields), "stream_options": options}
    chunks = await chunks_of(service_of(student, teacher), path, body)
    *streamed, last, done = chunks
    assert done == "[DONE]"
    for index in range(fields.get("n", 1)):
        own = [c["usage"] for c in streamed if c["choices"][0]["index"] == index]
        counts = [usage["completion_tokens"] for usage in own]
        assert counts == sorted(counts)
        assert len(set(counts)) > 2
        assert {usage["prompt_tokens"] for usage in own} == {last["usage"]["prompt_tokens"]}
        assert all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in own)
        # The revise token's tokens are counted at the end.
        revise = len("However,\n\n") if last["usage"]["motab"]["correction_calls"] else 0
        assert counts[-1] - counts[-2] in {0, revise}
    total = sum(
        [c["usage"] for c in streamed if c["choices"][0]["index"] == index][-1]["completion_tokens"]
        for index in range(fields.get("n", 1))
    )
    assert last["usage"]["completion_tokens"] == total


async def test_continuous_usage_needs_the_usage() -> None:
    body = chat(stream_options={"continuous_usage_stats": True})
    chunks = await chunks_of(service_of(ScriptedBackend(says("x"))), CHAT, body)
    assert all("usage" not in chunk for chunk in chunks[:-1])
