"""Parses requests as OpenAI's clients send them."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from proxy.api.acceptance import (
    OF_CHAT,
    OF_COMPLETIONS,
    OF_MESSAGES,
    OF_PARTS,
    OF_REQUESTS,
    OF_STREAM_OPTIONS,
    Foreign,
    Unsupported,
    accepted,
)
from proxy.backends.base import Message, Question
from proxy.complaints import complaints_of, shortened
from proxy.errors import RequestError, UnsupportedField
from proxy.json_bounds import misfit_of
from proxy.options import SAMPLING_FIELDS, Effort, OptionsError, template_kwargs

_NO_OBJECT = "the body must be a JSON object, sent as application/json"
_INT64 = 2**63
_MOST_ITEMS = 4096

# Pydantic makes an object of every error, so a list ends at its first.
_Items = Field(max_length=_MOST_ITEMS, fail_fast=True)
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Prompt = str | Annotated[list[str], _Items] | TokenIds | Annotated[list[TokenIds], _Items]
"""A text, its tokens, or several of either."""
Name = Annotated[str, Field(max_length=1000)]
"""A name, or another short text."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    _foreign: ClassVar[Mapping[str, Foreign]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_no_ops(cls, data: object) -> object:
        return accepted(data, cls.model_fields, cls._foreign) if isinstance(data, dict) else data


class TextPart(_Strict):
    """A text part of a message's content."""

    _foreign = OF_PARTS

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """A chat message; its content is text, whole or in parts.

    Clients send our answers back, as their SDKs write them.
    """

    _foreign = OF_MESSAGES

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], _Items]
    reasoning_content: str | None = None
    """The thought before the content. Of earlier turns it is left out."""
    reasoning: str | None = None
    """The same, as newer servers call it."""
    prefix: bool = False
    """DeepSeek's and Mistral's mark of an answer to continue."""

    @model_validator(mode="before")
    @classmethod
    def _with_content(cls, data: object) -> object:
        """Take an answer that is a thought alone."""
        if not isinstance(data, dict) or data.get("content") is not None:
            return data
        if data.get("role") == "assistant" and (
            data.get("reasoning_content") or data.get("reasoning")
        ):
            return {**data, "content": ""}
        return data

    def to_message(self) -> Message:
        """`developer` is OpenAI's newer name for `system`, which chat templates know."""
        return Message("system" if self.role == "developer" else self.role, self.text())

    def text(self) -> str:
        """The content."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def begun_answer(self) -> str:
        """The text that the models would have written up to here."""
        thought, text = self.reasoning_content or self.reasoning, self.text()
        if not thought:
            return text
        begun = f"<think>\n{thought}"
        return f"{begun}\n</think>\n\n{text}" if text else begun


Messages = Annotated[list[ChatMessage], _Items]


class StreamOptions(_Strict):
    """The additions to a stream's text."""

    _foreign = OF_STREAM_OPTIONS

    include_usage: bool = False
    continuous_usage_stats: bool = False
    """The usage so far on every chunk, as vLLM has it; it takes `include_usage`."""

    @property
    def asks(self) -> bool:
        """Return whether anything is to be added."""
        return self.include_usage or self.continuous_usage_stats


class _ModelRequest(_Strict):
    _foreign = OF_REQUESTS

    model: Name
    user: Name | None = None
    """The user that the request is for; `--verbose` logs it."""
    motab: dict[str, Any] = Field({}, max_length=64)
    """See docs/parameters.md."""
    chat_template_kwargs: dict[str, Any] = Field({}, max_length=64)
    """Variables of the models' chat templates, such as `enable_thinking`."""
    reasoning_effort: Effort | None = None
    """How long the models should think, where their templates or APIs know that."""

    def template_kwargs(self, question: Question) -> dict[str, Any]:
        """Return all variables that the chat templates get for this question."""
        if (
            not question.messages
            and self.reasoning_effort == "none"
            and not self.chat_template_kwargs
        ):
            return {}  # asks for nothing
        field = "chat_template_kwargs" if self.chat_template_kwargs else "reasoning_effort"
        try:
            kwargs = template_kwargs(self.chat_template_kwargs, self.reasoning_effort)
        except OptionsError as error:
            raise RequestError(str(error), param=error.field) from error
        if kwargs and not question.messages:
            message = f"{field} needs messages: a prompt reaches the models without a chat template"
            raise RequestError(message, param=field)
        return kwargs

    @model_validator(mode="before")
    @classmethod
    def _transportable(cls, data: object) -> object:
        if isinstance(data, dict):
            try:
                orjson.dumps(data)
            except TypeError as error:
                raise _Untransportable(misfit_of(data) or (), str(error)) from error
        return data


