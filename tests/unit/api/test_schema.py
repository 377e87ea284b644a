import json
from typing import Any

import pytest

from proxy.api.schema import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    MotabRequest,
    ScoreRequest,
    parse_body,
)
from proxy.backends.base import Message, Question
from proxy.errors import RequestError, UnsupportedField
from tests.support.proxy.api import NO_OPS

JSON = "application/json"
ASKED = {"role": "user", "content": "Q"}
CHAT = {"model": "m", "messages": [ASKED]}
TEXT = {"model": "m", "prompt": "Q"}
PART = {"type": "text", "text": "Q"}
BEGUN = {"role": "assistant", "content": "A"}


def refused(kind: type[GenerationRequest] | type[ScoreRequest], body: object) -> RequestError:
    """The error that this body is answered with."""
    with pytest.raises(RequestError) as caught:
        parse_body(kind, JSON, json.dumps(body).encode())
    return caught.value


def test_a_request_needs_only_a_model_and_a_question() -> None:
    request = ChatRequest.model_validate(CHAT)
    assert (request.temperature, request.top_p, request.n, request.stream) == (1.0, 1.0, 1, False)
    assert (request.seed, request.max_tokens, request.max_completion_tokens) == (None, None, None)
    assert request.motab == {}
    assert request.stops() == ()
    assert request.stream_options is None


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"top_p": 1},
        {"top_p": 0.001},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"n": 1},
        {"max_tokens": 1},
        {"max_completion_tokens": 1},
        {"stop": "x"},
        {"stop": ["x"] * 16},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
    ids=str,
)
def test_a_value_at_its_bound_is_taken(fields: dict[str, Any]) -> None:
    request = ChatRequest.model_validate({**CHAT, **fields})
    assert request.model_dump(include=set(fields)) == fields


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "Q"}, "messages"),
        ({"messages": ["Q"]}, "messages[0]"),
        ({"messages": [ASKED, {"role": "tool", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio", "text": "x"}]}]},
            "messages[0].content[0].type",
        ),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": 3}, "stop"),
        ({"stop": [3]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"user": 3}, "user"),
        ({"motab": "full"}, "motab"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_its_path(fields: dict[str, Any], param: str) -> None:
    error = refused(ChatRequest, {**CHAT, **fields})
    assert error.param == param
    assert str(error).startswith((f"{param}: ", f"{param} is missing", f"{param} cannot be"))
    assert not isinstance(error, UnsupportedField)


def test_the_message_says_what_would_be_right() -> None:
    error = refused(ChatRequest, {**CHAT, "temperature": 3})
    assert str(error) == "temperature: input should be less than or equal to 2"
    assert str(refused(ChatRequest, {"model": "m"})) == "messages is missing"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**CHAT, "typical_p": 0.9}, "typical_p"),
        ({**CHAT, "prompt": "x"}, "prompt"),
        ({**CHAT, "text": "x"}, "text"),
        ({**CHAT, "stream_options": {"include_obfuscation": True}}, None),
        ({**CHAT, "messages": [{**ASKED, "mood": "bad"}]}, "messages[0].mood"),
        (
            {**CHAT, "messages": [{"role": "user", "content": [{**PART, "mood": "bad"}]}]},
            "messages[0].content[0].mood",
        ),
    ],
    ids=str,
)
def test_a_field_that_there_is_not_is_refused_as_unsupported(
    body: dict[str, Any], param: str | None
) -> None:
    error = refused(ChatRequest, body)
    wanted = param or "stream_options.include_obfuscation"
    assert isinstance(error, UnsupportedField)
    assert (error.param, str(error)) == (wanted, f"{wanted} is not supported")


@pytest.mark.parametrize("name", ["x-unknown", "with space", "str", "TextPart", "ü.b"])
def test_an_unsupported_field_is_named_whatever_its_name(name: str) -> None:
    error = refused(ChatRequest, {**CHAT, name: 1})
    assert (error.param, str(error)) == (name, f"{name} is not supported")


def test_null_fields_of_an_assistants_message_ask_for_nothing() -> None:
    # As OpenAI's package sends the message of an earlier answer.
    earlier = {"role": "assistant", "content": "A", "refusal": None, "tool_calls": None}
    request = ChatRequest.model_validate({**CHAT, "messages": [ASKED, earlier, ASKED]})
    assert [message.content for message in request.messages] == ["Q", "A", "Q"]


def test_of_several_complaints_one_is_told() -> None:
    error = refused(ChatRequest, {"messages": [{"role": "x", "content": "y"}], "n": 0})
    assert error.param == "messages[0].role"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":', "the body is not valid JSON: Expecting value"),
        (b'{"model": "\xff"}', "the body cannot be read: 'utf-8' codec can't decode byte 0xff"),
        (b'{"n": ' + b"9" * 5000 + b"}", "the body cannot be read: Exceeds the limit"),
        (b"[" * 100_000, "the body cannot be read: it is nested too deeply"),
        (b'{"motab":' + b'{"x":' * 700 + b"1" + b"}" * 701, "motab"),
    ],
    ids=["cut", "not UTF-8", "thousands of digits", "nested beyond json", "nested beyond orjson"],
)
def test_a_body_that_cannot_be_read_is_told_with_the_parsers_words(
    body: bytes, message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(ChatRequest, JSON, body)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "content_type",
    [JSON, "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"],
)
def test_json_is_known_by_its_content_type(content_type: str) -> None:
    assert parse_body(ChatRequest, content_type, json.dumps(CHAT).encode()).model == "m"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_each_of_its_encodings(encoding: str) -> None:
    body = json.dumps({**CHAT, "user": "é"}, ensure_ascii=False).encode(encoding)
    assert parse_body(ChatRequest, JSON, body).user == "é"


