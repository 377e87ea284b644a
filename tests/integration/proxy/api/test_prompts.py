"""Tests several prompts in a request, prompts of tokens, and answers to be continued."""

from typing import Any

import pytest

from proxy.core.thinking import Reasoning
from proxy.errors import UnknownToken, UpstreamFailed, UpstreamRefused
from tests.support.proxy.api import (
    CHAT,
    MODEL,
    MOTAB_CHAT,
    MOTAB_TEXT,
    SCORE,
    TEXT,
    A,
    B,
    answer,
    chat,
    chunks_of,
    error_of,
    service_of,
    streamed_text,
    text,
)
from tests.support.scripted import Script, ScriptedBackend, says, values


class Repeating(ScriptedBackend):
    """Writes the prompt's last character, and the seed."""

    def __init__(self) -> None:
        super().__init__(lambda sampling: says(f"{self.writes[-1].context[-1]}{sampling.seed}"))


def ids(words: str) -> list[int]:
    """The tokens of a text here: its characters."""
    return list(map(ord, words))


@pytest.mark.parametrize("path", [TEXT, MOTAB_TEXT])
@pytest.mark.parametrize("prompt", [["a", "b", "c"], [ids("a"), ids("xb"), ids("c")]], ids=str)
async def test_each_prompt_has_n_choices_in_its_order(path: str, prompt: list[Any]) -> None:
    body = text(prompt=prompt, n=2, motab={"method": "student"})
    told = (await answer(service_of(Repeating()), path, body)).json()
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [choice["text"][0] for choice in told["choices"]] == list("aabbcc")
    assert told["usage"]["prompt_tokens"] == sum(len(one) for one in prompt)


async def test_a_prompt_among_others_is_answered_as_if_it_were_alone() -> None:
    body = text(prompt=["a", "b"], n=2, seed=7, motab={"method": "student"})
    told = (await answer(service_of(Repeating()), TEXT, body)).json()["choices"]
    alone = (await answer(service_of(Repeating()), TEXT, {**body, "prompt": "b"})).json()
    assert [c["text"] for c in told[2:]] == [c["text"] for c in alone["choices"]]


async def test_several_prompts_are_streamed_by_their_indices() -> None:
    body = text(prompt=["a", "b"], n=2, motab={"method": "student"}, seed=1)
    body["stream_options"] = {"include_usage": True}
    chunks = await chunks_of(service_of(Repeating()), TEXT, body)
    told = [streamed_text(chunks, index)[0] for index in range(4)]
    assert told == list("aabb")
    assert chunks[-2]["usage"]["prompt_tokens"] == 2


async def test_a_prompt_that_fails_fails_alone() -> None:
    student = Repeating()
    student.faults = {("write", n): UpstreamFailed("student", "down") for n in (1, 2)}
    service = service_of(student, max_concurrent=8)
    body = text(prompt=["a", "b"], motab={"method": "student"})
    told = (await answer(service, TEXT, body)).json()
    assert [choice["index"] for choice in told["choices"]] == [0]
    assert [failed["index"] for failed in told["motab"]["failed"]] == [1]
    assert told["usage"]["prompt_tokens"] == 1


async def test_more_prompts_than_the_server_has_seats_are_refused_with_the_number() -> None:
    service = service_of(Repeating(), max_concurrent=5)
    status, error = await error_of(service, TEXT, text(prompt=["a", "b", "c"], n=2))
    assert (status, error["param"]) == (400, "prompt")
    assert "are 6 texts, and this server writes 5 at once" in error["message"]


async def test_the_student_gets_the_tokens_and_the_teacher_their_text() -> None:
    student = ScriptedBackend(says((A, B)))
    teacher = ScriptedBackend(says("Right."), values({A: 0.9, B: 0.05}))
    await answer(service_of(student, teacher), TEXT, text(prompt=ids("Q?")))
    assert [question.prompt for question in student.rendered] == ["a"]  # the probe of `with_text`
    assert student.writes[0].context == "Q?"
    assert "Q?" in {question.prompt for question in teacher.rendered}
    assert teacher.writes[0].context.startswith("Q?" + A)


async def test_a_teacher_alone_gets_the_tokens() -> None:
    teacher = ScriptedBackend(says("x"))
    body = text(model="teacher/t", prompt=ids("Q?"))
    await answer(service_of(ScriptedBackend(), teacher), TEXT, body)
    assert teacher.writes[0].context == "Q?"


async def test_a_text_can_be_scored_after_a_prompt_of_tokens() -> None:
    teacher = ScriptedBackend(judge=values({A: 0.9}))
    body = {**text(prompt=ids("Q?")), "text": A}
    told = await answer(service_of(ScriptedBackend(), teacher), SCORE, body)
    assert told.status_code == 200
    assert teacher.scorings[0].context == "Q?" + A
    status, error = await error_of(
        service_of(ScriptedBackend()), SCORE, {**body, "prompt": ["a", "b"]}
    )
    assert (status, error["param"]) == (400, "prompt")


async def test_tokens_that_have_no_text_are_a_bad_request() -> None:
    student = ScriptedBackend()
    student.faults[("markup", 0)] = UpstreamRefused("student", "no token 5", status=400)
    status, error = await error_of(service_of(student), TEXT, text(prompt=[5]))
    assert (status, error["param"]) == (400, "prompt")
    assert "the prompt's tokens have no text" in error["message"]


UNKNOWN = UnknownToken("student", "Token id 99 is out of vocabulary", status=400)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_token_that_the_server_does_not_have_is_a_bad_request(*, stream: bool) -> None:
    student = ScriptedBackend(says("x"))
    student.faults = {("write", n): UNKNOWN for n in range(4)}
    body = text(prompt=[[99], [5]], stream=stream)
    status, error = await error_of(service_of(student), TEXT, body)
    assert (status, error["param"]) == (400, "prompt")
    assert "Token id 99 is out of vocabulary" in error["message"]


