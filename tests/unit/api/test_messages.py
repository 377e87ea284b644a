"""Tests the messages that SDKs send: dumps of answers, thoughts, and answers to be continued."""

from typing import Any

import orjson
import pytest

from proxy.api.schema import ChatRequest, MotabRequest, ScoreRequest, parse_body
from proxy.backends.base import Message, Question
from proxy.errors import RequestError, UnsupportedField

ASKED = {"role": "user", "content": "Q"}
ANSWERED = {"role": "assistant", "content": "A"}


def question(*messages: dict[str, Any], **fields: Any) -> Question:
    """Return the question of a chat request with these messages."""
    body = {"model": "m", "messages": list(messages), **fields}
    (found,) = ChatRequest.model_validate(body).questions()
    return found


@pytest.mark.parametrize(
    "dumped",
    [
        {"refusal": None, "annotations": None, "audio": None, "function_call": None},
        {
            "refusal": None,
            "tool_calls": None,
            "function_call": None,
            "provider_specific_fields": {},
        },
        {"annotations": [], "tool_calls": [], "refusal": ""},
        {"annotations": [{"type": "url_citation"}]},
        {"name": "bob", "id": "msg_1"},
        {"cache_control": {"type": "ephemeral"}},
        {"motab": {"method": "motab", "spans": []}},
        {"reasoning_content": "T"},
        {"reasoning": "T", "reasoning_details": [{"text": "T"}], "thinking_blocks": []},
        {"prefix": False},
        {"content": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}]},
        {"content": [{"type": "text", "text": "A", "annotations": [], "anything": None}]},
    ],
    ids=str,
)
def test_an_earlier_turn_passes_as_sdks_dump_it(dumped: dict[str, Any]) -> None:
    found = question(ASKED, {**ANSWERED, **dumped}, ASKED)
    assert found == Question(messages=tuple(Message(*m.values()) for m in (ASKED, ANSWERED, ASKED)))


def test_an_earlier_turn_that_is_a_thought_alone_is_an_empty_answer() -> None:
    thought = {"role": "assistant", "content": None, "reasoning_content": "T"}
    found = question(ASKED, thought, ASKED)
    assert [message.content for message in found.messages] == ["Q", "", "Q"]


@pytest.mark.parametrize(
    ("fields", "param", "advice"),
    [
        ({"tool_calls": [{"id": "1"}]}, "messages[1].tool_calls", "calls no tools"),
        ({"function_call": {"name": "f"}}, "messages[1].function_call", "calls no tools"),
        ({"audio": {"id": "a"}}, "messages[1].audio", "motab reads text"),
        ({"refusal": "I cannot."}, "messages[1].refusal", "send it as the content"),
        ({"mood": "bad"}, "messages[1].mood", "is not supported"),
    ],
)
def test_a_field_of_a_message_that_says_something_is_refused_by_its_path(
    fields: dict[str, Any], param: str, advice: str
) -> None:
    with pytest.raises(UnsupportedField) as caught:
        parse_body_of(ASKED, {**ANSWERED, **fields}, ASKED)
    assert caught.value.param == param
    assert advice in str(caught.value)


def parse_body_of(*messages: dict[str, Any]) -> ChatRequest:
    """The request, parsed from JSON."""
    body = orjson.dumps({"model": "m", "messages": list(messages)})
    return parse_body(ChatRequest, "application/json", body)


@pytest.mark.parametrize(
    ("last", "begun"),
    [
        (ANSWERED, "A"),
        ({**ANSWERED, "content": "A \n"}, "A \n"),
        ({**ANSWERED, "prefix": True}, "A"),
        (
            {**ANSWERED, "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
            "AB",
        ),
        ({**ANSWERED, "content": ""}, ""),
        ({**ANSWERED, "reasoning_content": "T"}, "<think>\nT\n</think>\n\nA"),
        ({**ANSWERED, "reasoning": "T"}, "<think>\nT\n</think>\n\nA"),
        ({"role": "assistant", "content": None, "reasoning_content": "T"}, "<think>\nT"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"add_generation_prompt": False},
    ],
    ids=str,
)
def test_a_last_message_of_the_assistants_is_the_beginning_of_its_answer(
    last: dict[str, Any], begun: str, fields: dict[str, Any]
) -> None:
    found = question(ASKED, last, **fields)
    assert found == Question(messages=(Message("user", "Q"),), begun=begun)


def test_every_route_that_takes_messages_takes_a_begun_answer() -> None:
    body = {"model": "m", "messages": [ASKED, ANSWERED]}
    asked = Question(messages=(Message("user", "Q"),), begun="A")
    assert MotabRequest.model_validate(body).questions() == (asked,)
    assert ScoreRequest.model_validate({**body, "text": "x"}).question() == asked


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([ASKED], {"continue_final_message": True}, "continue_final_message"),
        ([ASKED], {"add_generation_prompt": False}, "add_generation_prompt"),
        ([{**ASKED, "prefix": True}], {}, "messages[0].prefix"),
        ([ASKED, {**ANSWERED, "prefix": True}, ASKED], {}, "messages[1].prefix"),
        ([ASKED, ANSWERED], {"continue_final_message": False}, "continue_final_message"),
        ([ASKED, ANSWERED], {"add_generation_prompt": True}, "add_generation_prompt"),
    ],
    ids=str,
)
def test_a_wish_that_contradicts_the_messages_is_refused(
    messages: list[dict[str, Any]], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        question(*messages, **fields)
    assert caught.value.param == param