@pytest.mark.parametrize("content_type", ["", "json", "text/json", "application/json/x"])
def test_what_is_not_sent_as_json_is_not_read(content_type: str) -> None:
    with pytest.raises(RequestError, match="must be a JSON object, sent as application/json"):
        parse_body(ChatRequest, content_type, json.dumps(CHAT).encode())


@pytest.mark.parametrize("body", [[], "text", 3, None])
def test_a_body_that_is_no_object_is_told_so(body: object) -> None:
    error = refused(ChatRequest, body)
    assert str(error) == "the body must be a JSON object, sent as application/json"


@pytest.mark.parametrize(
    "no_op",
    [*NO_OPS, {"anything": None}],
    ids=str,
)
def test_a_value_that_asks_for_nothing_is_dropped(no_op: dict[str, Any]) -> None:
    assert ChatRequest.model_validate({**CHAT, **no_op}) == ChatRequest.model_validate(CHAT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 2),
        ("echo", True),
        ("logit_bias", {"5": -100}),
        ("logprobs", True),
        ("logprobs", 0),
        ("response_format", {"type": "json_object"}),
        ("store", True),
        ("suffix", "x"),
        ("tools", [{}]),
    ],
)
def test_the_same_field_with_another_value_is_refused(name: str, value: object) -> None:
    error = refused(CompletionRequest, {**TEXT, name: value})
    assert isinstance(error, UnsupportedField)
    assert error.param == name


# Questions


def test_messages_become_a_question_with_parts_joined_and_developer_as_system() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "D"}, {"role": "user", "content": parts}]
    request = ChatRequest.model_validate({"model": "m", "messages": messages})
    (question,) = request.questions()
    assert question == Question(messages=(Message("system", "D"), Message("user", "a b")))


@pytest.mark.parametrize(
    ("prompt", "questions"),
    [
        ("Q", [Question(prompt="Q")]),
        (["Q"], [Question(prompt="Q")]),
        (["Q", "R"], [Question(prompt="Q"), Question(prompt="R")]),
        ([1, 2], [Question(token_ids=(1, 2))]),
        ([[1, 2]], [Question(token_ids=(1, 2))]),
        ([[1], [2, 3]], [Question(token_ids=(1,)), Question(token_ids=(2, 3))]),
    ],
    ids=str,
)
def test_each_prompt_is_a_question_as_it_is(prompt: object, questions: list[Question]) -> None:
    for kind in (CompletionRequest, MotabRequest):
        request = kind.model_validate({"model": "m", "prompt": prompt})
        assert list(request.questions()) == questions


@pytest.mark.parametrize(
    "prompt", [3, [1, "a"], [[1], "a"], [[1], 2], [True], [1.5], [-1], [2**31], [["a"]], {"a": 1}]
)
def test_a_prompt_that_is_neither_text_nor_tokens_is_refused(prompt: object) -> None:
    error = refused(CompletionRequest, {"model": "m", "prompt": prompt})
    assert str(error.param).startswith("prompt")


@pytest.mark.parametrize(
    ("kind", "body", "param", "message"),
    [
        (ChatRequest, {"messages": []}, "messages", "messages is empty"),
        (CompletionRequest, {"prompt": ""}, "prompt", "prompt is empty"),
        (CompletionRequest, {"prompt": [""]}, "prompt", "prompt is empty"),
        (CompletionRequest, {"prompt": []}, "prompt", "prompt is empty"),
        (CompletionRequest, {"prompt": [[]]}, "prompt", "prompt is empty"),
        (CompletionRequest, {"prompt": ["a", ""]}, "prompt[1]", "prompt[1] is empty"),
        (MotabRequest, {}, "messages", "give either messages or prompt"),
        (
            MotabRequest,
            {"messages": [ASKED], "prompt": "Q"},
            "messages",
            "give either messages or prompt",
        ),
        (
            ChatRequest,
            {"messages": [BEGUN]},
            "messages",
            "messages has the beginning of an answer, but no question before it",
        ),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    kind: type[GenerationRequest], body: dict[str, Any], param: str, message: str
) -> None:
    request = kind.model_validate({"model": "m", **body})
    with pytest.raises(RequestError) as caught:
        request.questions()
    assert (caught.value.param, str(caught.value)) == (param, message)


def test_a_score_request_takes_messages_or_a_prompt_and_needs_its_text() -> None:
    with_messages = ScoreRequest.model_validate({**CHAT, "text": ""})
    assert with_messages.question() == Question(messages=(Message("user", "Q"),))
    with_prompt = ScoreRequest.model_validate({**TEXT, "text": "x"})
    assert with_prompt.question() == Question(prompt="Q")
    assert refused(ScoreRequest, TEXT).param == "text"
    assert refused(ScoreRequest, {**TEXT, "text": "x", "n": 2}).param == "n"


# Stop strings


@pytest.mark.parametrize(("given", "stops"), [("x", ("x",)), (["x", "y"], ("x", "y")), ([], ())])
def test_stop_strings_come_alone_or_in_a_list(given: object, stops: tuple[str, ...]) -> None:
    assert ChatRequest.model_validate({**CHAT, "stop": given}).stops() == stops


@pytest.mark.parametrize("given", ["", ["x", ""]])
def test_an_empty_stop_string_is_refused(given: object) -> None:
    with pytest.raises(RequestError, match="a stop string must not be empty") as caught:
        ChatRequest.model_validate({**CHAT, "stop": given}).stops()
    assert caught.value.param == "stop"
