"""Reads conversations as datasets hold them: lists of turns, padded with nulls, or JSON text."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

import orjson
from pydantic import TypeAdapter, ValidationError

from synth_client.questions.reference import checked_text
from trajectory_records.complaints import complaints_of
from trajectory_records.record import Message

_MESSAGES: Final = TypeAdapter(tuple[Message, ...])
_ASSISTANT: Final = "assistant"
# ShareGPT's names of the speakers.
_ROLES: Final = {"human": "user", "gpt": _ASSISTANT, "bot": _ASSISTANT, "chatgpt": _ASSISTANT}
# Without what these fields hold, the turn would ask something else.
_NEEDED: Final = (
    *("tool_calls", "function_call", "tool_call_id"),
    *("image", "images", "audio", "audios", "video", "videos", "documents"),
)


_TEXT_PARTS: Final = (None, "text", "input_text", "output_text")


def is_conversation(value: object) -> bool:
    """Return whether a column holds turns: a list of objects, or such a list as JSON text."""
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]") and '"content"' in text):
            return False
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return False
    return _is_list(value) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def messages_of(value: object, column: str) -> tuple[Message, ...]:
    """Return the turns of a column. Raises ValueError if it holds none, or something else."""
    if isinstance(value, str | bytes):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{column}: invalid JSON: {error.msg}") from error
    if not _is_list(value):
        raise ValueError(f"{column} is no list of messages")
    turns = [_turn(turn, f"{column}: {index}") for index, turn in enumerate(value)]
    try:
        messages = _MESSAGES.validate_python(turns)
    except ValidationError as error:
        raise ValueError(f"{column}: {complaints_of(error)}") from error
    if not messages:
        raise ValueError(f"{column} is empty")
    for message in messages:
        checked_text(f"{message.role}{message.content}", column)
    return messages


def _turn(turn: object, place: str) -> object:
    """Return the role and the content of a turn.

    A table fills the fields that a turn lacks with nulls, and labels such as a name or a weight ask
    for nothing, so only fields that the question needs are refused.
    """
    if not isinstance(turn, Mapping):
        return turn
    fields = {key: field for key, field in turn.items() if field is not None}
    for name in _NEEDED:
        if fields.get(name):
            raise ValueError(f"{place}.{name}: a question can only have text")
    role = fields.get("role", fields.get("from"))
    content = fields.get("content", fields.get("value"))
    found = {"role": _ROLES.get(role, role) if isinstance(role, str) else role}
    if content is None and found["role"] == _ASSISTANT and {"content", "value"} & turn.keys():
        content = ""  # an answer that is not there
    found["content"] = _joined(content, place) if isinstance(content, list | tuple) else content
    return {name: field for name, field in found.items() if field is not None}


def _joined(parts: Sequence[Any], place: str) -> str:
    """Return the text of a content that is a list of parts."""
    texts = []
    for part in parts:
        match part:
            case str():
                texts.append(part)
            case {"text": str(text)} if part.get("type", "text") in _TEXT_PARTS:
                texts.append(text)
            case _:
                raise ValueError(f"{place}.content: only parts of type text can be asked")
    return "".join(texts)


def last_answer(messages: Sequence[Message]) -> str | None:
    """Return what the last turn says if it is the assistant's, None otherwise."""
    is_answered = bool(messages) and messages[-1].role == _ASSISTANT
    return messages[-1].content if is_answered else None


def question_of(messages: tuple[Message, ...], column: str) -> tuple[Message, ...]:
    """Return the turns before the assistant's last. Raises ValueError if they ask nothing."""
    asked = messages if last_answer(messages) is None else messages[:-1]
    if not asked:
        raise ValueError(f"{column} has no message before the assistant's, so there is no question")
    if asked[-1].role == _ASSISTANT:
        raise ValueError(
            f"{column} ends with an assistant message before the answer, so there is no question"
        )
    return asked
