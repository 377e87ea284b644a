"""Finds the question, its reference answer and its id in the columns of a row.

The columns are ours, or those of the datasets that people train on: a chat in `messages`, whose
last turn is the answer; TRL's `prompt` with `completion` or `chosen`; `problem` with `solution`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from synth_client.errors import InputError
from synth_client.questions.conversation import (
    is_conversation,
    last_answer,
    messages_of,
    question_of,
)
from synth_client.questions.question import BadRow, Question
from synth_client.questions.reference import checked_text, number_text, reference_of
from trajectory_records.record import Message

_MESSAGES: Final = "messages"
_CHOSEN: Final = "chosen"
_QUESTIONS: Final = (_MESSAGES, "question", "problem", "prompt", "instruction", "input")
# Chats of other layouts are read only where none of these columns holds a question.
_CHATS: Final = (_MESSAGES, "conversations", "conversation", _CHOSEN)
_COLUMNS: Final = (*_QUESTIONS, *_CHATS[1:])
_ANSWER: Final = "answer"
_SOLUTIONS: Final = ("solution", "completion", _CHOSEN)
_EMPTY: Final[tuple[object, ...]] = (None, "", [])


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read, None for those that are recognised. `a.b` is the field b of column a."""

    question: str | None = None
    answer: str | None = None
    id: str | None = None


def check_columns(source: object, there: Iterable[str], columns: Columns) -> None:
    """Raise `InputError` if a table, whose rows all have these columns, lacks a needed one."""
    names = list(there)
    listed = ", ".join(names) or "none"
    for name in (columns.question, columns.answer, columns.id):
        if name is not None and name not in names and name.partition(".")[0] not in names:
            raise InputError(f"{source}: no column {name}; its columns: {listed}")
    if columns.question is None and not set(_COLUMNS) & set(names):
        wanted = ", ".join(_QUESTIONS)
        raise InputError(f"{source}: no column {wanted}; its columns: {listed}")


def read_row(
    cells: Mapping[str, Any], *, index: int, place: str, columns: Columns
) -> Question | BadRow:
    """Return the row's question, or its fault. Without an id of its own, its index is the id."""
    name = str(index)
    try:
        name = _id(cells, columns.id) or name
        asked = _asked(cells, columns.question)
        return Question(name, asked.messages, _reference(cells, columns.answer, asked))
    except ValueError as error:
        return BadRow(name, place, str(error))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The question, and the answer that its own column gives, if it does."""

    messages: tuple[Message, ...]
    answer: str | None = None


def _asked(cells: Mapping[str, Any], named: str | None) -> _Asked:
    column = named or _question_column(cells)
    value = _value(cells, column)
    if column in _CHATS or is_conversation(value):
        messages = messages_of(value, column)
        return _Asked(question_of(messages, column), last_answer(messages))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is not a text, or is empty")
    return _Asked((Message(role="user", content=checked_text(value, column)),))


def _question_column(cells: Mapping[str, Any]) -> str:
    """Return the first known column that holds something, if only an empty list."""
    for empty in (_EMPTY, _EMPTY[:2]):
        column = next((name for name in _COLUMNS if cells.get(name) not in empty), None)
        if column is not None:
            return column
    there = ", ".join(map(str, cells)) or "none"
    raise ValueError(f"no question: none of {', '.join(_QUESTIONS)} found (columns: {there})")


def _reference(cells: Mapping[str, Any], named: str | None, asked: _Asked) -> str | None:
    if named is not None:
        return reference_of(_value(cells, named), named)
    answer = reference_of(cells.get(_ANSWER), _ANSWER)
    if answer is not None:
        return answer
    given = (_solution(cells, name) for name in _SOLUTIONS)
    return next((text for text in given if text), None) or asked.answer or None


def _solution(cells: Mapping[str, Any], column: str) -> str | None:
    """Return the text or the assistant's last turn of a column; others hold no reference.

    TRL's `label` says whether the completion is a good one.
    """
    value = cells.get(column)
    if column == "completion" and cells.get("label") is False:
        return None
    if is_conversation(value):
        return last_answer(messages_of(value, column))
    return checked_text(value, column) if isinstance(value, str) else None


def _id(cells: Mapping[str, Any], named: str | None) -> str | None:
    column = named or "id"
    value: Any = cells.get(column) if named is None else _value(cells, named)
    if isinstance(value, str) and value:
        return checked_text(value, column)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and float(value).is_integer():
        return number_text(value, column)
    if named is not None:
        raise ValueError(f"{named} is neither a text nor a whole number, so it is no id")
    return None


def _value(cells: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return a column, or a field of one. Raises ValueError if there is none."""
    if name in cells:
        return cells[name]
    value: Any = cells
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"no column {name} (columns: {', '.join(map(str, cells)) or 'none'})")
        value = value[key]
    return value