async def test_such_a_token_before_a_scored_text_is_a_bad_request() -> None:
    teacher = ScriptedBackend(judge=values({A: 0.9}))
    teacher.faults[("score", 0)] = UNKNOWN
    service = service_of(ScriptedBackend(), teacher)
    status, error = await error_of(service, SCORE, {**text(prompt=[99]), "text": A})
    assert (status, error["param"]) == (400, "prompt")


async def test_a_token_of_ours_that_the_server_does_not_have_is_no_fault_of_the_clients() -> None:
    student = ScriptedBackend(says("x"))
    student.faults = {("write", n): UNKNOWN for n in range(2)}
    status, error = await error_of(service_of(student), TEXT, text(prompt="Q"))
    assert (status, error["code"]) == (502, "upstream_refused")


@pytest.mark.parametrize(
    "prompt",
    [[-1], [5, -1], [2**31], [1.5], [True], [[True]], [None], [], [[]], [[5], []], ["a", 5], {}, 5],
    ids=str,
)
async def test_a_prompt_of_no_tokens_names_its_field(prompt: Any) -> None:
    status, error = await error_of(service_of(ScriptedBackend()), TEXT, text(prompt=prompt))
    assert status == 400
    assert error["param"].startswith("prompt")


async def test_tokens_for_a_server_that_takes_text_only_are_a_bad_request() -> None:
    service = service_of(ScriptedBackend())
    service.models[MODEL].pair.of("student").markup = None
    status, error = await error_of(service, TEXT, text(prompt=[5]))
    assert (status, error["param"]) == (400, "prompt")
    assert "send the prompt as a string" in error["message"]


def begun(content: str, **fields: Any) -> dict[str, Any]:
    """A chat request whose answer has begun."""
    asked = {"role": "user", "content": "Q"}
    return chat(messages=[asked, {"role": "assistant", "content": content}], **fields)


@pytest.mark.parametrize("path", [CHAT, MOTAB_CHAT])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_begun_answer_is_continued_by_both_models(path: str, stream: bool) -> None:
    student = ScriptedBackend(says((A, B, "tail")))
    teacher = ScriptedBackend(says("Right", "."), values({A: 0.9, B: 0.05}))
    service = service_of(student, teacher)
    if stream:
        told = streamed_text(await chunks_of(service, path, begun("Well, ")))
    else:
        choice = (await answer(service, path, begun("Well, "))).json()["choices"][0]
        assert choice["motab"]["spans"][0] == {"role": "student", "start": 0, "end": len(A)}
        told = choice["message"]["content"]
    assert told == A + B + "However,\n\nRight."  # what was sent does not come back
    assert student.writes[0].context == "<user>Q<answer>Well, "
    assert {call.context for call in teacher.scorings} >= {f"<user>Q<answer>Well, {A}{B}"}
    assert teacher.writes[0].context.startswith("<user>Q<answer>Well, " + A)


@pytest.mark.parametrize("method", ["teacher", "student", "imitkd", "skd", "prefix"])
async def test_every_method_continues_a_begun_answer(method: str) -> None:
    def script(_: object) -> Script:
        return says(A, B)

    student, teacher = ScriptedBackend(script), ScriptedBackend(script)
    service = service_of(student, teacher)
    body = begun("Well, ", motab={"method": method}, seed=1, max_tokens=40)
    told = await answer(service, CHAT, body)
    assert told.status_code == 200
    writes = [*student.writes, *teacher.writes]
    assert writes
    assert all(writing.context.startswith("<user>Q<answer>Well, ") for writing in writes)


async def test_a_begun_answer_counts_as_prompt() -> None:
    told = await answer(service_of(ScriptedBackend(says("x"))), CHAT, begun("Well, "))
    assert told.json()["usage"]["prompt_tokens"] == len("<user>Q<answer>Well, ")


async def test_a_text_is_scored_after_a_begun_answer() -> None:
    teacher = ScriptedBackend(judge=values({A: 0.9, B: 0.05}))
    body = {**begun("Well, "), "text": A + B}
    told = (await answer(service_of(ScriptedBackend(), teacher), SCORE, body)).json()
    assert teacher.scorings[0].steps == ["Well, ", A, B]
    assert [step["value"] for step in told["steps"]] == [0.9, 0.05]
    assert told["usage"]["prompt_tokens"] == len("<user>Q<answer>Well, ")


@pytest.mark.parametrize(
    ("opened", "sent", "context", "quality"),
    [
        (False, "<think>\nHm", "<answer><think>\nHm", ["thought_left_open"]),
        (False, "<think>\nHm\n</think>\n\n", "<answer><think>\nHm\n</think>\n\n", []),
        (False, "Well", "<answer>Well", []),
        (True, "<think>\nHm", "<answer>Hm", ["thought_left_open"]),
        (True, "Hm\n</think>\n\n", "<answer>Hm\n</think>\n\n", []),
    ],
)
async def test_a_begun_thought_is_continued_as_the_models_own(
    opened: bool, sent: str, context: str, quality: list[str]
) -> None:
    student = ScriptedBackend(says("x"))
    service = service_of(student)
    service.models[MODEL].pair.of("student").reasoning = Reasoning("think", opened)
    body = begun(sent, motab={"method": "student"})
    told = (await answer(service, CHAT, body)).json()
    assert student.writes[0].context == f"<user>Q{context}"
    assert told["choices"][0]["motab"]["quality"] == quality
