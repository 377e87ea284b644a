"""Parses requests as OpenAI's clients send them, and refuses unsupported fields by name."""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from proxy.backends.base import Message, Question
from proxy.complaints import complaints_of
from proxy.errors import RequestError, UnsupportedField

# OpenAI fields that motab does not have, with the value that asks for nothing. Some clients always
# send them; any other value is refused.
_NO_OPS: Mapping[str, object] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "metadata": {},
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "store": False,
    "suffix": "",
    "tools": [],
}

_NO_OBJECT = "the body must be a JSON object, sent as application/json"


def _is_same(value: object, no_op: object) -> bool:
    """Return whether both are equal; 0 is not False, because `logprobs: 0` asks for something."""
    return value == no_op and isinstance(value, bool) == isinstance(no_op, bool)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """A chat message; its content is text, whole or in parts.

    Clients send our answers back unchanged, with fields that are null.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None}

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def to_message(self) -> Message:
        """`developer` is OpenAI's newer name for `system`, which chat templates know."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Message(role, self.content)
        return Message(role, "".join(part.text for part in self.content))


class StreamOptions(_Strict):
    """The additions to a stream's text."""

    include_usage: bool = False


class _ModelRequest(_Strict):
    model: str
    user: str | None = None
    """The user that the request is for; `--verbose` logs it."""
    motab: dict[str, Any] = {}
    """See docs/parameters.md."""

    @model_validator(mode="before")
    @classmethod
    def _without_no_ops(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        try:
            orjson.dumps(data)
        except TypeError as error:
            raise _Untransportable(_untransportable(data), str(error)) from error
        return {
            key: value
            for key, value in data.items()
            if value is not None and not (key in _NO_OPS and _is_same(value, _NO_OPS[key]))
        }


class GenerationRequest(_ModelRequest):
    """The common fields of chat and text completions."""

    temperature: float = Field(1.0, ge=0, le=2)
    """The student's temperature; the teacher has `motab.teacher_temperature`."""
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | Annotated[list[str], Field(max_length=16)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    def question(self) -> Question:
        """q, from messages or from the prompt."""
        raise NotImplementedError

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(stops):
            raise RequestError("a stop string must not be empty", param="stop")
        return stops


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]

    def question(self) -> Question:
        return _question(self.messages, None)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: the prompt goes to the models as it is, without a chat template."""

    prompt: str | list[str]

    def question(self) -> Question:
        return _question(None, self.prompt)


class MotabRequest(GenerationRequest):
    """`POST /v1/motab/completions`: messages or a prompt."""

    messages: list[ChatMessage] | None = None
    prompt: str | list[str] | None = None

    def question(self) -> Question:
        return _question(self.messages, self.prompt)


class ScoreRequest(_ModelRequest):
    """`POST /v1/motab/score`: a question and the text that answers it."""

    messages: list[ChatMessage] | None = None
    prompt: str | None = None
    text: str
    token_logprobs: bool = False
    """Every token's log-probability under both models, in place of the steps."""

    def question(self) -> Question:
        """q, from messages or from the prompt."""
        return _question(self.messages, self.prompt)


def _question(messages: list[ChatMessage] | None, prompt: str | list[str] | None) -> Question:
    if (messages is None) == (prompt is None):
        raise RequestError("give either messages or prompt", param="messages")
    if prompt is not None:
        if isinstance(prompt, list) and len(prompt) != 1:
            raise RequestError("send one prompt per request", param="prompt")
        text = prompt if isinstance(prompt, str) else prompt[0]
        if not text:
            raise RequestError("prompt is empty", param="prompt")
        return Question(prompt=text)
    if not messages:
        raise RequestError("messages is empty", param="messages")
    if messages[-1].role == "assistant":
        message = "the last message must not be the assistant's: motab writes the answer"
        raise RequestError(message, param=f"messages[{len(messages) - 1}].role")
    return Question(messages=tuple(message.to_message() for message in messages))


_Model = TypeVar("_Model", bound=BaseModel)


def parse_body(model: type[_Model], content_type: str, body: bytes) -> _Model:
    """Parse a body into a request. Raises `RequestError`, which names the field."""
    if not body or not _is_json(content_type):
        raise RequestError(_NO_OBJECT)
    try:
        return model.model_validate_json(body)
    except ValidationError:
        # Read again to say what is wrong: pydantic's own reader of JSON is faster, but explains
        # less, and refuses encodings other than UTF-8.
        return _parse_slowly(model, body)


def _parse_slowly(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate(json.loads(body))
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error.msg}") from error
    except ValidationError as error:
        raise _request_error(error) from error
    except ValueError as error:  # of json: not UTF-8, or an integer of thousands of digits
        raise RequestError(f"the body cannot be read: {error}") from error
    except RecursionError as error:
        raise RequestError("the body cannot be read: it is nested too deeply") from error


def _is_json(content_type: str) -> bool:
    if content_type == "application/json":
        return True
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _request_error(error: ValidationError) -> RequestError:
    """The first of pydantic's complaints about a body, naming the field."""
    # Of a union's complaints (text, or a list of parts), the deepest is about what was sent.
    first = max(complaints_of(error), key=lambda complaint: len(complaint.loc))
    if isinstance(first.cause, _Untransportable):
        return RequestError(str(first.cause), param=_path(first.cause.loc))
    if not first.loc:
        return RequestError(_NO_OBJECT)
    if first.kind == "extra_forbidden":
        param = ".".join([*filter(None, [_path(first.loc[:-1])]), str(first.loc[-1])])
        return UnsupportedField(f"{param} is not supported", param=param)
    param = _path(first.loc)
    return RequestError(first.about(param), param=param)


class _Untransportable(ValueError):
    """Half a surrogate pair, or an integer beyond 64 bits, which no server could receive."""

    def __init__(self, loc: tuple[int | str, ...], reason: str) -> None:
        super().__init__(f"{_path(loc)} cannot be passed on: {reason}")
        self.loc = loc


def _untransportable(value: object) -> tuple[int | str, ...]:
    """The place in `value` of a part that JSON for servers cannot hold."""
    items: Iterable[tuple[int | str, object]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        try:
            orjson.dumps(item)
        except TypeError:
            return (key, *_untransportable(item))
    return ()  # this value itself, or one of its keys


def _path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].content` from pydantic's location, without its names of union members."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in {"str", "TextPart"}:
            path += f".{part}" if path else part
    return path