class GenerationRequest(_ModelRequest):
    """The common fields of chat and text completions."""

    temperature: float = Field(1.0, ge=0, le=2)
    """The student's, as all sampling values here; the teacher has `motab.teacher`."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: Annotated[int, AfterValidator(lambda top_k: 0 if top_k == -1 else top_k)] = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    n: int = Field(1, ge=1, lt=_INT64)
    """At most the server's `max_n`."""
    max_tokens: int | None = Field(None, ge=1, lt=_INT64)
    max_completion_tokens: int | None = Field(None, ge=1, lt=_INT64)
    stop: Name | Annotated[list[Name], Field(max_length=16, fail_fast=True)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    def sampled(self) -> dict[str, Any]:
        """Return the sampling values that the request gives."""
        return {name: getattr(self, name) for name in SAMPLING_FIELDS & self.model_fields_set}

    def questions(self) -> tuple[Question, ...]:
        """q, from messages or from the prompt, or one for each of several prompts."""
        raise NotImplementedError

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(stops):
            raise RequestError("a stop string must not be empty", param="stop")
        return stops


class _Continuing(_ModelRequest):
    """Adds vLLM's and SGLang's names for what a last message of the assistant asks for."""

    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    def _conversation(self, messages: list[ChatMessage]) -> Question:
        """Return the question; a last message of the assistant's is the beginning of its answer."""
        if not messages:
            raise RequestError("messages is empty", param="messages")
        *before, last = messages
        if marked := [index for index, message in enumerate(before) if message.prefix]:
            message = "prefix: only the last message can be continued"
            raise RequestError(message, param=f"messages[{marked[0]}].prefix")
        if last.role != "assistant":
            self._refuse_continuing(len(before), last)
            return Question(messages=tuple(message.to_message() for message in messages))
        self._refuse_beginning()
        if not before:
            message = "messages has the beginning of an answer, but no question before it"
            raise RequestError(message, param="messages")
        asked = tuple(message.to_message() for message in before)
        return Question(messages=asked, begun=last.begun_answer())

    def _refuse_continuing(self, index: int, last: ChatMessage) -> None:
        about = "only a last message of the assistant can be continued, and the last is the"
        if self.continue_final_message:
            message = f"continue_final_message: {about} {last.role}'s"
            raise RequestError(message, param="continue_final_message")
        if last.prefix:
            message = f"prefix: {about} {last.role}'s"
            raise RequestError(message, param=f"messages[{index}].prefix")
        if self.add_generation_prompt is False:
            message = f"add_generation_prompt: false continues the last message, and {about}"
            raise RequestError(f"{message} {last.role}'s", param="add_generation_prompt")

    def _refuse_beginning(self) -> None:
        about = "asks for a new answer after the assistant's last message: leave it out to continue"
        if self.continue_final_message is False:
            message = f"continue_final_message: false {about} that message, or let a user ask"
            raise RequestError(message, param="continue_final_message")
        if self.add_generation_prompt:
            message = f"add_generation_prompt: true {about} that message, or let a user ask"
            raise RequestError(message, param="add_generation_prompt")


class ChatRequest(GenerationRequest, _Continuing):
    """`POST /v1/chat/completions`."""

    _foreign = OF_CHAT

    messages: Messages

    def questions(self) -> tuple[Question, ...]:
        return (self._conversation(self.messages),)


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: a prompt goes to the models as it is, without a chat template."""

    _foreign = OF_COMPLETIONS

    prompt: Prompt

    def questions(self) -> tuple[Question, ...]:
        return _prompts(self.prompt)


class MotabRequest(GenerationRequest, _Continuing):
    """`POST /v1/motab/completions`: messages or prompts."""

    messages: Messages | None = None
    prompt: Prompt | None = None

    def questions(self) -> tuple[Question, ...]:
        if (self.messages is None) == (self.prompt is None):
            raise RequestError("give either messages or prompt", param="messages")
        if self.prompt is not None:
            return _prompts(self.prompt)
        return (self._conversation(self.messages or []),)


class ScoreRequest(_Continuing):
    """`POST /v1/motab/score`: a question and the text that answers it."""

    messages: Messages | None = None
    prompt: Prompt | None = None
    text: str = Field(max_length=1_000_000)
    token_logprobs: bool = False
    """Every token's log-probability under both models, in place of the steps."""

    def question(self) -> Question:
        """q, from messages or from the prompt."""
        if (self.messages is None) == (self.prompt is None):
            raise RequestError("give either messages or prompt", param="messages")
        if self.prompt is None:
            return self._conversation(self.messages or [])
        prompts = _prompts(self.prompt)
        if len(prompts) > 1:
            raise RequestError("score one prompt per request", param="prompt")
        return prompts[0]


def _prompts(prompt: Prompt) -> tuple[Question, ...]:
    """Return a question for each prompt. The text of tokens is not known yet."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return (_prompt(prompt, "prompt"),)
    if not prompt:
        raise RequestError("prompt is empty", param="prompt")
    if len(prompt) == 1:
        return (_prompt(prompt[0], "prompt"),)
    return tuple(_prompt(one, f"prompt[{index}]") for index, one in enumerate(prompt))


def _prompt(prompt: Any, path: str) -> Question:  # noqa: ANN401 - a text, or token ids
    if not prompt:
        raise RequestError(f"{path} is empty", param=path)
    return Question(prompt=prompt) if isinstance(prompt, str) else Question(token_ids=tuple(prompt))


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
    # Of a union's complaints (text, or a list of parts), the deepest is about what was sent, unless
    # one says that it is too long.
    complaints = complaints_of(error)
    first = max(complaints, key=lambda one: (one.kind.endswith("too_long"), len(one.loc)))
    if isinstance(first.cause, _Untransportable):
        return RequestError(str(first.cause), param=_path(first.cause.loc))
    if isinstance(first.cause, Unsupported):
        param = shortened(".".join([*filter(None, [_path(first.loc)]), first.cause.field]))
        return UnsupportedField(first.cause.about(param), param=param)
    if not first.loc:
        return RequestError(_NO_OBJECT)
    param = _path(first.loc)
    return RequestError(first.about(param), param=param)


class _Untransportable(ValueError):
    """Half a surrogate pair, or an integer beyond 64 bits, which no server could receive."""

    def __init__(self, loc: tuple[int | str, ...], reason: str) -> None:
        super().__init__(f"{_path(loc)} cannot be passed on: {reason}")
        self.loc = loc


def _path(loc: tuple[int | str, ...]) -> str:
    """`messages[0].content` from pydantic's location, without its names of union members."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in {"str", "TextPart"}:
            path += f".{part}" if path else part
    return shortened(path)
