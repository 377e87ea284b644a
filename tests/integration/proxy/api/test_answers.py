"""Tests what whole answers, their traces and their options are."""

import asyncio
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from proxy.backends.base import Call, Question, Sampling, Segment
from proxy.engine.model_context import Prompts
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    MOTAB_TEXT,
    PROMPT_TOKENS,
    STITCHED,
    TEXT,
    A,
    B,
    answer,
    chat,
    error_of,
    payloads,
    service_of,
    spans_of,
    straying,
    text,
)
from tests.support.scripted import ScriptedBackend, pair, says


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


async def test_the_summary_trace_tells_the_decisions_and_the_spans() -> None:
    body = (await answer(service_of(*straying()), CHAT, chat())).json()
    (choice,) = body["choices"]
    assert set(choice["motab"]) == {
        "method",
        "quality",
        "breach",
        "bifurcation",
        "scoring",
        "spans",
    }
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
        ({"max_tokens": 10**6}, 131072),
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


@pytest.mark.parametrize("stream", [False, True])
async def test_a_question_is_rendered_once_for_each_model_whatever_n_is(stream: bool) -> None:
    student, teacher = straying()
    await answer(service_of(student, teacher), CHAT, chat(n=5, stream=stream))
    assert len(student.writes) == len(teacher.writes) == 5
    assert {writing.context for writing in student.writes} == {"<user>Q<answer>"}
    assert (len(student.rendered), len(teacher.rendered)) == (1, 1)


async def test_a_rendering_that_failed_is_not_kept() -> None:
    student, _ = straying()
    student.faults["render", 0] = ValueError("no")
    upstream, prompts = pair(student, student).of("student"), Prompts()
    question = Question(prompt="Q")
    waiting = [prompts.of(upstream, question, Call(f"r-{index}")) for index in range(3)]
    first, *others = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, ValueError)
    assert [isinstance(other, Segment) and other.text for other in others] == ["Q", "Q"]
    assert len(student.rendered) == 2


@pytest.mark.parametrize("path", [CHAT, MOTAB_CHAT])
@pytest.mark.parametrize(
    ("correction", "flags"),
    [("Right.", []), ("", ["empty_correction"]), (B, ["repeated_step"])],
)
async def test_a_trace_says_what_is_wrong_with_the_text(
    path: str, correction: str, flags: list[str]
) -> None:
    student, teacher = straying()
    teacher.script = says(*([correction] if correction else []))
    body = (await answer(service_of(student, teacher), path, chat())).json()
    assert body["choices"][0]["motab"]["quality"] == flags
    (final,) = [
        choice["motab"]
        for chunk in payloads(await answer(service_of(student, teacher), path, chat(stream=True)))
        if chunk != "[DONE]"
        for choice in chunk["choices"]
        if "motab" in choice
    ]
    assert final["quality"] == flags
